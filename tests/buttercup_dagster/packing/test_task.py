"""Packing a whole task from a folder or a git repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from buttercup_dagster.packing.errors import PackingError
from buttercup_dagster.packing.task import PackedTask, default_focus, pack_task
from buttercup_dagster.tree_checks import diff_applies, focus_present, tooling_complete
from task_api.task import SourceType, Task, TaskType, problems_of
from tests.buttercup_dagster.packing.support import Repository, picture, unpacked

REPO, TOOLING, DIFF = SourceType.REPO, SourceType.FUZZ_TOOLING, SourceType.DIFF


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with sources."""
    folder = tmp_path / "My Project"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "main.c").write_text("int main(void) { return 0; }\n")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def tooling(tmp_path: Path) -> Path:
    """A folder like OSS-Fuzz's."""
    folder = tmp_path / "oss-fuzz"
    for name in ("infra/helper.py", "projects/example/project.yaml", "projects/example/build.sh"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content\n")
    return folder


def task_folder(packed: PackedTask, into: Path) -> Path:
    """The task's folder as a worker lays it out."""
    into.mkdir()
    homes = {REPO: "src", TOOLING: "fuzz-tooling", DIFF: "diff"}
    for source_type, tarball in packed.sources.items():
        unpacked(tarball.path, into.parent / f"{into.name}-{source_type}").rename(
            into / homes[source_type]
        )
    return into


def refusal_of(**arguments: object) -> str:
    with pytest.raises(PackingError) as refusal:
        pack_task(**{"project_name": "example", **arguments})  # type: ignore[arg-type]
    text = str(refusal.value)
    assert "\n" not in text
    return text


def test_folder_with_tooling(project: Path, tooling: Path, tmp_path: Path) -> None:
    packed = pack_task(
        project, project_name="example", fuzz_tooling=tooling, into=tmp_path / "new" / "into"
    )
    assert packed.type is TaskType.FULL
    assert packed.focus == "My Project"
    assert packed.notes == ()
    assert set(packed.sources) == {REPO, TOOLING}
    assert {tarball.path for tarball in packed.sources.values()} == set(
        (tmp_path / "new" / "into").iterdir()
    )
    assert [tarball.files for tarball in packed.sources.values()] == [1, 3]
    folder = task_folder(packed, tmp_path / "task")
    assert picture(folder / "src" / "My Project") == picture(project)
    assert picture(folder / "fuzz-tooling" / "fuzz-tooling") == picture(tooling)
    assert focus_present(folder, packed.focus).passed
    assert tooling_complete(folder, "example").passed


def test_same_input_same_bytes(project: Path, tooling: Path, tmp_path: Path) -> None:
    def digests(source: Path, tools: Path, into: str) -> list[str]:
        packed = pack_task(
            source, project_name="example", focus="x", fuzz_tooling=tools, into=tmp_path / into
        )
        return [tarball.sha256 for tarball in packed.sources.values()]

    first = digests(project, tooling, "one")
    shutil.copytree(project, tmp_path / "copies" / "a")
    shutil.copytree(tooling, tmp_path / "copies" / "b")
    assert digests(tmp_path / "copies" / "a", tmp_path / "copies" / "b", "two") == first
    assert digests(project, tooling, "one") == first


def test_repository(tmp_path: Path) -> None:
    made = Repository(tmp_path / "curl")
    made.write("main.c", "committed\n")
    commit = made.commit()
    made.write("main.c", "changed\n")
    made.write("new.c", "new\n")
    packed = pack_task(made.path, project_name="curl", into=tmp_path / "into")
    assert packed.type is TaskType.FULL
    assert packed.notes == (
        f"{made.path} has uncommitted changes, which are not packed; the commit {commit[:12]} is",
    )
    tree = unpacked(packed.sources[REPO].path, tmp_path / "out")
    assert picture(tree) == {
        b"curl": ("folder",),
        b"curl/main.c": ("file", b"committed\n", False),
    }
    made.commit()
    assert pack_task(made.path, project_name="curl", into=tmp_path / "into").notes == ()


def test_bare_repository(tmp_path: Path) -> None:
    made = Repository(tmp_path / "work")
    made.write("main.c", "x\n")
    made.commit()
    made.git("clone", "--quiet", "--bare", made.path, tmp_path / "curl.git")
    packed = pack_task(tmp_path / "curl.git", project_name="curl", into=tmp_path / "into")
    assert packed.focus == "curl"
    assert packed.notes == ()
    assert packed.sources[REPO].files == 1


def test_folder_inside_a_repository_is_packed_as_it_is(tmp_path: Path) -> None:
    made = Repository(tmp_path / "repo")
    made.write("part/main.c", "committed\n")
    made.commit()
    made.write("part/new.c", "new\n")
    packed = pack_task(made.path / "part", project_name="curl", into=tmp_path / "into")
    assert (packed.focus, packed.sources[REPO].files) == ("part", 2)


def test_delta(tmp_path: Path, tooling: Path) -> None:
    made = Repository(tmp_path / "curl")
    made.write("main.c", "before\n")
    made.write("data.bin", bytes(range(256)))
    made.write("run.sh", "#!/bin/sh\n")
    made.write("gone.c", "gone\n")
    made.write(".aixcc/answer", "before")
    made.git("add", "--all")
    made.commit()
    made.git("tag", "base")
    made.write("main.c", "after\n")
    made.write("data.bin", bytes(range(255, -1, -1)))
    made.write("run.sh", "#!/bin/sh\n", mode=0o755)
    made.write("a 'new' \"file\"", "x\n")
    made.write(".aixcc/answer", "after")
    (made.path / "gone.c").unlink()
    made.commit()
    packed = pack_task(
        made.path,
        project_name="example",
        base="base",
        fuzz_tooling=tooling,
        into=tmp_path / "into",
    )
    assert packed.type is TaskType.DELTA
    assert set(packed.sources) == {REPO, TOOLING, DIFF}
    assert packed.notes == ()
    folder = task_folder(packed, tmp_path / "task")
    assert [str(p.relative_to(folder)) for p in (folder / "diff").rglob("*")] == [
        "diff/diff",
        "diff/diff/ref.diff",
    ]
    assert (folder / "src" / "curl" / "main.c").read_text() == "before\n"
    assert diff_applies(folder, "curl").text == "1 diff applied cleanly"
    subprocess.run(
        ["git", "apply", folder / "diff" / "diff" / "ref.diff"],
        cwd=folder / "src" / "curl",
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)},
        check=True,
    )
    head = pack_task(made.path, project_name="example", into=tmp_path / "head")
    tree = unpacked(head.sources[REPO].path, tmp_path / "out")
    assert picture(folder / "src") == picture(tree)
    assert b".aixcc" not in (folder / "diff" / "diff" / "ref.diff").read_bytes()


