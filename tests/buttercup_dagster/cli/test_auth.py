"""`buttercup auth`: keys on one line each, which a shell and `.env` read as they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from dotenv import dotenv_values

from buttercup_dagster.cli.buttercup import main
from task_api.auth import ApiKey, KeyVerifier, resolve_key
from task_api.settings import TaskServerSettings

NAMES = [
    "BUTTERCUP_API_KEY_ID",
    "BUTTERCUP_API_TOKEN",
    "BUTTERCUP_TASK_SERVER_API_KEY_ID",
    "BUTTERCUP_TASK_SERVER_API_TOKEN_HASH",
]


def test_new_key_is_accepted_by_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["auth", "new"]) == 0
    printed = capsys.readouterr()
    assert [line.partition("=")[0] for line in printed.out.splitlines()] == NAMES
    assert printed.err == ""
    file = tmp_path / "env"
    file.write_text(printed.out)
    values = dotenv_values(file)
    key_id, token, server_id, token_hash = (values[name] or "" for name in NAMES)
    assert key_id == server_id
    verifier = KeyVerifier(ApiKey(server_id, token_hash))
    assert verifier.verify(key_id, token)
    assert not verifier.verify(key_id, token + "x")
    # A shell reads the same, the $ signs of the hash among it.
    script = f". {file}; " + "; ".join(f'printf "%s\\n" "${name}"' for name in NAMES)
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert shell.stdout.splitlines() == [values[name] for name in NAMES]


def test_each_new_key_is_another(capsys: pytest.CaptureFixture[str]) -> None:
    main(["auth", "new"])
    main(["auth", "new"])
    lines = capsys.readouterr().out.splitlines()
    assert len(set(lines)) == 2 * len(NAMES)


def test_show_prints_the_key_of_the_home_folder(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resolve_key(TaskServerSettings())
    assert main(["auth", "show"]) == 0
    shown = capsys.readouterr().out
    assert shown in (home / "credentials").read_text()
    assert len(shown.splitlines()) == len(NAMES)


def test_show_without_a_key_says_what_makes_one(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["auth", "show"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        f"buttercup: there is no key in {home}/credentials; `buttercup up` and "
        "`buttercup-task-server` make one at their first start\n"
    )


def test_show_of_a_damaged_file_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    (home / "credentials").write_text("BUTTERCUP_API_KEY_ID=x\n")
    with pytest.raises(SystemExit) as ended:
        main(["auth", "show"])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "remove the file" in error


def test_without_a_word_more_the_choice_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["auth"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "buttercup: auth: say new or show; see buttercup auth --help\n"
    )
