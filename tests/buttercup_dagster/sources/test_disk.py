from __future__ import annotations

from pathlib import Path

import pytest

from buttercup_dagster.sources.disk import clean_private_folders, locks_hold, private_folder
from buttercup_dagster.sources.errors import StorageError
from tests.support.disks import small_tmpfs


def test_what_cannot_be_removed_harms_no_finished_work(tmp_path: Path) -> None:
    with private_folder(tmp_path, "a") as folder:
        mounting = small_tmpfs(folder / "mounted", "size=64k")
        mounting.__enter__()
    try:
        assert list(tmp_path.iterdir()) == [folder]
    finally:
        mounting.__exit__(None, None, None)
    assert clean_private_folders(tmp_path) == [folder.name]


def test_what_cannot_be_removed_keeps_nothing_else(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name / "inside").mkdir(parents=True)
    with small_tmpfs(tmp_path / "a" / "mounted", "size=64k"):
        with pytest.raises(StorageError, match=f"cannot remove.*{tmp_path}/a.*busy"):
            clean_private_folders(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        problems: list[StorageError] = []
        assert clean_private_folders(tmp_path, problems) == []
        assert len(problems) == 1
    assert clean_private_folders(tmp_path) == ["a"]


def test_locks_are_trusted_on_disks_of_this_machine_only(tmp_path: Path) -> None:
    assert locks_hold(tmp_path)
    # One process can lock there as anywhere; what tells is the type of the file system.
    assert not locks_hold(Path("/proc"))
    assert not locks_hold(tmp_path / "missing")
