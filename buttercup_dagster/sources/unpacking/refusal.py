"""Why an archive is not unpacked, as the process that reads it knows it."""

from __future__ import annotations


class Refusal(Exception):
    """The archive is refused.

    Attributes:
        code: short snake_case word for programs.
        text: the reason, for people.
        number: which entry of the archive, counted from 1; 0 for the archive as a whole.
        offset: byte of the unpacked stream at which the entry begins.
        name: its raw name; empty if it has none yet.
    """

    def __init__(
        self, code: str, text: str, number: int = 0, offset: int = 0, name: bytes = b""
    ) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.number = number
        self.offset = offset
        self.name = name


class DiskFailure(Exception):
    """The disk failed or is full.

    Attributes:
        what: what was being done.
        errno: what the system said.
    """

    def __init__(self, what: str, error: OSError) -> None:
        super().__init__(f"{what}: {error.strerror}")
        self.what = what
        self.errno = error.errno or 0
