"""Every case that the engine has to hold against is a test that bears its name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CASES = {"A": 15, "B": 20, "C": 12, "D": 20, "E": 9, "F": 29, "G": 13}
"""How many cases there are: of names, links, types, framing, exhaustion, transport, the store."""

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def test_each_case_is_in_the_id_of_a_test() -> None:
    environment = {key: text for key, text in os.environ.items() if key != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", HERE],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ids = re.findall(r"::\w+\[(.+)\]$", done.stdout, re.MULTILINE)
    named = {part for brackets in ids for part in brackets.split("-")}
    wanted = [f"{letter}{n}" for letter, last in CASES.items() for n in range(1, last + 1)]
    assert len(wanted) == 118
    assert [one for one in wanted if one not in named] == []
