"""Keeps the server to the key in its credentials file, which may be replaced at any time."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from task_api.auth import ApiKey, KeyUnusable, KeyVerifier, ResolvedKey, key_in_file

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""Pause between two looks: a key that was taken out of the file is refused so soon."""


class KeyWatch:
    """Reads the credentials file again and again, in a thread, and tells a verifier of changes.

    A file that was removed is made anew, with a new key, as at the start of the server; its folder
    is not. While the file cannot be read or understood nobody is let in: whoever damaged it may
    have meant to revoke the key. A key from the settings is not watched: it is that of the whole
    life of the process.

    Args:
        path: the credentials file.
        key: the key that was found in it, with which the verifier was made.
        verifier: what is told.
    """

    def __init__(self, path: Path, key: ApiKey, verifier: KeyVerifier) -> None:
        self._path = path
        self._key: ApiKey | None = key
        self._verifier = verifier
        self._seen: bytes | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="key-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking; does not wait for a disk that hangs."""
        self._stop.set()

    def look(self) -> None:
        """Compare the file with what was seen of it last, and act on a change."""
        # The text and not the times of the file: it may change twice within their resolution.
        seen = self._text()
        if seen is not None and seen == self._seen:
            return
        try:
            found = self._found()
            if found.key != self._key:
                self._verifier.use(found.key)
        except KeyUnusable as error:
            self._refuse(str(error))
        else:
            if found.key != self._key:
                self._tell(made=found.made, key=found.key)
                self._key = found.key
            if found.warning:
                log.warning("%s", found.warning)
            self._seen = seen

    def _found(self) -> ResolvedKey:
        # What keeps everybody from looking at the folder is told with the file.
        with suppress(PermissionError):
            if not self._path.parent.is_dir():
                raise KeyUnusable(
                    f"{self._path.parent} is gone; put it back, or restart the server"
                )
        return key_in_file(self._path, make_folder=False)

    def _refuse(self, problem: str) -> None:
        if self._verifier.problem != problem:
            log.error("%s; until then every request is refused", problem)
        self._verifier.refuse(problem)
        # The next look is a whole one: what was wrong may be over though the file stays the same.
        self._key = self._seen = None

    def _tell(self, *, made: bool, key: ApiKey) -> None:
        what = "was gone; made a new key" if made else "holds another key; using that"
        log.warning("%s %s (id %s) and refusing the old one", self._path, what, key.key_id)

    def _text(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except OSError:
            return None

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:
                log.debug("a look at %s failed", self._path, exc_info=True)
                self._refuse(f"{self._path} cannot be watched ({type(error).__name__})")
