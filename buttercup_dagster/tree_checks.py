"""What is worth a warning in a prepared task; nothing here keeps it from its consumers.

Consumers find out for themselves that a tree is odd, but late. Each check looks at the folder only;
what a sender put into it is never executed, and never configures anything.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from task_api.task import printable

MOST_DIFF_BYTES: Final = 64 * 1024 * 1024
APPLY_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        passed: whether there is nothing to warn about.
        text: what was found, one line for people.
    """

    passed: bool
    text: str


def focus_present(folder: Path, focus: str) -> Finding:
    """Whether the focus folder is in the repo."""
    if (folder / "src" / focus).is_dir():
        return Finding(True, f"src/{printable(focus)} is there")
    names = ", ".join(printable(name, limit=40) for name in _names(folder / "src")[:5]) or "nothing"
    return Finding(
        False,
        f"src/{printable(focus)} is not in the repo archive (it has {names}); check the task's "
        "focus",
    )


def tooling_complete(folder: Path, project_name: str) -> Finding:
    """Whether the tooling has OSS-Fuzz's helper and the task's project."""
    tooling = _only_folder(folder / "fuzz-tooling")
    if tooling is None:
        return Finding(True, "not applicable: the task has no fuzz tooling")
    missing = [
        name
        for name in ("infra/helper.py", f"projects/{project_name}/project.yaml")
        if not (tooling / name).is_file()
    ]
    if missing:
        return Finding(False, f"the fuzz tooling lacks {', '.join(missing)}")
    return Finding(True, f"the fuzz tooling has projects/{project_name}")


def diff_applies(folder: Path, focus: str) -> Finding:
    """Whether each diff applies to the focus folder, as `git apply --check` sees it."""
    home = _only_folder(folder / "diff")
    if home is None:
        return Finding(True, "not applicable: the task has no diff")
    diffs = sorted(
        path
        for path in home.rglob("*")
        if path.suffix in {".diff", ".patch"} and path.is_file() and not path.is_symlink()
    )
    if not diffs:
        return Finding(False, "the diff archive has no .diff or .patch file")
    target = folder / "src" / focus
    if not target.is_dir():
        return Finding(False, "there is no focus folder to apply the diff to")
    for diff in diffs:
        name = printable(str(diff.relative_to(home)))
        if diff.stat().st_size > MOST_DIFF_BYTES:
            return Finding(True, f"not checked: {name} is larger than {MOST_DIFF_BYTES} bytes")
        finding = _applies(diff, target, name)
        if not finding.passed or finding.text:
            return finding
    return Finding(True, f"{len(diffs)} diff{'s' if len(diffs) > 1 else ''} applied cleanly")


def _applies(diff: Path, target: Path, name: str) -> Finding:
    with tempfile.TemporaryDirectory(prefix="buttercup-git-") as empty:
        try:
            done = subprocess.run(
                ["git", "apply", "--check", "-p1", "--", str(diff)],
                cwd=target,
                env=_git_environment(Path(empty)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=APPLY_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            return Finding(True, "not checked: git is not installed")
        except subprocess.TimeoutExpired:
            return Finding(True, f"not checked: {name} took longer than {APPLY_SECONDS:.0f} s")
    if done.returncode == 0:
        return Finding(True, "")
    lines = done.stderr.decode("utf-8", "replace").splitlines() or ["no reason given"]
    return Finding(False, f"{name} does not apply: {printable(lines[0], limit=300)}")


def _git_environment(empty: Path) -> Mapping[str, str]:
    """An environment in which git finds neither a repository nor any configuration.

    A source may ship a `.git` folder of its own, whose configuration can name programs to run.
    With GIT_DIR naming no repository, git looks for none and works on plain files.
    """
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(empty),
        "XDG_CONFIG_HOME": str(empty),
        "LC_ALL": "C",
        "GIT_DIR": str(empty / "none"),
        "GIT_CEILING_DIRECTORIES": "/",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
    }


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def _only_folder(folder: Path) -> Path | None:
    """The one top-level folder that consumers read, or None."""
    names = _names(folder)
    return folder / names[0] if names else None


Check = Callable[[Path], Finding]


def checks_of(project_name: str, focus: str) -> Mapping[str, Check]:
    """The checks of a task by name.

    Args:
        project_name: of the task.
        focus: of the task.
    """
    return {
        "focus_present": lambda folder: focus_present(folder, focus),
        "tooling_complete": lambda folder: tooling_complete(folder, project_name),
        "diff_applies": lambda folder: diff_applies(folder, focus),
    }
