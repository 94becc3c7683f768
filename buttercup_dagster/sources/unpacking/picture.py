"""A tree as an archive describes it, in memory: every judgement about names is made here.

The disk is never asked. So what another process does there, and what a link would make of a name,
has no bearing on what is accepted.
"""

from __future__ import annotations

from buttercup_dagster.sources.unpacking.refusal import Refusal
from buttercup_dagster.sources.unpacking.tar import (
    CONTROL,
    DIRECTORY,
    FILE,
    HARDLINK,
    SYMLINK,
    Member,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    Refuse = Callable[[str, str], Refusal]
    """Makes the error for a code and a text; it knows the entry."""


MOST_COMPONENT_BYTES: Final = 255
MOST_PATH_BYTES: Final = 4095  # PATH_MAX of Linux, without the closing NUL
MOST_DEPTH: Final = 256
MOST_HOPS: Final = 40  # as many links as Linux follows in one path
MOST_LINK_STEPS: Final = 20_000_000
"""Path components looked at for all links of an archive together."""

_SYMLINK: Final = b"l"
_HARDLINK: Final = b"h"
_NO_NAMES: Final = frozenset({b"", b".", b".."})
_NOTHING: Final[tuple[bytes, ...]] = ()


def clean_name(name: bytes, refuse: Refuse, *, what: str = "name") -> bytes:
    """The name of an entry with '.' and empty components taken out; empty for the root itself.

    Raises:
        Refusal: the name is empty, absolute, climbs, holds control characters, is too long or too
            deep.
    """
    if not name:
        raise refuse("empty_name", f"the {what} is empty")
    if name.startswith(b"/"):
        raise refuse("absolute_name", f"the {what} is absolute")
    if name.translate(None, CONTROL) != name:
        raise refuse("control_character", f"the {what} holds a control character")
    components = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if b".." in components:
        raise refuse("climbing_name", f"the {what} has a '..' component")
    if len(components) > MOST_DEPTH:
        raise refuse("too_deep", f"the {what} is more than {MOST_DEPTH} folders deep")
    clean = b"/".join(components)
    if len(clean) > MOST_PATH_BYTES or any(len(p) > MOST_COMPONENT_BYTES for p in components):
        raise refuse(
            "name_too_long",
            f"the {what} has more than {MOST_PATH_BYTES} bytes, or a component of more than "
            f"{MOST_COMPONENT_BYTES}",
        )
    return clean


class Picture:
    """Which names there are, and what each one is.

    Attributes:
        entries: how many names.
        name_bytes: of all names and link texts together.
        stated: mode and time of the directories that the archive states, by path.
    """

    def __init__(self) -> None:
        self.name_bytes = 0
        self.entries = 0
        self.stated: dict[bytes, tuple[int, int]] = {}
        # What a name is; of a link its kind's letter and its text, in one object for each.
        self._kinds: dict[bytes, str | bytes] = {b"": DIRECTORY}
        # The last folder that a file was put into, as the archive writes it, and as it is called.
        self._last_text = b""
        self._last_folder = b""
        self._last_is_clean = False
        self._steps = 0

    def add_file(self, name: bytes, refuse: Refuse) -> tuple[bytes, tuple[bytes, ...]]:
        """Add a regular file; like `add`, and quick where its neighbour was added before it."""
        text, _, last = name.rpartition(b"/")
        if (
            text == self._last_text
            and text
            and last not in _NO_NAMES
            and len(last) <= MOST_COMPONENT_BYTES
            and last.translate(None, CONTROL) == last
        ):
            path = name if self._last_is_clean else self._last_folder + last
            if path not in self._kinds:
                self._kinds[path] = FILE
                self.entries += 1
                self.name_bytes += len(path)
                return path, _NOTHING
        path = clean_name(name, refuse)
        if not path:
            raise refuse("empty_name", "only a directory can be the root of the archive")
        if name.endswith(b"/."):
            raise refuse("bad_name", "only the name of a directory can end in '/.'")
        folders = self._add(path, FILE, refuse)
        folder = path.rpartition(b"/")[0]
        # Whatever file lies in it is neither too deep nor too long then.
        if folder and len(folder) < MOST_PATH_BYTES - MOST_COMPONENT_BYTES:
            self._last_text, self._last_folder = text, folder + b"/"
            self._last_is_clean = text == folder
        return path, folders

    def add(self, member: Member, refuse: Refuse) -> tuple[bytes, tuple[bytes, ...]]:
        """Add an entry.

        Args:
            member: what the archive says about it.
            refuse: makes errors.

        Returns:
            Its clean name, empty for the root; and the directories that appear with it, outermost
            first: parents that the archive has not stated before, and the entry itself if it is a
            new directory.

        Raises:
            Refusal: the name cannot be used, is taken, or lies below something that is no
                directory.
        """
        path = clean_name(member.name, refuse)
        if member.kind is DIRECTORY:
            statement = (member.mode, member.mtime)
            folders = self._add(path, DIRECTORY, refuse)
            if path and self.stated.setdefault(path, statement) != statement:
                raise refuse("duplicate", "the directory stands twice, with different attributes")
            return path, folders
        if not path:
            raise refuse("empty_name", "only a directory can be the root of the archive")
        if member.kind is SYMLINK or member.kind is HARDLINK:
            _check_link_form(member, refuse)
            letter = _SYMLINK if member.kind is SYMLINK else _HARDLINK
            folders = self._add(path, letter + member.link, refuse)
            self.name_bytes += len(member.link)
            return path, folders
        return path, self._add(path, member.kind, refuse)

    def _add(self, path: bytes, kind: str | bytes, refuse: Refuse) -> tuple[bytes, ...]:
        kinds = self._kinds
        known = kinds.get(path)
        if known is not None:
            if kind is DIRECTORY is known:
                return _NOTHING
            if kind is DIRECTORY or known is DIRECTORY:
                raise refuse("clash", f"the name is a {_named(known)} earlier in the archive")
            raise refuse("duplicate", "the name stands twice in the archive")
        new = self._missing_parents(path, refuse)
        for parent in new:
            kinds[parent] = DIRECTORY
            self.name_bytes += len(parent)
        self.entries += len(new) + 1
        kinds[path] = kind
        self.name_bytes += len(path)
        if kind is DIRECTORY:
            new.append(path)
        return tuple(new)

    def _missing_parents(self, path: bytes, refuse: Refuse) -> list[bytes]:
        """Folders above a path that are not there yet, outermost first."""
        missing: list[bytes] = []
        while True:
            path = path.rpartition(b"/")[0]
            kind = self._kinds.get(path)
            if kind is DIRECTORY:
                missing.reverse()
                return missing
            if kind is not None:
                if _symlink_text(kind) is not None:
                    raise refuse("below_symlink", "the entry lies below a symbolic link")
                raise refuse("clash", f"the entry lies below a {_named(kind)}")
            missing.append(path)

    def hardlink_target(self, path: bytes, refuse: Refuse) -> bytes:
        """The regular file of this archive that a hard link is another name of.

        Raises:
            Refusal: there is no such file.
        """
        target = path
        kind: str | bytes | None = self._kinds[path]
        for _ in range(MOST_HOPS):
            if not isinstance(kind, bytes) or not kind.startswith(_HARDLINK):
                break
            if kind.endswith((b"/", b"/.")):
                break  # that names a directory
            target = clean_name(kind[1:], refuse, what="target of the hard link")
            kind = self._kinds.get(target)
            if kind is FILE:
                return target
            if target == path:
                break
        raise refuse("hardlink_target", "the hard link is not to a regular file of the archive")

    def leads_out(self, path: bytes, refuse: Refuse) -> bool:
        """Whether a symbolic link leads, or may be made to lead, out of the tree.

        A link to nothing inside the tree and a plain circle of links do not.

        Raises:
            Refusal: all links together are too much work.
        """
        here = path.split(b"/")[:-1]
        ahead = _split(self.link_text(path))
        if ahead is None:
            return True
        hops = 1
        states: set[tuple[bytes, tuple[bytes, ...]]] = set()
        while ahead:
            self._steps += 1
            if self._steps > MOST_LINK_STEPS:
                raise refuse("link_work", "the links of the archive are too tangled to be judged")
            part = ahead.pop()
            if part == b"..":
                if not here:
                    return True
                here.pop()
                continue
            here.append(part)
            if len(here) > MOST_DEPTH:
                continue  # nothing of the archive lies so deep
            reached = b"/".join(here)
            text = _symlink_text(self._kinds.get(reached))
            if text is not None:
                state = (reached, tuple(ahead))
                if state in states:
                    return False
                states.add(state)
                hops += 1
                further = _split(text)
                if hops > MOST_HOPS or further is None:
                    return True
                here.pop()
                ahead += further
                self._steps += len(ahead)
        return False

    def link_text(self, path: bytes) -> bytes:
        """What a symbolic link leads to, as the archive says it."""
        text = _symlink_text(self._kinds[path])
        if text is None:
            raise KeyError(path)
        return text


def _symlink_text(kind: str | bytes | None) -> bytes | None:
    if isinstance(kind, bytes) and kind.startswith(_SYMLINK):
        return kind[1:]
    return None


def _named(kind: str | bytes) -> str:
    if isinstance(kind, bytes):
        return SYMLINK if kind.startswith(_SYMLINK) else HARDLINK
    return kind


def _split(text: bytes) -> list[bytes] | None:
    """The components of a link, the next one last; None for an absolute link."""
    if text.startswith(b"/"):
        return None
    return [part for part in reversed(text.split(b"/")) if part not in {b"", b"."}]


def _check_link_form(member: Member, refuse: Refuse) -> None:
    link = member.link
    if member.name.endswith((b"/", b"/.")):
        raise refuse("bad_name", "the name of a link ends in a slash")
    if not link:
        raise refuse("empty_link", "the link leads to an empty name")
    if len(link) > MOST_PATH_BYTES or link.translate(None, CONTROL) != link:
        raise refuse("bad_link", "the text of the link is too long or holds control characters")
