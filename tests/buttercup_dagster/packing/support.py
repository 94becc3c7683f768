"""Real git repositories, and trees unpacked from archives in two ways."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from buttercup_dagster.sources.archive import unpack
from tests.support.trees import difference

PERSON = {
    "GIT_AUTHOR_NAME": "A Person",
    "GIT_AUTHOR_EMAIL": "person@example.org",
    "GIT_COMMITTER_NAME": "A Person",
    "GIT_COMMITTER_EMAIL": "person@example.org",
    "GIT_AUTHOR_DATE": "2024-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2024-01-01T00:00:00Z",
}


def git_environment() -> dict[str, str]:
    """The environment of a person who has no settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {
        **kept,
        **PERSON,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }


class Repository:
    """A git repository with a work tree."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main", *options)

    def git(self, *arguments: str | bytes | Path, given: bytes = b"") -> bytes:
        """Run git in the work tree; what it printed."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env=git_environment(),
            input=given,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def write(self, name: str | bytes, content: bytes | str = b"", *, mode: int = 0o644) -> Path:
        """Write a file of the work tree."""
        path = self.path / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return path

    def commit(self) -> str:
        """Commit everything that is there and return the commit's id."""
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "--message=a change")
        return self.git("rev-parse", "HEAD").decode().strip()

    def hash_object(self, content: bytes, kind: str = "blob") -> str:
        """Store any object, however odd."""
        arguments = ("hash-object", "-t", kind, "-w", "--literally", "--stdin")
        return self.git(*arguments, given=content).decode().strip()

    def commit_tree(self, *entries: tuple[str, bytes, str]) -> str:
        """Commit a tree of entries (mode, name, id) as they are given."""
        tree = b"".join(
            mode.encode() + b" " + name + b"\0" + bytes.fromhex(object_id)
            for mode, name, object_id in entries
        )
        made = self.git("commit-tree", "-m", "odd", self.hash_object(tree, "tree"))
        commit = made.decode().strip()
        self.git("update-ref", "refs/heads/main", commit)
        return commit


def picture(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything below a folder, by raw name: what it is, its content, who may execute it."""
    found: dict[bytes, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder) / name
            mode = path.lstat().st_mode
            relative = os.fsencode(path.relative_to(root))
            if stat.S_ISLNK(mode):
                found[relative] = ("link", path.readlink())
            elif stat.S_ISDIR(mode):
                found[relative] = ("folder",)
            else:
                found[relative] = ("file", path.read_bytes(), bool(mode & 0o100))
    return found


def unpacked(archive: Path, into: Path) -> Path:
    """Unpack with the project's reader, check that GNU tar sees the same, return the tree."""
    ours, theirs = into / "ours", into / "theirs"
    theirs.mkdir(parents=True)
    unpack(archive, ours)
    done = subprocess.run(
        ["tar", "--extract", "--gzip", f"--file={archive}", "--directory", theirs],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert difference(ours, theirs) == []
    return ours
