"""What the README says is what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from buttercup_dagster.cli.buttercup import Commands as Buttercup
from buttercup_dagster.cli.buttercup import Submit, Up
from buttercup_dagster.cli.downloader import CollectGarbage, Process, Verify
from buttercup_dagster.settings import DownloaderSettings, RegistrySettings
from task_api.settings import SHARED_FIELDS, CommonSettings, TaskServerSettings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BIN = Path(sys.executable).parent

COMPONENTS: dict[str, type[CommonSettings]] = {
    "### Everything on one machine": Buttercup,
    "### Task server": TaskServerSettings,
    "### Downloader": DownloaderSettings,
    "### Registry": RegistrySettings,
}


def section(heading: str) -> str:
    """The text below a heading, up to the next one of the same level."""
    level = heading.partition(" ")[0]
    text = README.partition(f"\n{heading}")[2]
    assert text, heading
    return re.split(rf"\n#{{1,{len(level)}}} ", text)[0]


def _is_subcommand(field: FieldInfo) -> bool:
    return any(getattr(one, "__name__", "") == "_CliSubCommand" for one in field.metadata)


def variable(settings: type[CommonSettings], name: str) -> str:
    prefix = "BUTTERCUP_" if name in SHARED_FIELDS else settings.model_config.get("env_prefix", "")
    return f"{prefix}{name}".upper()


@pytest.mark.parametrize("heading", COMPONENTS)
def test_every_setting_stands_in_its_table(heading: str) -> None:
    settings = COMPONENTS[heading]
    text = section(heading)
    for name, field in settings.model_fields.items():
        if _is_subcommand(field):
            continue
        (row,) = re.findall(
            rf"^\| `--{name}`.* \| `{variable(settings, name)}` \| (.*?) \|", text, re.MULTILINE
        )
        if field.default is not None and not field.is_required() and field.default_factory is None:
            assert row == f"`{field.default}`", name


@pytest.mark.parametrize("heading", COMPONENTS)
def test_no_variable_is_invented(heading: str) -> None:
    settings = COMPONENTS[heading]
    if settings is Buttercup:  # its prefix begins those of all others
        return
    known = {variable(settings, name) for name in settings.model_fields}
    prefix = str(settings.model_config.get("env_prefix"))
    # The registry's command has one field more than its settings.
    known |= {"BUTTERCUP_REGISTRY_JSON_OUTPUT", f"{prefix}REDIS_URL"}
    assert set(re.findall(rf"\b{prefix}[A-Z_]+", README)) <= known


def test_every_option_of_process_is_named() -> None:
    text = section("### Downloader")
    for name in Process.model_fields:
        assert f"`--{name}`" in text or f"`{name.upper()}`" in text, name


@pytest.mark.parametrize("command", [Verify, CollectGarbage])
def test_every_option_of_the_housekeeping_is_named(command: type[BaseModel]) -> None:
    text = section("### Downloader")
    for name in command.model_fields:
        assert f" --{name}`" in text or f" --no-{name}`" in text, name


@pytest.mark.parametrize("command", [Up, Submit])
def test_every_option_of_buttercup_is_named(command: type[BaseModel]) -> None:
    text = section("### Everything on one machine")
    for name in command.model_fields:
        assert f"| `--{name}` |" in text or f"`{name.upper()}`" in text, name


def test_every_make_target_is_listed() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"```\n{shown}```" in README


def test_every_command_is_documented() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    scripts = re.findall(r"^(buttercup[a-z-]*) = ", project, re.MULTILINE)
    assert len(scripts) == 4
    for script in scripts:
        assert f"`{script}`" in README
        assert (BIN / script).is_file()