def test_delta_with_submodules_and_odd_names(tmp_path: Path) -> None:
    inner = Repository(tmp_path / "inner")
    inner.write("file", "inner")
    commits = [inner.commit(), inner.commit()]
    made = Repository(tmp_path / "curl")
    made.write("main.c", "before\n")
    made.write("odd\tname", "before\n")
    for step, commit in enumerate(commits):
        made.write("main.c", f"{step}\n")
        made.write("odd\tname", f"{step}\n")
        made.git("add", "main.c", "odd\tname")
        made.git("update-index", "--add", "--cacheinfo", f"160000,{commit},lib/inner")
        made.git("commit", "--quiet", "--message=x")
    (made.path / "lib" / "inner").mkdir(parents=True)
    packed = pack_task(made.path, project_name="curl", base="HEAD~1", into=tmp_path / "into")
    assert packed.notes == (
        (
            "left out of the repo archive: lib/inner (the content of a submodule; its folder is "
            "packed empty), odd\\tname (the name holds a control character)"
        ),
        "the diff does not have the changes of submodules: lib/inner",
    )
    folder = task_folder(packed, tmp_path / "task")
    assert diff_applies(folder, "curl").text == "1 diff applied cleanly"


def test_many_things_left_out_make_one_note(project: Path, tmp_path: Path) -> None:
    for number in range(5):
        os.mkfifo(project / f"pipe{number}")
    packed = pack_task(project, project_name="curl", into=tmp_path / "into")
    assert packed.notes == (
        (
            "left out of the repo archive: pipe0 (a named pipe), pipe1 (a named pipe), pipe2 (a "
            "named pipe) and 2 more"
        ),
    )
    assert len(packed.sources[REPO].left_out) == 5


def test_tooling_without_the_project(project: Path, tooling: Path, tmp_path: Path) -> None:
    (tooling / "infra" / "helper.py").unlink()
    packed = pack_task(project, project_name="other", fuzz_tooling=tooling, into=tmp_path / "into")
    assert packed.notes == (
        (
            "the fuzz tooling lacks infra/helper.py and projects/other/project.yaml, which "
            f"consumers need; check {tooling} and the project name"
        ),
    )


def test_tooling_that_is_a_repository(project: Path, tmp_path: Path) -> None:
    made = Repository(tmp_path / "tools")
    made.write("infra/helper.py", "x")
    made.commit()
    made.write("projects/example/project.yaml", "x")
    packed = pack_task(
        project, project_name="example", fuzz_tooling=made.path, into=tmp_path / "into"
    )
    assert len(packed.notes) == 2
    assert "has uncommitted changes, which are not packed" in packed.notes[0]
    assert "the fuzz tooling lacks projects/example/project.yaml" in packed.notes[1]
    made.commit()
    again = pack_task(
        project, project_name="example", fuzz_tooling=made.path, into=tmp_path / "into"
    )
    assert again.notes == ()


def test_progress(project: Path, tooling: Path, tmp_path: Path) -> None:
    told: dict[SourceType, int] = {}
    pack_task(
        project,
        project_name="example",
        fuzz_tooling=tooling,
        into=tmp_path / "into",
        on_progress=told.__setitem__,
    )
    assert told == {REPO: len("int main(void) { return 0; }\n"), TOOLING: 3 * len("content\n")}


