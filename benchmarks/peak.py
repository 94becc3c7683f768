"""How much memory one archive takes: fetched and unpacked once, in a process of its own.

`python -m benchmarks.peak URL SHA256 FOLDER` prints what it took as JSON.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.inputs import ROOT
from benchmarks.programs import Failed, run
from buttercup_dagster.sources.archive import unpack
from buttercup_dagster.sources.store import Store
from task_api.task import Source, SourceType


@dataclass(frozen=True, slots=True)
class Peaks:
    """The most memory that was resident at one time, in bytes.

    Attributes:
        child: of the process that unpacks; 0 if the engine did not tell.
        parent: of the process that fetches, verifies, and has unpacked.
    """

    child: int
    parent: int

    @classmethod
    def worst(cls, several: Sequence[Peaks]) -> Self:
        """The highest of each; a child's is unknown if one is."""
        children = [peaks.child for peaks in several]
        return cls(max(children) if all(children) else 0, max(peaks.parent for peaks in several))


def measure(url: str, sha256: str, folder: Path) -> Peaks:
    """Fetch and unpack an archive in a new process.

    Args:
        url: where it is.
        sha256: its digest.
        folder: an empty one.

    Raises:
        Failed: that process failed.
    """
    text = run([sys.executable, "-m", "benchmarks.peak", url, sha256, folder], cwd=ROOT)
    try:
        return Peaks(**json.loads(text))
    except (TypeError, ValueError):
        raise Failed(f"the measuring process printed no result but {text!r}") from None


def main(url: str, sha256: str, folder: Path) -> None:
    """Do it in this process, and print the peaks."""
    children: list[int] = []
    obtained = Store(folder / "store").obtain(Source(SourceType.REPO, sha256, (url,)))
    reporting: Any = unpack
    reporting(
        obtained.path,
        folder / "tree",
        sha256=sha256,
        on_usage=lambda usage: children.append(usage.peak_bytes),
    )
    # The kernel counts VmHWM for this program alone; ru_maxrss would begin with that of whoever
    # started it.
    status = Path("/proc/self/status").read_text("ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    parent = int(found[1]) * 1024 if found else 0
    print(json.dumps(asdict(Peaks(max(children, default=0), parent))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
