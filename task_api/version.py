"""The version that `/status/` reports."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import task_api

GIT_SECONDS: Final = 2.0


def version_text() -> str:
    """The package's version; in a checkout, with the commit behind it: `0.1.0+g0123456789ab`.

    Runs git, which may take up to `GIT_SECONDS`: call it in a thread, and once.
    """
    commit = _commit(Path(task_api.__file__).parents[1])
    return f"{task_api.__version__}+g{commit}" if commit else task_api.__version__


def _commit(root: Path) -> str | None:
    # An installed package may lie inside somebody else's checkout.
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
