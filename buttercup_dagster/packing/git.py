"""Reading a local git repository without letting it, or the user's settings, decide anything.

A repository's own configuration can name programs: hooks, filters, diff drivers, file system
monitors, transports that fetch what a partial clone lacks. So its content is read through an empty
repository of our own that only borrows the object store (and the index, to find what is not
committed): what is not configured there cannot run and cannot change a byte. The repository itself
is only asked where its parts are and which commit a name stands for, with transports forbidden.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from buttercup_dagster.packing.errors import PackingError
from buttercup_dagster.packing.git_program import (
    OVERRIDES,
    Argument,
    Borrowed,
    Done,
    Git,
    complaint,
)
from buttercup_dagster.packing.tarball import (
    OMITTED_NAMES,
    Entry,
    LeftOut,
    order,
    shown,
    unfit_name,
    unfit_target,
)
from buttercup_dagster.sources.unpacking.picture import MOST_PATH_BYTES
from buttercup_dagster.sources.unpacking.tar import DIRECTORY, FILE, SYMLINK
from task_api.task import printable

_COMMIT: Final = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\n\Z")
_OWNED_BY_OTHERS: Final = (b"dubious ownership", b"unsafe repository")
_SUBMODULE: Final = b"160000"
_SYMLINK: Final = b"120000"

# How the work tree was written: without these, files would be taken for changed. None of them can
# name a program.
_WORK_TREE_SETTINGS: Final = (
    "filemode",
    "symlinks",
    "ignorecase",
    "precomposeunicode",
    "trustctime",
    "autocrlf",
    "eol",
)
_WORK_TREE_VALUE: Final = re.compile(r"[a-z0-9]{1,10}\Z")

_STATUS: Final = (
    "status",
    "--porcelain",
    "-z",
    "--no-renames",
    "--untracked-files=normal",
    "--ignore-submodules=all",
)
_DIFF: Final = ("diff-tree", "-r", "--ignore-submodules=all", "--no-renames", "--no-relative")
_PATCH: Final = (
    "-p",
    "--binary",
    "--full-index",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--diff-algorithm=myers",
    "--indent-heuristic",
    "--unified=3",
    "--inter-hunk-context=0",
)


def is_repository(path: Path) -> bool:
    """Whether a folder is meant to be a git repository: one with a `.git`, or a bare one."""
    if os.path.lexists(path / ".git"):
        return True
    return (path / "HEAD").is_file() and all((path / name).is_dir() for name in ("objects", "refs"))


@contextlib.contextmanager
def open_repository(path: Path) -> Iterator[GitRepository]:
    """Open a local repository, for as long as the context lasts.

    Args:
        path: its work tree, a linked work tree of it, or a bare repository; not a folder inside.

    Raises:
        PackingError: git is not installed, this is no repository, or it belongs to another user.
    """
    with tempfile.TemporaryDirectory(prefix="buttercup-git-") as scratch:
        yield GitRepository(Git(Path(scratch)), Path(os.path.realpath(path)))


class GitRepository:
    """A local repository; made by `open_repository`."""

    def __init__(self, git: Git, path: Path) -> None:
        self._git = git
        self._path = path
        self._shown = shown(os.fsencode(path))
        self._git_dir = self._discover()
        self._objects = self._part("objects")
        self._object_format = self._ask("rev-parse", "--show-object-format")
        self._borrowed = git.borrow(self._objects, self._object_format)

    def commit(self, name: str) -> str:
        """The id of the commit that a name stands for.

        Args:
            name: anything that `git rev-parse` takes for one commit, such as "HEAD" or "v1.0".

        Returns:
            40 or 64 lower-case hex digits.

        Raises:
            PackingError: there is no such commit, or no commit at all.
        """
        # What no command line can hold is no name of a commit either.
        with contextlib.suppress(ValueError):
            verify = ["rev-parse", "--verify", "--end-of-options"]
            done = self._git.run([*self._inside(), *verify, f"{name}^{{commit}}"])
            found = done.stdout.decode("ascii", "replace")
            if done.returncode == 0 and _COMMIT.match(found):
                return found.removesuffix("\n")
        if name == "HEAD":
            raise PackingError(
                f"the git repository {self._shown} has no commit yet; commit what is to be packed "
                "(git add, git commit)"
            )
        raise PackingError(
            f"the git repository {self._shown} has no commit '{printable(name)}'; look for it "
            "with `git log`, and fetch it first if this is a shallow clone (git fetch --unshallow)"
        )

    def tree(self, commit: str) -> GitTree:
        """The content of a commit.

        Args:
            commit: as `commit` returns it.

        Raises:
            PackingError: it cannot be read.
        """
        return GitTree(self._borrowed, self._shown, self._items(commit))

    def submodules(self, commit: str) -> Mapping[bytes, bytes]:
        """The commit of each submodule by its raw path.

        Raises:
            PackingError: the commit cannot be read.
        """
        return {
            item.name: item.object_id for item in self._items(commit) if item.mode == _SUBMODULE
        }

    def has_uncommitted_changes(self) -> bool:
        """Whether the work tree holds what its commit does not: changes, staged ones, new files.

        Ignored files and what is inside submodules do not count. False for a bare repository.

        Raises:
            PackingError: git cannot compare them.
        """
        if self._ask("rev-parse", "--is-bare-repository") == "true":
            return False
        core = {"bare": "false", **self._work_tree_settings()}
        borrowed = self._git.borrow(
            self._objects, self._object_format, head=self.commit("HEAD"), core=core
        )
        with contextlib.suppress(OSError):
            shutil.copyfile(self._part("info/exclude"), borrowed.folder / "info" / "exclude")
        index = self._part("index")
        # Git writes nothing here (GIT_OPTIONAL_LOCKS); a split index looks beside itself.
        for file in [index, *index.parent.glob("sharedindex.*")]:
            (borrowed.folder / file.name).symlink_to(file)
        changed = self._checked(borrowed.run(f"--work-tree={self._path}", *_STATUS))
        return any(
            OMITTED_NAMES.isdisjoint(line[3:].split(b"/")) for line in changed.split(b"\0")[:-1]
        )

    def diff(self, base: str, head: str, *, without: Collection[bytes] = ()) -> bytes:
        """The change from one commit to another, as `git apply` takes it on the tree of `base`.

        Binary files are in it. It depends on the two trees alone. Changes of submodules and of
        `OMITTED_NAMES` are not in it.

        Args:
            base: as `commit` returns it.
            head: likewise.
            without: raw paths of files whose changes are left out, too.

        Raises:
            PackingError: there is no change, or git cannot compare the two.
        """
        paths: list[Argument] = [
            b":(exclude,glob)**/" + name + below
            for name in sorted(OMITTED_NAMES)
            for below in (b"", b"/**")
        ]
        if without:
            # Only those that differ: a command line has room for a few.
            names = ["--name-only", "-z", base, head, "--", *paths]
            changed = self._checked(self._borrowed.run(*_DIFF, *names)).split(b"\0")
            paths += [b":(exclude,literal)" + name for name in sorted({*without} & {*changed})]
        diff = self._checked(self._borrowed.run(*_DIFF, *_PATCH, base, head, "--", *paths))
        if not diff:
            raise PackingError(
                f"nothing that is packed of {self._shown} differs between {base[:12]} and "
                f"{head[:12]}, so the diff would be empty; commit the change first, or choose an "
                "older base"
            )
        return diff

    def _discover(self) -> Path:
        """The git directory of exactly this folder; git looks whose it is on the way."""
        find: list[Argument] = ["-C", self._path, *OVERRIDES, "rev-parse", "--absolute-git-dir"]
        done = self._git.run(find, ceiling=self._path.parent)
        if _is_of_others(done) and self._git.trust_what_the_user_trusts():
            done = self._git.run(find, ceiling=self._path.parent)
        if _is_of_others(done):
            raise PackingError(
                f"git does not trust the repository {self._shown}, which belongs to another user; "
                f"allow it with `git config --global --add safe.directory {self._shown}`, or pack "
                "a clone of your own"
            )
        if done.returncode != 0:
            raise PackingError(
                f"{self._shown} is not a git repository that can be read ({complaint(done)}); "
                "mend it, or remove its .git to have the folder packed as it is"
            )
        found = os.fsdecode(done.stdout.removesuffix(b"\n"))
        if os.path.realpath(found) not in self._expected():
            raise PackingError(
                f"{self._shown} is not a git repository but lies inside of another one "
                f"({shown(os.fsencode(found))}); mend it, or remove its .git to have the folder "
                "packed as it is"
            )
        return Path(found)

    def _expected(self) -> set[str]:
        own = self._path / ".git"
        named = own
        if own.is_file():
            text = own.read_bytes().removeprefix(b"gitdir:").strip()
            named = self._path / os.fsdecode(text)
        return {os.path.realpath(self._path), os.path.realpath(named)}

    def _inside(self) -> list[Argument]:
        return ["-C", self._path, f"--git-dir={self._git_dir}", *OVERRIDES]

    def _ask(self, *arguments: str) -> str:
        output = self._checked(self._git.run([*self._inside(), *arguments]))
        return os.fsdecode(output.removesuffix(b"\n"))

    def _checked(self, done: Done) -> bytes:
        if done.returncode != 0:
            raise PackingError(
                f"git cannot read the repository {self._shown}: {complaint(done)}; look at it "
                "with `git fsck`"
            )
        return done.stdout

    def _part(self, name: str) -> Path:
        """Where a part of the repository is; linked work trees share most of them."""
        return self._path / self._ask("rev-parse", "--git-path", name)

    def _work_tree_settings(self) -> dict[str, str]:
        settings: dict[str, str] = {}
        for name in _WORK_TREE_SETTINGS:
            done = self._git.run([*self._inside(), "config", "--get", f"core.{name}"])
            value = done.stdout.decode("ascii", "replace").strip().lower()
            if _WORK_TREE_VALUE.match(value):
                settings[name] = value
        return settings

    def _items(self, commit: str) -> list[_Item]:
        done = self._borrowed.run("ls-tree", "-r", "-z", "--full-tree", commit)
        items: list[_Item] = []
        for line in self._checked(done).split(b"\0")[:-1]:
            attributes, _, name = line.partition(b"\t")
            mode, _, object_id = attributes.split(b" ")
            if OMITTED_NAMES.isdisjoint(name.split(b"/")):
                items.append(_Item(name, mode, object_id))
        return items


@dataclass(frozen=True, slots=True)
class _Item:
    """One line of a commit's listing: raw path, octal mode, object id."""

    name: bytes
    mode: bytes
    object_id: bytes

    @property
    def kind(self) -> str:
        if self.mode == _SUBMODULE:
            return DIRECTORY
        return SYMLINK if self.mode == _SYMLINK else FILE


