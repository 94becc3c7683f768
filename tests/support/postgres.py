"""A PostgreSQL server for the tests; where none is installed, they are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks import postgres
from benchmarks.postgres import Database


@contextmanager
def database() -> Iterator[Database]:
    """An empty database of the test's own."""
    programs = postgres.programs()
    if programs is None:
        pytest.skip("needs PostgreSQL")
    with postgres.database(programs) as made:
        yield made
