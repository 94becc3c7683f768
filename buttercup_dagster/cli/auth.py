"""`buttercup auth`: the key with which tasks are posted."""

from __future__ import annotations

import sys

from pydantic import BaseModel
from pydantic_settings import get_subcommand

from buttercup_dagster.cli.arguments import fail
from buttercup_dagster.cli.buttercup import PROGRAM, Auth, Commands, NewKey
from buttercup_dagster.cli.console import give_up
from task_api.auth import CREDENTIALS, Credentials, KeyUnusable, make_credentials, read_credentials


def run(settings: Commands, command: Auth) -> int:
    """Make a key, or show the one in the home folder.

    Returns:
        0.

    Raises:
        SystemExit: status 2, neither is asked for; status 1, there is no key to show.
    """
    chosen = get_subcommand(command, is_required=False, cli_exit_on_error=False)
    if not isinstance(chosen, BaseModel):
        fail(PROGRAM, f"auth: say new or show; see {PROGRAM} auth --help")
    if isinstance(chosen, NewKey):
        _print(make_credentials())
        _explain(
            "Nothing is stored yet. The lines are quoted for a shell and for .env; the task server "
            "needs those with TASK_SERVER in their names, a sender the other two."
        )
        return 0
    path = settings.home / CREDENTIALS
    if not path.exists():
        give_up(
            PROGRAM,
            f"there is no key in {path}; `buttercup up` and `buttercup-task-server` make one at "
            "their first start",
        )
    try:
        _print(read_credentials(path))
    except KeyUnusable as error:
        give_up(PROGRAM, str(error))
    _explain(f"From {path}, which only you should be able to read.")
    return 0


def _print(credentials: Credentials) -> None:
    print(credentials.lines(), end="")


def _explain(text: str) -> None:
    """Tell a person more; a program that reads the lines does not need it."""
    if sys.stdout.isatty():
        print(f"\n{text}", file=sys.stderr)
