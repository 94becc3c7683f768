"""How the commands of the benchmarks end, and what they tell meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from benchmarks.programs import Failed, Missing
from buttercup_dagster.cli.signals import INTERRUPTED, ended_by_signals
from buttercup_dagster.local.errors import LocalError
from buttercup_dagster.sources.errors import SourceError

DONE: Final = 0
MISSED: Final = 1
NOT_MEASURED: Final = 2


def run(name: str, measure: Callable[[], int]) -> int:
    """Measure, and say in a line why that did not come to its end.

    Args:
        name: of the command.
        measure: returns the status to exit with.

    Returns:
        The status to exit with.
    """
    try:
        with ended_by_signals():
            return measure()
    except (Missing, LocalError) as error:
        note(f"{name}: {error}")
        return NOT_MEASURED
    except (Failed, SourceError) as error:
        note(f"{name}: {error}")
        return MISSED
    except KeyboardInterrupt:
        note(f"{name}: interrupted; nothing is left")
        return INTERRUPTED


def note(text: str) -> None:
    """Tell whoever waits; not a part of the results."""
    print(text, file=sys.stderr, flush=True)
