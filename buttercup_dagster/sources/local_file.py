"""Opening the file that a file:// URL names, and nothing else."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from buttercup_dagster.sources.errors import Blocked, SpecError
from buttercup_dagster.sources.options import MEBIBYTE, FetchPolicy
from task_api.task import safe_url, split_url


def open_local_file(url: str, policy: FetchPolicy) -> int:
    """Open the regular file that a file:// URL names, if the policy allows it.

    Returns:
        A descriptor for reading.

    Raises:
        Blocked: file:// is not allowed, or the file lies outside of the allowed folders.
        SpecError: it is missing, unreadable or no regular file.
    """
    shown = safe_url(url)
    if not policy.allow_file:
        raise Blocked(f"{shown}: file:// URLs are not allowed here", code="blocked_file")
    parts = split_url(url)
    if parts is None or parts.netloc not in {"", "localhost"} or parts.query or parts.fragment:
        raise SpecError(f"{shown} must be of the form file:///folder/name.tar.gz")
    try:
        path = Path(unquote(parts.path, errors="surrogateescape")).resolve(strict=True)
        roots = [root.resolve() for root in policy.file_roots]
        # Judged before it is opened too: opening a device can have effects.
        _check_below(path, roots, shown)
        if not stat.S_ISREG(path.lstat().st_mode):
            raise SpecError(f"{shown} is not a regular file", code="file_type")
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(shown, error) from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise SpecError(f"{shown} is not a regular file", code="file_type")  # noqa: TRY301
        # A folder on the way may have been swapped since; ask the kernel what was opened.
        opened = Path(f"/proc/self/fd/{handle}")
        if opened.is_symlink():
            _check_below(opened.readlink(), roots, shown)
    except BaseException:
        os.close(handle)
        raise
    return handle


def read_local_file(handle: int, shown: str) -> Iterator[bytes]:
    """The bytes of an open file, at most 1 MiB at a time.

    Args:
        handle: what `open_local_file` returned.
        shown: the URL, for messages.

    Raises:
        SpecError: it is empty, cannot be read, or has not the size that it had at the beginning.
    """
    size = os.fstat(handle).st_size
    if size == 0:
        # As most files of /proc say of themselves; reading some of those has effects.
        raise SpecError(f"{shown} is an empty file", code="file_empty")
    seen = 0
    while True:
        try:
            data = os.read(handle, MEBIBYTE)
        except OSError as error:
            raise _unreadable(shown, error) from None
        seen += len(data)
        if seen > size or (not data and seen < size):
            raise SpecError(
                f"{shown} changed its size while it was read; give a finished file",
                code="file_changed",
            )
        if not data:
            return
        yield data


def _check_below(path: Path, roots: Sequence[Path], shown: str) -> None:
    if roots and not any(path.is_relative_to(root) for root in roots):
        raise Blocked(
            f"{shown} lies outside of the folders that files may come from", code="blocked_file"
        )


def _unreadable(shown: str, error: Exception) -> SpecError:
    reason = getattr(error, "strerror", None) or "not a valid path"
    return SpecError(f"{shown} cannot be read: {reason}", code="file_unreadable")
