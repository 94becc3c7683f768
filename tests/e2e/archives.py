"""Source archives for the end-to-end tests, packed from what is installed here."""

from __future__ import annotations

import difflib
import hashlib
import io
import sysconfig
import tarfile
from dataclasses import dataclass
from pathlib import Path

SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])


@dataclass(frozen=True)
class Archive:
    """A gzipped tarball on disk.

    Attributes:
        path: the file.
        sha256: its digest.
        files: relative path (with the top folder) to content of each regular file.
    """

    path: Path
    sha256: str
    files: dict[str, bytes]


def pack(path: Path, files: dict[str, bytes]) -> Archive:
    """Write a `.tar.gz` of these files with GNU tar's usual modes."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o755 if name.endswith((".sh", "helper.py")) else 0o644
            member.mtime = 1_700_000_000
            tar.addfile(member, io.BytesIO(content))
    return Archive(path, hashlib.sha256(path.read_bytes()).hexdigest(), files)


def package_files(package: str, top: str) -> dict[str, bytes]:
    """The Python sources of an installed package, below a folder `top`."""
    folder = SITE_PACKAGES / package
    return {
        f"{top}/{file.relative_to(folder)}": file.read_bytes()
        for file in folder.rglob("*.py")
        if "__pycache__" not in file.parts
    }


def repo_archive(path: Path, package: str) -> Archive:
    """The sources of an installed package as a repo archive; its focus is the package's name."""
    return pack(path, package_files(package, package))


def tooling_archive(path: Path, project: str) -> Archive:
    """Fuzz tooling laid out as OSS-Fuzz does, with one project."""
    top = "fuzz-tooling"
    return pack(
        path,
        {
            f"{top}/infra/helper.py": b"#!/usr/bin/env python3\nprint('helper')\n",
            f"{top}/projects/{project}/project.yaml": b"language: python\n",
            f"{top}/projects/{project}/Dockerfile": b"FROM scratch\n",
            f"{top}/projects/{project}/build.sh": b"#!/bin/sh\ntrue\n",
        },
    )


def diff_archive(path: Path, repo: Archive, focus: str, file: str) -> Archive:
    """A diff that adds one line to the end of a file of the repo."""
    before = repo.files[f"{focus}/{file}"].decode().splitlines(keepends=True)
    after = [*before, "# one more line\n"]
    lines = difflib.unified_diff(before, after, f"a/{file}", f"b/{file}")
    return pack(path, {"diff/ref.diff": "".join(lines).encode()})