class GitTree:
    """The content of a commit, without `OMITTED_NAMES`; submodules are empty folders.

    Attributes:
        left_out_names: raw paths of the files and links left out so far.
    """

    def __init__(self, repository: Borrowed, where: str, items: Sequence[_Item]) -> None:
        self.left_out_names: set[bytes] = set()
        self._repository = repository
        self._where = where
        self._items = items
        self._left_out: list[LeftOut] = []

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Submodules, and names and links that no task may hold, found so far."""
        return tuple(sorted(self._left_out, key=lambda left_out: left_out.name))

    def entries(self) -> Generator[Entry, None, None]:
        """The entries in order, with the folders, which git does not list.

        Raises:
            PackingError: the repository is damaged, or a partial clone that lacks something.
        """
        self._left_out.clear()
        self.left_out_names.clear()
        items = [item for item in self._items if self._fits(item)]
        places: list[tuple[bytes, _Item | None]] = [(order(i.name, i.kind), i) for i in items]
        places += [(order(name, DIRECTORY), None) for name in self._folders(items)]
        places.sort(key=lambda place: place[0])
        ids = [item.object_id for _, item in places if item and item.kind is not DIRECTORY]
        with self._repository.blobs(ids, self._where) as blobs:
            for place, item in places:
                if item is None or item.kind is DIRECTORY:
                    yield Entry(place.removesuffix(b"/"), DIRECTORY)
                    continue
                size = blobs.next(item.name)
                if item.kind is FILE:
                    executable = bool(int(item.mode, 8) & 0o100)
                    yield Entry(item.name, FILE, size, executable, blocks=blobs.data())
                    continue
                # What a commit calls a link may be of any length; this much is too long already.
                kept = size <= MOST_PATH_BYTES
                target = b"".join(blobs.data()) if kept else bytes(MOST_PATH_BYTES + 1)
                if reason := unfit_target(target):
                    self._leave_out(item, reason)
                else:
                    yield Entry(item.name, SYMLINK, target=target)

    def _fits(self, item: _Item) -> bool:
        if reason := unfit_name(item.name):
            self._leave_out(item, reason)
            return False
        if item.mode == _SUBMODULE:
            reason = "the content of a submodule; its folder is packed empty"
            self._left_out.append(LeftOut(shown(item.name), reason))
        return True

    def _leave_out(self, item: _Item, reason: str) -> None:
        self._left_out.append(LeftOut(shown(item.name), reason))
        self.left_out_names.add(item.name)

    def _folders(self, items: Sequence[_Item]) -> set[bytes]:
        """The folders that the items lie in."""
        folders: set[bytes] = set()
        for item in items:
            folder = item.name.rpartition(b"/")[0]
            while folder and folder not in folders:
                folders.add(folder)
                folder = folder.rpartition(b"/")[0]
        names = {item.name for item in items}
        if len(names) < len(items) or not names.isdisjoint(folders):
            raise PackingError(
                f"a commit of {self._where} holds one name twice; look at the repository with "
                "`git fsck`"
            )
        return folders


def _is_of_others(done: Done) -> bool:
    return done.returncode != 0 and any(words in done.stderr for words in _OWNED_BY_OTHERS)
