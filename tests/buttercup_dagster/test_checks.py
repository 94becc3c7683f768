"""Warnings about prepared tasks: shown, never in anybody's way, and safe with hostile trees."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from buttercup_dagster.tree_checks import diff_applies, focus_present, tooling_complete
from task_api.task import SourceType, TaskState
from tests.buttercup_dagster.conftest import FOCUS, PROJECT, Bench
from tests.e2e.archives import pack

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

DIFF = """\
--- a/main.c
+++ b/main.c
@@ -1,3 +1,3 @@
 int main(void) {
-  return 0;
+  return 1;
 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared task with a diff that applies."""
    for name, text in {
        f"src/{FOCUS}/main.c": "int main(void) {\n  return 0;\n}\n",
        "fuzz-tooling/fuzz-tooling/infra/helper.py": "",
        f"fuzz-tooling/fuzz-tooling/projects/{PROJECT}/project.yaml": "language: c\n",
        "diff/diff/ref.diff": DIFF,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_good_folder_gives_no_warning(folder: Path) -> None:
    assert focus_present(folder, FOCUS).passed
    assert tooling_complete(folder, PROJECT).passed
    assert diff_applies(folder, FOCUS).passed


def test_wrong_focus_names_what_is_there(folder: Path) -> None:
    finding = focus_present(folder, "other")
    assert not finding.passed
    assert FOCUS in finding.text


def test_tooling_without_the_project(folder: Path) -> None:
    finding = tooling_complete(folder, "other-project")
    assert not finding.passed
    assert "projects/other-project/project.yaml" in finding.text


def test_absent_parts_are_not_applicable(folder: Path) -> None:
    shutil.rmtree(folder / "fuzz-tooling")
    shutil.rmtree(folder / "diff")
    assert tooling_complete(folder, PROJECT).text.startswith("not applicable")
    assert diff_applies(folder, FOCUS).text.startswith("not applicable")


@needs_git
def test_diff_that_does_not_apply(folder: Path) -> None:
    (folder / f"src/{FOCUS}/main.c").write_text("int main(void) { return 2; }\n")
    finding = diff_applies(folder, FOCUS)
    assert not finding.passed
    assert "ref.diff does not apply" in finding.text


@needs_git
def test_diff_changes_nothing(folder: Path) -> None:
    diff_applies(folder, FOCUS)
    assert "return 0" in (folder / f"src/{FOCUS}/main.c").read_text()


@needs_git
def test_hostile_git_folder_is_not_obeyed(folder: Path) -> None:
    """A repository inside the source names a program that git would run, and breaks `apply`."""
    proof = folder / "executed"
    git = folder / f"src/{FOCUS}/.git"
    for name in ("objects", "refs"):
        (git / name).mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "config").write_text(
        "[core]\n\trepositoryformatversion = 0\n"
        f"\tfsmonitor = touch {proof}\n\tworktree = /nonexistent\n"
    )
    assert diff_applies(folder, FOCUS).passed
    # The diff is judged, not skipped, as git does in a foreign work tree.
    (folder / f"src/{FOCUS}/main.c").write_text("something else\n")
    assert not diff_applies(folder, FOCUS).passed
    assert not proof.exists()


def test_archive_without_a_diff(folder: Path) -> None:
    (folder / "diff/diff/ref.diff").rename(folder / "diff/diff/README")
    assert not diff_applies(folder, FOCUS).passed


def test_warnings_are_shown_and_block_nothing(bench: Bench) -> None:
    repo = bench.repo()
    odd = pack(bench.folder / "odd.tar.gz", {"fuzz-tooling/README": b"nothing else\n"})
    task = bench.task(
        bench.source(SourceType.REPO, repo), bench.source(SourceType.FUZZ_TOOLING, odd)
    )
    result = bench.prepare(task)
    assert result.success
    assert bench.registry.get(task.task_id).state is TaskState.READY
    found = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert set(found) == {"focus_present", "tooling_complete", "diff_applies"}
    assert not found["tooling_complete"].passed
    assert found["tooling_complete"].severity.value == "WARN"
    assert found["focus_present"].passed
    assert found["focus_present"].metadata["task_id"].value == task.task_id
