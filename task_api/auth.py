"""HTTP Basic authentication with one key: a UUID as user name, a random token as password.

Only the token's Argon2id hash is needed to check it. Where no key is configured one is made and
kept in the file `credentials` of the home folder, so that the server is never open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import stat
import string
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dotenv import dotenv_values

from task_api.task import ButtercupError, normalize_uuid

if TYPE_CHECKING:
    from task_api.settings import TaskServerSettings

TOKEN_CHARACTERS: Final = 40
"""Length of a token that is made here; the CRS API asks for 32 alphanumerics at least."""

LEAST_HASH_BYTES: Final = 16
"""A shorter digest has lost its end: RFC 9106 recommends 16 bytes at least, tools write 32."""

REMEMBERED_SECONDS: Final = 300.0
"""So long after its last use a verified key is remembered; senders ask for the status every minute,
and have to be remembered until they do."""

CREDENTIALS: Final = "credentials"
KEY_ID_NAME: Final = "BUTTERCUP_API_KEY_ID"
TOKEN_NAME: Final = "BUTTERCUP_API_TOKEN"  # noqa: S105 - a name, not a token
SERVER_KEY_ID_NAME: Final = "BUTTERCUP_TASK_SERVER_API_KEY_ID"
SERVER_HASH_NAME: Final = "BUTTERCUP_TASK_SERVER_API_TOKEN_HASH"


class KeyUnusable(ButtercupError):
    """The configured or stored key cannot be used; the text says what to do."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What the server knows of its key.

    Attributes:
        key_id: UUID, lower-case.
        token_hash: Argon2id hash of the token, in the PHC string format.
    """

    key_id: str
    token_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ResolvedKey:
    """The key to serve with, and where it comes from.

    Attributes:
        key: the key.
        path: the credentials file, or None where the key is configured.
        made: whether that file was written just now.
        warning: what is wrong with the file's permissions, or None.
    """

    key: ApiKey
    path: Path | None = None
    made: bool = False
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key with its token, as the credentials file holds it.

    Attributes:
        key_id: UUID, lower-case.
        token: what a sender presents as password.
        token_hash: its Argon2id hash, in the PHC string format.
    """

    key_id: str
    token: str = field(repr=False)
    token_hash: str = field(repr=False)

    def lines(self) -> str:
        """One variable a line, quoted so that a shell and `.env` keep the `$` signs."""
        return (
            f"{KEY_ID_NAME}='{self.key_id}'\n"
            f"{TOKEN_NAME}='{self.token}'\n"
            f"{SERVER_KEY_ID_NAME}='{self.key_id}'\n"
            f"{SERVER_HASH_NAME}='{self.token_hash}'\n"
        )


class KeyVerifier:
    """Compares what a sender presents with the key.

    What was right is remembered for `REMEMBERED_SECONDS` after its last use, as a digest under a
    random key of this process, never as a token; so a sender who has shown the key does not wait
    behind others who guess. What was wrong is not remembered. Another key may take the key's place
    at any time (`use`), or none (`refuse`); with the old key goes what was remembered of it. May
    be shared by threads.

    Attributes:
        problem: why there is no key, and nobody is let in; None while there is one.
    """

    def __init__(self, key: ApiKey) -> None:
        """Check that the hash can be verified against.

        Raises:
            KeyUnusable: it is not an Argon2id hash.
        """
        self.problem: str | None = None
        self._held: _HeldKey | None = _HeldKey(key)

    def use(self, key: ApiKey) -> None:
        """Let this key in, and no other any more.

        Raises:
            KeyUnusable: it is not an Argon2id hash; nothing is changed.
        """
        self._held = _HeldKey(key)
        self.problem = None

    def refuse(self, problem: str) -> None:
        """Let nobody in."""
        self._held = None
        self.problem = problem

    def remembers(self, key_id: str, token: str) -> bool:
        """Whether this id and token were verified lately; takes microseconds.

        False says nothing about them: ask `check`.
        """
        held = self._held
        return held is not None and held.remembers(key_id, token)

    def check(self, key_id: str, token: str) -> bool:
        """Whether they are the key's: `remembers`, else `verify`.

        Of many who come at once with the key, the first is verified, and the others are remembered
        when they have waited for their turn.
        """
        return self.remembers(key_id, token) or self.verify(key_id, token)

    def verify(self, key_id: str, token: str) -> bool:
        """Whether this id and token are the key's; if so, they are remembered.

        Takes some tens of milliseconds and as much memory as the hash asks for (64 MiB by
        default), with an unknown id too, so that the time tells nothing about ids.
        """
        held = self._held
        # A key that was replaced meanwhile lets nobody in any more.
        return held is not None and held.verify(key_id, token) and held is self._held


