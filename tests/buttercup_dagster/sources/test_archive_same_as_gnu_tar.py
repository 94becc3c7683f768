"""The tree that an archive makes is the one that GNU tar makes of it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from buttercup_dagster.sources.archive import unpack
from tests.support.gnu_tar import needs_gnu_tar, unpack_with_gnu_tar
from tests.support.trees import difference

VARIABLE = "TEST_SOURCES"
SLOW_BYTES = 100_000_000

pytestmark = needs_gnu_tar


def rich_tree(root: Path) -> None:
    chance = random.Random(7)
    for number in range(60):
        place = root / "/".join(f"d{chance.randrange(3)}" for _ in range(chance.randrange(1, 6)))
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"file {number} ü\\"
        path.write_bytes(chance.randbytes(chance.choice([0, 1, 511, 512, 513, 70_000])))
        path.chmod(chance.choice([0o644, 0o755, 0o664, 0o775, 0o4755, 0o600]))
        os.utime(path, (chance.randrange(2**31),) * 2)
    long = root / ("n" * 200) / ("m" * 200)
    long.mkdir(parents=True)
    (long / ("o" * 200)).write_text("long")
    (long / "link").symlink_to("/".join([".."] * 2 + ["d0"] * 60))
    (root / "relative").symlink_to("d0/../d0")
    (root / "dangling").symlink_to("no/where")
    os.link(long / ("o" * 200), root / "zz-second-name")
    (root / "empty").mkdir()
    (root / os.fsdecode(b"caf\xe9")).write_bytes(b"latin")
    for path in root.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(chance.choice([0o755, 0o775, 0o700]))
            os.utime(path, (1_600_000_000, 1_600_000_000))


def fit_into_old_formats(root: Path) -> None:
    """Shorten what the formats before pax and GNU cannot hold."""
    (root / ("n" * 200)).rename(root / "n")
    (root / "n" / ("m" * 200)).rename(root / "n" / "m")
    (root / "n/m" / ("o" * 200)).rename(root / "n/m/o")
    (root / "n/m/link").unlink()


@pytest.mark.parametrize(
    "form", ["gnu", "pax", "ustar", "v7", "oldgnu", "python-pax", "python-gnu", "python-ustar"]
)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_archives_of_every_writer(tmp_path: Path, form: str, suffix: str) -> None:
    source = tmp_path / "source"
    rich_tree(source)
    if form in {"ustar", "v7", "python-ustar"}:
        fit_into_old_formats(source)
    archive = tmp_path / f"a{suffix}"
    if form.startswith("python"):
        formats = {
            "python-pax": tarfile.PAX_FORMAT,
            "python-gnu": tarfile.GNU_FORMAT,
            "python-ustar": tarfile.USTAR_FORMAT,
        }
        with tarfile.open(
            archive, "w:gz" if suffix == ".tar.gz" else "w:", format=formats[form]
        ) as writer:
            writer.add(source, ".")
    else:
        subprocess.run(
            ["tar", f"--format={form}", "-C", source, "--auto-compress", "-cf", archive, "."],
            check=True,
        )
    assert unpack_with_gnu_tar(archive, tmp_path / "theirs") == 0
    manifest = unpack(archive, tmp_path / "ours")
    assert difference(tmp_path / "ours", tmp_path / "theirs") == []
    assert manifest.dropped_links == ()
    assert manifest.differences(tmp_path / "ours") == []


def real_sources() -> list[object]:
    folder = Path(os.environ.get(VARIABLE) or "/nonexistent")
    found = sorted(folder.glob("*.tar.gz")) if folder.is_dir() else []
    return [
        pytest.param(
            path,
            id=path.name,
            marks=[pytest.mark.timeout(1200)]
            + ([pytest.mark.slow] if path.stat().st_size > SLOW_BYTES else []),
        )
        for path in found
    ] or [
        pytest.param(
            Path(),
            id="none",
            marks=pytest.mark.skip(
                reason="needs real source archives: run .ci/fetch-sources, set "
                f"{VARIABLE} to its folder"
            ),
        )
    ]


@pytest.mark.parametrize("archive", real_sources())
def test_real_sources(tmp_path: Path, archive: Path) -> None:
    """Names, types, bytes, modes, times in seconds, link texts, and which names are one file."""
    assert unpack_with_gnu_tar(archive, tmp_path / "theirs") == 0
    manifest = unpack(archive, tmp_path / "ours")
    try:
        differing = set(difference(tmp_path / "ours", tmp_path / "theirs"))
        assert differing == set(manifest.dropped_links)
        assert manifest.differences(tmp_path / "ours") == []
    finally:
        for name in ("ours", "theirs"):
            shutil.rmtree(tmp_path / name)