@pytest.mark.parametrize(
    ("name", "focus"),
    [
        ("curl", "curl"),
        ("curl.git", "curl"),
        ("curl-8.1 ü", "curl-8.1 ü"),
        ("a\\b\nc", "a_b_c"),
        ("\udcff\udcfe", "fallback"),
        ("x\udcff", "x_"),
        ("...", "fallback"),
        (".git", "fallback"),
        ("/", "fallback"),
        ("ü" * 127 + "x", "ü" * 127 + "x"),
    ],
)
def test_default_focus(tmp_path: Path, name: str, focus: str) -> None:
    found = default_focus(tmp_path / name, "fallback")
    assert found == focus
    task = Task("", TaskType.FULL, "fallback", found, deadline_ms=0, sources=())
    assert "focus" not in {problem.path[0] for problem in problems_of(task, now_ms=0)}


def test_default_focus_of_the_working_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "src")
    assert default_focus(Path(), "fallback") == "src"
    assert default_focus(Path(".."), "fallback") == "My Project"


def test_odd_folder_is_packed_under_a_safe_name(tmp_path: Path) -> None:
    folder = tmp_path / "odd\n\udcff"
    folder.mkdir()
    (folder / "main.c").write_text("x")
    packed = pack_task(folder, project_name="curl", into=tmp_path / "into")
    assert packed.focus == "odd__"
    tree = unpacked(packed.sources[REPO].path, tmp_path / "out")
    assert [path.name for path in tree.iterdir()] == ["odd__"]


@pytest.mark.parametrize(
    ("focus", "text"),
    [
        ("a/b", "focus: 'a/b' holds a '/'; give the name of one folder"),
        ("", "focus: is empty"),
        ("..", "focus: '..' has an empty, '.' or '..' part"),
        ("a\\b", "holds a backslash"),
        ("a\tb", "holds a control character"),
        ("\udcff", "focus: "),
        ("x" * 256, "is too long"),
    ],
)
def test_unsafe_focus(project: Path, tmp_path: Path, focus: str, text: str) -> None:
    assert text in refusal_of(path=project, focus=focus, into=tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_unsafe_project_name(project: Path, tmp_path: Path) -> None:
    text = refusal_of(path=project, project_name="../x", into=tmp_path / "into")
    assert text.startswith("project_name: '../x' is not an OSS-Fuzz project name; use letters")


def test_base_of_a_plain_folder(project: Path, tmp_path: Path) -> None:
    assert refusal_of(path=project, base="v1", into=tmp_path / "into") == (
        f"{project} is not a git repository, so there is no commit 'v1' in it; give the folder "
        "that has the .git, or pack without a base"
    )


def test_unknown_base(tmp_path: Path) -> None:
    made = Repository(tmp_path / "curl")
    made.write("main.c")
    made.commit()
    text = refusal_of(path=made.path, base="v1", into=tmp_path / "into")
    assert "has no commit 'v1'" in text


def test_base_that_is_head(tmp_path: Path) -> None:
    made = Repository(tmp_path / "curl")
    made.write("main.c")
    made.commit()
    text = refusal_of(path=made.path, base="HEAD", into=tmp_path / "into")
    assert "the diff would be empty; commit the change first, or choose an older base" in text


def test_what_is_no_folder(tmp_path: Path) -> None:
    into = tmp_path / "into"
    assert refusal_of(path=tmp_path / "none", into=into) == (
        f"{tmp_path / 'none'} does not exist; give a folder or a git repository (unpack an archive "
        "first)"
    )
    (tmp_path / "curl.tar.gz").write_text("")
    assert "curl.tar.gz is not a folder" in refusal_of(path=tmp_path / "curl.tar.gz", into=into)


def test_tooling_that_is_not_there(project: Path, tmp_path: Path) -> None:
    text = refusal_of(path=project, fuzz_tooling=tmp_path / "none", into=tmp_path / "into")
    assert "none does not exist" in text


def test_nothing_to_pack(tmp_path: Path) -> None:
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    text = refusal_of(path=tmp_path / "empty", into=tmp_path / "into")
    assert text == (
        f"there is no file in {tmp_path / 'empty'} to pack; give the folder with the sources"
    )


@pytest.mark.parametrize("name", ["out", ".", "link/out"])
def test_archives_inside_what_is_packed(project: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(project)
    into = tmp_path / name if name.startswith("link") else project / name
    text = refusal_of(path=project, into=into)
    assert "would be written into it" in text
    assert "choose a folder outside of it" in text
    assert not (project / "out").exists()


def test_folder_that_cannot_be_made(project: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = refusal_of(path=project, into=tmp_path / "file" / "into")
    assert text == (
        f"the folder {tmp_path / 'file' / 'into'} cannot be made: Not a directory; choose another "
        "one"
    )