class _HeldKey:
    """One key, and what is remembered of it."""

    def __init__(self, key: ApiKey) -> None:
        from argon2 import PasswordHasher  # noqa: PLC0415 - loads a shared library

        self._key_id = key.key_id.encode()
        self._hash = key.token_hash
        self._hasher = PasswordHasher()
        self._digest_key = secrets.token_bytes(32)
        self._remembered: tuple[bytes, float] = (b"", 0.0)
        _check_hash(key.token_hash)

    def remembers(self, key_id: str, token: str) -> bool:
        digest, until = self._remembered
        now = time.monotonic()
        if now >= until or not hmac.compare_digest(self._digest(key_id, token), digest):
            return False
        self._remembered = (digest, now + REMEMBERED_SECONDS)
        return True

    def verify(self, key_id: str, token: str) -> bool:
        from argon2.exceptions import VerificationError  # noqa: PLC0415

        known = hmac.compare_digest(key_id.lower().encode("utf-8", "replace"), self._key_id)
        try:
            self._hasher.verify(self._hash, token.encode("utf-8", "surrogateescape"))
        except VerificationError:
            return False
        if known:
            until = time.monotonic() + REMEMBERED_SECONDS
            self._remembered = (self._digest(key_id, token), until)
        return known

    def _digest(self, key_id: str, token: str) -> bytes:
        # An id holds no colon, so no other id and token give the same text.
        text = f"{key_id.lower()}:{token}".encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, key=self._digest_key).digest()


def resolve_key(settings: TaskServerSettings) -> ResolvedKey:
    """The configured key, else the one in the credentials file, which is made if there is none.

    Several processes may call this at the same time and get the same key.

    Raises:
        KeyUnusable: the hash is malformed, or the file cannot be found, read, written or
            understood.
    """
    if settings.api_key_id is not None and settings.api_token_hash is not None:
        _check_hash(settings.api_token_hash)
        return ResolvedKey(ApiKey(settings.api_key_id, settings.api_token_hash))
    return key_in_file(settings.home / CREDENTIALS)


def key_in_file(path: Path, *, make_folder: bool = True) -> ResolvedKey:
    """The key in this credentials file, which is made if there is none.

    Args:
        path: the file.
        make_folder: whether its folder is made, too.

    Raises:
        KeyUnusable: as for `resolve_key`.
    """
    made = not _exists(path) and _make(path, make_folder=make_folder)
    key, warning = _read(path)
    return ResolvedKey(key, path, made, warning)


def make_token() -> str:
    """A new random token."""
    alphabet = string.ascii_letters + string.digits
    return "".join(secrets.choice(alphabet) for _ in range(TOKEN_CHARACTERS))


def hash_token(token: str) -> str:
    """The Argon2id hash of a token, in the PHC string format."""
    from argon2 import PasswordHasher  # noqa: PLC0415

    return PasswordHasher().hash(token)


def make_credentials() -> Credentials:
    """A new key; takes some tens of milliseconds."""
    token = make_token()
    return Credentials(str(uuid.uuid4()), token, hash_token(token))


def read_credentials(path: Path) -> Credentials:
    """The key in a credentials file, with its token.

    Raises:
        KeyUnusable: the file cannot be read or understood, or holds no token.
    """
    key, _ = _read(path)
    values, _ = _content(path)
    token = values.get(TOKEN_NAME)
    if not token:
        raise KeyUnusable(f"{path} holds no {TOKEN_NAME}; remove the file to get a new key")
    return Credentials(key.key_id, token, key.token_hash)


