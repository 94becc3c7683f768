"""The home folder: what is refused, and what the refusal says."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from buttercup_dagster.local.errors import HomeUnusable
from buttercup_dagster.local.home import check_home, claimed
from tests.support.users import as_ordinary_user


def test_new_home_is_made_for_readers(tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"
    check_home(home)
    assert home.stat().st_mode & 0o777 == 0o755
    check_home(home)
    assert list(home.iterdir()) == []


def test_home_in_a_git_work_tree(tmp_path: Path) -> None:
    (tmp_path / "project" / ".git").mkdir(parents=True)
    with pytest.raises(HomeUnusable, match="lies in the git work tree") as refusal:
        check_home(tmp_path / "project" / "home")
    assert str(tmp_path / "project") in str(refusal.value)
    assert "--home" in str(refusal.value)
    assert not (tmp_path / "project" / "home").exists()


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_home_that_others_may_write(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    with pytest.raises(HomeUnusable, match="chmod go-w"):
        check_home(home)


def test_home_that_is_a_file(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("")
    with pytest.raises(HomeUnusable, match="cannot be made: File exists; choose another folder"):
        check_home(home)


def test_home_that_is_read_only() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        with as_ordinary_user():
            home = Path(folder) / "home"
            home.mkdir()
            home.chmod(0o555)
            with pytest.raises(HomeUnusable, match="cannot be written to: Permission denied"):
                check_home(home)
            home.chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of somebody else")
def test_home_of_somebody_else(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    with pytest.raises(HomeUnusable, match="belongs to another user"):
        check_home(home)


def test_only_one_may_have_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from buttercup_dagster.local.home import claimed\n"
        "with claimed(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with (
            pytest.raises(HomeUnusable, match=rf"in use .* \(process {other.pid}\)"),
            claimed(tmp_path),
        ):
            pass
        other.kill()
    # However it ended, its claim is gone.
    with claimed(tmp_path):
        pass
