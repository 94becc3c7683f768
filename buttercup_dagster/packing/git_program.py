"""Running git so that nobody's settings have a say, and empty repositories that borrow objects."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, cast

from buttercup_dagster.packing.errors import PackingError
from buttercup_dagster.packing.tarball import shown
from buttercup_dagster.sources.options import MEBIBYTE
from task_api.task import printable

Argument = str | bytes | Path
Done = subprocess.CompletedProcess[bytes]

OVERRIDES: Final = (
    "--no-pager",
    "-c",
    "core.fsmonitor=false",
    "-c",
    f"core.hooksPath={os.devnull}",
)
"""For the few commands that have to run in the repository itself and so read its settings."""

_ENVIRONMENT: Final = {
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    # A partial clone fetches what it lacks by programs that its settings name. Older versions of
    # git know only the second of these.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}
_BLOB: Final = re.compile(rb"[0-9a-f]+ blob ([0-9]{1,19})\n\Z")
_HEADER_BYTES: Final = 4096


class Git:
    """The git program, with a scratch folder that is its home and its working folder.

    Args:
        scratch: an empty folder; holds the repositories made here.

    Raises:
        PackingError: git is not installed.
    """

    def __init__(self, scratch: Path) -> None:
        found = shutil.which("git")
        if found is None:
            raise PackingError(
                "git is not installed, and a git repository is to be packed; install git, or "
                "pack a copy of the folder without its .git"
            )
        # Run from another folder, a relative path would name another program.
        self._program = os.path.abspath(found)  # noqa: PTH100
        self._scratch = scratch
        self._home = scratch / "home"
        self._home.mkdir()

    def run(
        self,
        arguments: Sequence[Argument],
        *,
        ceiling: Path | None = None,
        of_the_user: bool = False,
    ) -> Done:
        """Run git to its end.

        Args:
            arguments: its arguments.
            ceiling: the folder in and above which it looks for no repository.
            of_the_user: whether it sees the user's and the system's settings.

        Raises:
            PackingError: it cannot be started.
        """
        environment = self._environment(of_the_user=of_the_user)
        if ceiling is not None:
            environment["GIT_CEILING_DIRECTORIES"] = str(ceiling)
        with _starting():
            return subprocess.run(
                [self._program, *arguments],
                cwd=self._scratch,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )

    @contextlib.contextmanager
    def output(self, arguments: Sequence[Argument], given: bytes) -> Iterator[IO[bytes]]:
        """What git writes while it reads `given`, as a stream.

        Raises:
            PackingError: it cannot be started.
        """
        # In a file, so that nobody has to feed one pipe while reading another.
        with tempfile.TemporaryFile(dir=self._scratch) as stdin:
            stdin.write(given)
            stdin.seek(0)
            with _starting():
                process = subprocess.Popen(
                    [self._program, *arguments],
                    cwd=self._scratch,
                    env=self._environment(),
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            with process:
                yield cast("IO[bytes]", process.stdout)

    def trust_what_the_user_trusts(self) -> bool:
        """Take over the user's list of other users' repositories to trust.

        Returns:
            Whether there is anything on it.
        """
        settings = self._home / ".gitconfig"
        for scope in ("--system", "--global"):
            listed = self.run(
                ["config", scope, "--type=path", "-z", "--get-all", "safe.directory"],
                of_the_user=True,
            )
            for value in listed.stdout.split(b"\0")[:-1]:
                self.run(["config", "--file", settings, "--add", "safe.directory", value])
        return settings.exists()

    def borrow(
        self,
        objects: Path,
        object_format: str,
        *,
        head: str = "ref: refs/heads/none",
        core: Mapping[str, str] | None = None,
    ) -> Borrowed:
        """Make an empty repository of our own on top of another one's objects.

        Args:
            objects: the object store to read from.
            object_format: of that store, "sha1" or "sha256".
            head: content of its HEAD.
            core: its settings in the section `core`.
        """
        folder = Path(tempfile.mkdtemp(dir=self._scratch, suffix=".git"))
        for part in ("refs", "info"):
            (folder / part).mkdir()
        (folder / "objects").symlink_to(objects)
        (folder / "HEAD").write_text(f"{head}\n")
        sha1 = object_format == "sha1"
        settings = {"bare": "true", "repositoryformatversion": "0" if sha1 else "1", **(core or {})}
        lines = ["[core]", *(f"{name} = {value}" for name, value in settings.items())]
        if not sha1:
            lines += ["[extensions]", f"objectformat = {object_format}"]
        (folder / "config").write_text("".join(f"{line}\n" for line in lines))
        return Borrowed(self, folder)

    def _environment(self, *, of_the_user: bool = False) -> dict[str, str]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("GIT_")
        }
        if not of_the_user:
            home = str(self._home)
            environment |= {**_ENVIRONMENT, "HOME": home, "XDG_CONFIG_HOME": home}
        return environment


class Borrowed:
    """A repository of our own that has another one's objects and nothing else of it.

    Attributes:
        folder: its git directory.
    """

    def __init__(self, git: Git, folder: Path) -> None:
        self.folder = folder
        self._git = git

    def run(self, *arguments: Argument) -> Done:
        """Run git in it, to its end."""
        return self._git.run([f"--git-dir={self.folder}", *arguments])

    @contextlib.contextmanager
    def blobs(self, ids: Sequence[bytes], where: str) -> Iterator[Blobs]:
        """The contents of files, one after the other.

        Args:
            ids: their object ids.
            where: the repository they come from, for messages.
        """
        arguments = [f"--git-dir={self.folder}", "cat-file", "--batch", "--buffer"]
        given = b"".join(object_id + b"\n" for object_id in ids)
        with self._git.output(arguments, given) as stream:
            yield Blobs(stream, where)


class Blobs:
    """A stream of files' contents, as `git cat-file --batch` writes it."""

    def __init__(self, stream: IO[bytes], where: str) -> None:
        self._stream = stream
        self._where = where
        self._name = b""
        self._size = 0
        self._unread = 0

    def next(self, name: bytes) -> int:
        """Go to the next file, past what is unread of the present one.

        Args:
            name: what it is called, for messages.

        Returns:
            Its size in bytes.

        Raises:
            PackingError: the repository does not have it.
        """
        while self._unread:
            self._take(self._unread)
        self._name = name
        header = _BLOB.match(self._stream.readline(_HEADER_BYTES))
        if header is None:
            raise self._missing()
        size = int(header[1])
        self._unread = size + 1  # a line feed follows
        return size

    def data(self) -> Iterator[bytes]:
        """The content of the present file, in blocks of at most 1 MiB.

        Raises:
            PackingError: the repository does not have all of it.
        """
        while self._unread > 1:
            yield self._take(self._unread - 1)

    def _take(self, most: int) -> bytes:
        block = self._stream.read(min(most, MEBIBYTE))
        if not block:
            raise self._missing()
        self._unread -= len(block)
        return block

    def _missing(self) -> PackingError:
        return PackingError(
            f"{self._where} lacks the content of '{shown(self._name)}'; if it is a partial clone, "
            "clone it again without --filter, else look at it with `git fsck`"
        )


def complaint(done: Done) -> str:
    """The reason that git gave for failing, one line."""
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    fatal = [line for line in lines if line.startswith(("fatal: ", "error: "))] or lines
    text = fatal[-1] if fatal else f"it ended with status {done.returncode}"
    return printable(text.removeprefix("fatal: ").removeprefix("error: "), limit=300)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PackingError(
            f"git cannot be run: {error.strerror}; check that `git --version` works"
        ) from error