def basic_credentials(header: str | None) -> tuple[str, str] | None:
    """User name and password of an `Authorization` header, or None where it holds none.

    The user name ends at the first colon, so a password may hold colons (RFC 7617, section 2).
    """
    scheme, _, encoded = (header or "").strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    name, colon, password = decoded.partition(":")
    return (name, password) if colon else None


def _check_hash(token_hash: str) -> None:
    from argon2 import PasswordHasher, Type, extract_parameters  # noqa: PLC0415
    from argon2.exceptions import (  # noqa: PLC0415
        InvalidHashError,
        VerificationError,
        VerifyMismatchError,
    )

    advice = (
        "make a key with `buttercup auth new`, and put the hash in single quotes: shells and .env "
        "files replace what follows a $"
    )
    if not token_hash.startswith("$argon2id$"):
        raise KeyUnusable(
            f"{SERVER_HASH_NAME} is not an Argon2id hash, which begins with $argon2id$; {advice}"
        )
    try:
        parameters = extract_parameters(token_hash)
        if parameters.type is not Type.ID or parameters.hash_len < LEAST_HASH_BYTES:
            raise KeyUnusable(f"{SERVER_HASH_NAME} is cut or malformed; {advice}")
        # Reads salt and digest too: a hash that lost its end would otherwise match nothing.
        PasswordHasher().verify(token_hash, "")
    except VerifyMismatchError:
        return
    except (InvalidHashError, VerificationError, ValueError) as error:
        raise KeyUnusable(f"{SERVER_HASH_NAME} is cut or malformed; {advice}") from error
    raise KeyUnusable(f"{SERVER_HASH_NAME} is the hash of an empty token; make another key")


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise KeyUnusable(
            f"{path} cannot be looked for: {error.strerror}; let the user who runs the server into "
            "the folders on the way, choose another home folder with BUTTERCUP_HOME, or set "
            f"{SERVER_KEY_ID_NAME} and {SERVER_HASH_NAME}"
        ) from error
    return True


def _make(path: Path, *, make_folder: bool) -> bool:
    """Write a new key to `path` unless there is one by then.

    Returns:
        Whether it was written here.
    """
    text = (
        "# The key of this task server. Senders present the id as user name and the token as\n"
        "# password; the server itself reads only the hash.\n" + make_credentials().lines()
    )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        if make_folder:
            # Consumers may read the tasks in it as another user; this file they may not.
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # A link never replaces: of several servers that start at once, one is first.
            os.link(draft, path)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise KeyUnusable(
            f"no key is configured and none can be written to {path}: {error.strerror}; make the "
            f"folder writable, or set {SERVER_KEY_ID_NAME} and {SERVER_HASH_NAME}"
        ) from error
    return True


def _read(path: Path) -> tuple[ApiKey, str | None]:
    values, mode = _content(path)
    key_id = values.get(SERVER_KEY_ID_NAME) or values.get(KEY_ID_NAME)
    token_hash = values.get(SERVER_HASH_NAME)
    if not key_id or not token_hash:
        raise KeyUnusable(
            f"{path} lacks {KEY_ID_NAME} or {SERVER_HASH_NAME}; remove the file to get a new key"
        )
    try:
        key = ApiKey(normalize_uuid(key_id), token_hash)
        _check_hash(token_hash)
    except (ValueError, KeyUnusable) as error:
        raise KeyUnusable(f"the key in {path} is damaged ({error}); remove the file") from error
    warning = None
    if mode & 0o077:
        warning = f"{path} can be read by other users (mode {mode:04o}); run: chmod 600 {path}"
    return key, warning


def _content(path: Path) -> tuple[dict[str, str | None], int]:
    """The variables in a credentials file, and its permissions."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        with path.open(encoding="utf-8") as file:
            return dotenv_values(stream=file, interpolate=False), mode
    except (OSError, UnicodeDecodeError) as error:
        detail = error.strerror if isinstance(error, OSError) else "it is not text"
        raise KeyUnusable(
            f"the key in {path} cannot be read: {detail}; make the file readable for the user "
            "who runs the server, or remove it to get a new key"
        ) from error
