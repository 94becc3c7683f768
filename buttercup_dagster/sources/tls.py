"""What certificates are verified with: the authorities of this machine, read once in a process.

Reading them takes about 20 ms of processor time, more than a small archive does otherwise.
"""

from __future__ import annotations

import ssl
from functools import lru_cache
from pathlib import Path

from urllib3.util.ssl_ import create_urllib3_context


def tls_context() -> ssl.SSLContext:
    """The context of all TLS connections; made anew when the authorities' file has changed."""
    paths = ssl.get_default_verify_paths()
    return _made_from(paths.cafile, _version(paths.cafile), paths.capath)


def _version(path: str | None) -> tuple[int, ...]:
    """What is another one when a file was replaced or written to."""
    try:
        status = Path(path or "").stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1)
def _made_from(_file: str | None, _version: tuple[int, ...], _folder: str | None) -> ssl.SSLContext:
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    context.load_default_certs()
    return context
