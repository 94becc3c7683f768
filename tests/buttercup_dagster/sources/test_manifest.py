from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from buttercup_dagster.sources.errors import StorageError
from buttercup_dagster.sources.manifest import Entry, Manifest
from tests.support.archives import file, folder, hardlink, packed, symlink
from tests.support.sandbox import Sandbox


def test_manifest(sandbox: Sandbox, tmp_path: Path) -> None:
    made = sandbox.unpack(
        packed(
            folder(b"top/"),
            file(b"top/a", b"12345"),
            file(b"top/caf\xe9"),
            hardlink(b"top/b", b"top/a"),
            symlink(b"top/l", b"a"),
            symlink(b"top/out", b"/etc"),
        )
    )
    made.save(tmp_path / "m.json")
    manifest = Manifest.load(tmp_path / "m.json")
    assert manifest == made
    assert (manifest.files, manifest.directories) == (2, 1)
    assert (manifest.symlinks, manifest.hardlinks, manifest.bytes) == (1, 1, 10)
    assert manifest.top_level == ("top",)
    assert manifest.dropped_links == ("top/out",)
    assert manifest.first_names(2) == ("top", "top/a")
    assert all(name.isascii() for name in manifest.first_names())

    top = sandbox.tree / "top"

    def replace_by_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def replace_by_file(path: Path) -> None:
        path.unlink()
        path.write_text("x")

    changes: list[tuple[Callable[[], object], str]] = [
        ((top / "new").touch, "top/new: is not in the manifest"),
        ((top / "new").unlink, ""),
        (lambda: (top / "a").chmod(0o600), "top/a: has mode 0600 instead of 0644"),
        (lambda: (top / "a").chmod(0o644), ""),
        (lambda: os.utime(top / "a", (5, 5)), "top/a: has another modification time"),
        (lambda: (top / "a").write_text("123456"), "top/a: has 6 bytes instead of 5"),
        ((top / "l").unlink, "top/l: is missing"),
        (lambda: (top / "l").symlink_to("b"), "top/l: leads elsewhere"),
        (lambda: replace_by_folder(top / "l"), "top/l: is of another type"),
        (lambda: replace_by_file(top / "b"), "top/b: is no longer"),
    ]
    for change, expected in changes:
        change()
        text = "\n".join(manifest.differences(sandbox.tree))
        assert (expected in text) if expected else not text, text


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"format":9}', b'{"format":1,"entries":[]}']
)
def test_damaged_manifest(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        Manifest.load(path)
    with pytest.raises(FileNotFoundError):
        Manifest.load(tmp_path / "none")


def test_content_that_was_hashed_already_is_still_read_with_care(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    manifest = Manifest.of({"a": Entry("f", 1, 5, 0o644), "b": Entry("l", link="a")})
    manifest.save(path)
    content = path.read_bytes()
    for hashed in (False, True):
        assert Manifest.parsed(content, hashed=hashed) == manifest == Manifest.load(path)
        assert Manifest.parsed(content[:-1], hashed=hashed) is None
    assert Manifest.parsed(content.replace(b"\ta\n", b"\tc\n")) is None
