"""The machine that was measured on, in words."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

from benchmarks.ground import file_system
from benchmarks.programs import run


def describe(memory: Path, disk: Path) -> dict[str, str]:
    """What numbers depend on.

    Args:
        memory: the memory-backed disk.
        disk: the ordinary disk.
    """
    return describe_machine() | {
        "disks": f"{file_system(memory)} as memory, {file_system(disk)} as the ordinary disk",
        "programs": ", ".join(
            f"{name} {_version(name)}" for name in ("tar", "gzip", "curl", "sha256sum")
        ),
    }


def describe_machine() -> dict[str, str]:
    """What all numbers depend on: the machine, its kernel, and Python."""
    total = _first(r"^MemTotal:\s+(\d+)", "/proc/meminfo")
    memory_text = f"{int(total) / 1024**2:.0f} GiB of memory" if total else "unknown memory"
    processor = _first(r"^model name\s*: (.+)$", "/proc/cpuinfo") or platform.machine()
    return {
        "machine": f"{processor}, {len(os.sched_getaffinity(0))} cores, {memory_text}",
        "kernel": f"{platform.system()} {platform.release()}, load {os.getloadavg()[0]:.1f}",
        "python": f"{platform.python_implementation()} {platform.python_version()}{_isal()}",
    }


def _first(pattern: str, file: str) -> str:
    try:
        found = re.search(pattern, Path(file).read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _isal() -> str:
    try:
        return f", isal {metadata.version('isal')}"
    except metadata.PackageNotFoundError:
        return ""


def _version(program: str) -> str:
    first = run([program, "--version"]).partition("\n")[0]
    found = re.search(r"\d+(\.\d+)+", first)
    return found[0] if found else "?"
