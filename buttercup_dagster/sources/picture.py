"""A tree as an archive describes it, in memory: every judgement about names is made here.

The disk is never asked. So what another process does there, and what a link would make of a name,
has no bearing on what is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from buttercup_dagster.sources.tar import ArchiveError, Kind, Member

MOST_COMPONENT_BYTES: Final = 255
MOST_PATH_BYTES: Final = 4095  # PATH_MAX of Linux, without the closing NUL
MOST_DEPTH: Final = 256
MOST_HOPS: Final = 40  # as many links as Linux follows in one path
MOST_LINK_STEPS: Final = 20_000_000
"""Path components looked at for all links of an archive together."""

_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")

Refusal = Callable[[str, str], ArchiveError]
"""Makes the error for a code and a text; it knows the entry."""


def clean_name(name: bytes, refuse: Refusal, *, what: str = "name") -> bytes:
    """The name of an entry with '.' and empty components taken out; empty for the root itself.

    Raises:
        ArchiveError: the name is empty, absolute, climbs, holds control characters, is too long
            or too deep.
    """
    if not name:
        raise refuse("empty_name", f"the {what} is empty")
    if name.startswith(b"/"):
        raise refuse("absolute_name", f"the {what} is absolute")
    if _CONTROL.search(name):
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
    """Which names there are, and what each one is."""

    def __init__(self) -> None:
        self._kinds: dict[bytes, Kind] = {b"": Kind.DIRECTORY}
        self._stated: dict[bytes, tuple[int, int]] = {}
        self._links: dict[bytes, bytes] = {}
        self._steps = 0

    def __len__(self) -> int:
        return len(self._kinds) - 1

    def add(self, path: bytes, member: Member, refuse: Refusal) -> list[bytes]:
        """Add an entry.

        Args:
            path: its clean name.
            member: what the archive says about it.
            refuse: makes errors.

        Returns:
            The directories that appear with it, outermost first: parents that the archive has
            not stated before, and the entry itself if it is a new directory.

        Raises:
            ArchiveError: the name is taken, or lies below something that is no directory.
        """
        new = list(self._missing_parents(path, refuse))
        new.reverse()
        known = self._kinds.get(path)
        if member.kind is Kind.DIRECTORY:
            if known is None:
                new.append(path)
            elif known is not Kind.DIRECTORY:
                raise refuse("clash", f"the name is a {known.value} earlier in the archive")
            statement = (member.mode, member.mtime)
            if path and self._stated.setdefault(path, statement) != statement:
                raise refuse("duplicate", "the directory stands twice, with different attributes")
        elif known is Kind.DIRECTORY:
            raise refuse("clash", "the name is a directory earlier in the archive")
        elif known is not None:
            raise refuse("duplicate", "the name stands twice in the archive")
        for parent in new:
            self._kinds[parent] = Kind.DIRECTORY
        self._kinds[path] = member.kind
        if member.link:
            self._links[path] = member.link
        return new

    def _missing_parents(self, path: bytes, refuse: Refusal) -> Iterator[bytes]:
        while path:
            path = path.rpartition(b"/")[0]
            kind = self._kinds.get(path)
            if kind is Kind.DIRECTORY:
                return
            if kind is Kind.SYMLINK:
                raise refuse("below_symlink", "the entry lies below a symbolic link")
            if kind is not None:
                raise refuse("clash", f"the entry lies below a {kind.value}")
            yield path

    def hardlink_target(self, path: bytes, refuse: Refusal) -> bytes:
        """The regular file of this archive that a hard link is another name of.

        Raises:
            ArchiveError: there is no such file.
        """
        target = path
        for _ in range(MOST_HOPS):
            target = clean_name(self._links[target], refuse, what="target of the hard link")
            kind = self._kinds.get(target)
            if kind is Kind.FILE:
                return target
            if kind is not Kind.HARDLINK or target == path:
                break
        raise refuse("hardlink_target", "the hard link is not to a regular file of the archive")

    def leads_out(self, path: bytes, refuse: Refusal) -> bool:
        """Whether a symbolic link leads, or may be made to lead, out of the tree.

        A link to nothing inside the tree and a plain circle of links do not.

        Raises:
            ArchiveError: all links together are too much work.
        """
        here = path.split(b"/")[:-1]
        ahead = self._split(self._links[path])
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
            if self._kinds.get(reached) is Kind.SYMLINK:
                state = (reached, tuple(ahead))
                if state in states:
                    return False
                states.add(state)
                hops += 1
                further = self._split(self._links[reached])
                if hops > MOST_HOPS or further is None:
                    return True
                here.pop()
                ahead += further
                self._steps += len(ahead)
        return False

    @staticmethod
    def _split(text: bytes) -> list[bytes] | None:
        """The components of a link, the next one last; None for an absolute link."""
        if text.startswith(b"/"):
            return None
        return [part for part in reversed(text.split(b"/")) if part not in {b"", b"."}]
