#!/usr/bin/env python3
"""Checks that a project in this tooling folder has what OSS-Fuzz builds it from.

`helper.py check PROJECT` prints what is missing and ends with status 1, or ends with status 0.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

PROJECTS = Path(__file__).resolve().parents[1] / "projects"
FILES = ("project.yaml", "Dockerfile", "build.sh")
KEYS = ("language", "main_repo")


def missing(project: Path) -> list[str]:
    """What the folder of a project lacks, one sentence each."""
    if not project.is_dir():
        known = ", ".join(sorted(path.name for path in PROJECTS.iterdir()))
        return [f"there is no project {project.name}; there are: {known}"]
    found = [f"{name} is missing" for name in FILES if not (project / name).is_file()]
    if not found:
        lines = (project / "project.yaml").read_text("utf-8").splitlines()
        keys = {line.partition(":")[0] for line in lines if ":" in line}
        found += [f"project.yaml does not say {key}" for key in KEYS if key not in keys]
        if not os.access(project / "build.sh", os.X_OK):
            found.append("build.sh is not executable")
    return found


def main() -> int:
    """Check one project."""
    parser = argparse.ArgumentParser(description="Check a project of this tooling folder.")
    parser.add_argument("command", choices=["check"])
    parser.add_argument("project")
    arguments = parser.parse_args()
    problems = missing(PROJECTS / arguments.project)
    for problem in problems:
        print(f"{arguments.project}: {problem}", file=sys.stderr)  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
