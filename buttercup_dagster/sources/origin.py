"""Where the bytes of an unfinished download come from, kept beside them for a later call."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from buttercup_dagster.sources.errors import storing
from task_api.task import is_digest, safe_url

_MOST_BYTES: Final = 16_384
_VALIDATOR: Final = re.compile(r"[\x20-\x7e]{0,1024}\Z")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the first bytes of an archive came from, so that the rest can be asked for.

    Attributes:
        url_sha256: digest of the URL without its query, user name and password.
        validator: strong ETag or Last-Modified of the file there; empty for none.
        total: its size in bytes; None if the server did not say.
    """

    url_sha256: str
    validator: str
    total: int | None

    @classmethod
    def of(cls, url: str, validator: str, total: int | None) -> Self:
        """The origin at a URL. A validator that may not be sent back counts as none."""
        # A field of a request must not hold what ends a line.
        fit = validator if _VALIDATOR.match(validator) else ""
        return cls(hashlib.sha256(safe_url(url).encode()).hexdigest(), fit, total)

    def is_at(self, url: str) -> bool:
        """Whether this is the origin at a URL, however it is signed."""
        return self.url_sha256 == self.of(url, "", None).url_sha256

    def write(self, path: Path) -> None:
        """Write it to a file that only its owner may read.

        Raises:
            StorageError: it cannot be written.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with storing("cannot write the file", path):
            handle = os.open(path, flags, 0o600)
            try:
                os.write(handle, json.dumps(asdict(self)).encode())
            finally:
                os.close(handle)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What `write` wrote; None if it is missing, cut off or not of that form."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found: Any = json.loads(os.read(handle, _MOST_BYTES))
            finally:
                os.close(handle)
            url_sha256, validator, total = (found[name] for name in cls.__slots__)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        fits = (
            isinstance(url_sha256, str)
            and is_digest(url_sha256)
            and isinstance(validator, str)
            and _VALIDATOR.match(validator)
            and (total is None or (type(total) is int and total >= 0))
        )
        return cls(url_sha256, validator, total) if fits else None
