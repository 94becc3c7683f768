"""Names of the cases that the engine has to hold against, as parts of test ids."""

from __future__ import annotations

import pytest


def case(*ids: str) -> pytest.MarkDecorator:
    """Put these case ids into the id of a test; the test takes `case`."""
    return pytest.mark.parametrize("case", ids)
