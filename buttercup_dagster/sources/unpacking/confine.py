"""Giving up, in the process that unpacks, all that it does not need.

Resource limits, no new privileges, an end with its parent, and where the kernel has it Landlock
(landlock(7), Linux 5.19 or newer): from then on the process can open nothing but what it makes in
its own folder, and no connection.
"""

from __future__ import annotations

import ctypes
import os
import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


_SIGKILL: Final = 9  # the module `signal` takes longer to import than all others here together
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_ABI_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_LEAST_ABI: Final = 2  # before it, a hard link into another folder was always refused

_WRITE_FILE: Final = 1 << 1
_MAKE_DIR: Final = 1 << 7
_MAKE_REG: Final = 1 << 8
_MAKE_SYM: Final = 1 << 12
_REFER: Final = 1 << 13
_FILE_SYSTEM: Final = {2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""By version of the interface: every right that it knows, all of which are then withheld."""

_NETWORK: Final = 0b11  # bind and connect, since version 4
_SCOPES: Final = 0b11  # abstract sockets and signals, since version 6


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("file_system", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def confine(
    folder: int, *, parent: int, most_file_bytes: int, most_memory_bytes: int, cpu_seconds: int
) -> bool:
    """Give up what is not needed to write into one folder.

    Args:
        folder: descriptor of the only folder in which anything may be made.
        parent: process id of the parent; this process ends with it.
        most_file_bytes: no file can grow beyond this.
        most_memory_bytes: of address space.
        cpu_seconds: of processor time.

    Returns:
        Whether Landlock is in force.
    """
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, most_file_bytes)
    _limit(resource.RLIMIT_AS, most_memory_bytes)
    _limit(resource.RLIMIT_CPU, cpu_seconds)
    library = ctypes.CDLL(None, use_errno=True)
    try:
        library.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        restricted = library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    except AttributeError:  # not Linux
        return False
    if os.getppid() != parent:  # it ended before the first request was made
        os._exit(1)
    return restricted and _landlock(library, folder)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(what, (most, most))


def _landlock(library: ctypes.CDLL, folder: int) -> bool:
    version: int = library.syscall(_CREATE_RULESET, None, 0, _ABI_VERSION)
    if version < _LEAST_ABI:
        return False
    wanted = _Ruleset(_FILE_SYSTEM[min(version, max(_FILE_SYSTEM))], _NETWORK, _SCOPES)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules: int = library.syscall(_CREATE_RULESET, ctypes.byref(wanted), size, 0)
    if rules < 0:
        return False
    try:
        allowed = _WRITE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER
        beneath = _PathBeneath(allowed, folder)
        added = library.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(beneath), 0)
        return added == 0 and bool(library.syscall(_RESTRICT_SELF, rules, 0) == 0)
    finally:
        os.close(rules)
