"""Commits as they are packed, whatever the repository's and the user's settings say."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from buttercup_dagster.packing.errors import PackingError
from buttercup_dagster.packing.folder import FolderContent
from buttercup_dagster.packing.git import open_repository
from buttercup_dagster.packing.tarball import Tarball, write_tarball
from tests.buttercup_dagster.packing.support import (
    Repository,
    git_environment,
    picture,
    unpacked,
)

BINARY = bytes(range(256)) * 40


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with one commit that holds one of everything."""
    made = Repository(tmp_path / "repo")
    made.write("src/main.c", "int main(void) { return 0; }\n")
    made.write("src-more/data.bin", BINARY)
    made.write("build.sh", "#!/bin/sh\n", mode=0o755)
    made.write(b"\xff not utf-8", "x")
    made.write(" 'quoted\" $HOME `x` \\", "y")
    made.write("n" * 150 + "/" + "ü" * 100, "long")
    (made.path / "link").symlink_to("src")
    (made.path / "nowhere").symlink_to("n" * 120)
    made.commit()
    return made


def pack(path: Path, archive: Path, ref: str = "HEAD") -> Tarball:
    with open_repository(path) as opened:
        return write_tarball(opened.tree(opened.commit(ref)), "top", archive)


def diff(path: Path, base: str, head: str = "HEAD") -> bytes:
    with open_repository(path) as opened:
        return opened.diff(opened.commit(base), opened.commit(head))


def refusal_of(action: Callable[[], object]) -> str:
    with pytest.raises(PackingError) as refusal:
        action()
    text = str(refusal.value)
    assert "\n" not in text
    return text


def test_commit_makes_the_same_archive_as_its_clean_folder(
    repository: Repository, tmp_path: Path
) -> None:
    # In git's own order "a" stands before "a-b" and "a-b" before "a/": so it is here.
    for name in ("a-b", "a/b", "a.c", "b/c/d/e"):
        repository.write(name, name)
    repository.commit()
    of_commit = pack(repository.path, tmp_path / "commit.tar.gz")
    of_folder = write_tarball(FolderContent(repository.path), "top", tmp_path / "folder.tar.gz")
    assert of_commit.sha256 == of_folder.sha256
    assert of_commit.files == of_folder.files
    expected = {
        name: what
        for name, what in picture(repository.path).items()
        if name.split(b"/")[0] != b".git"
    }
    assert picture(unpacked(of_commit.path, tmp_path / "out") / "top") == expected


def test_exactly_what_the_commit_tracks(repository: Repository, tmp_path: Path) -> None:
    repository.write(".gitattributes", "dropped export-ignore\n*.c export-subst text eol=crlf\n")
    repository.write(".gitignore", "*.o\n")
    repository.write("dropped", "git archive leaves this out")
    repository.write("id.c", "$Format:%H$\n")
    repository.write("ignored-but-tracked.o", "kept")
    repository.commit()
    repository.write("id.c", "changed")
    repository.write("untracked", "new")
    repository.write("built.o", "ignored")
    repository.git("rm", "--quiet", "--cached", "dropped")
    tree = unpacked(pack(repository.path, tmp_path / "one.tar.gz").path, tmp_path / "out") / "top"
    assert (tree / "id.c").read_bytes() == b"$Format:%H$\n"
    assert (tree / "dropped").read_text() == "git archive leaves this out"
    assert (tree / "ignored-but-tracked.o").exists()
    assert not (tree / "untracked").exists()
    assert not (tree / "built.o").exists()


def test_older_commits_by_any_name(repository: Repository, tmp_path: Path) -> None:
    first = pack(repository.path, tmp_path / "first.tar.gz")
    repository.git("tag", "--annotate", "--message=x", "v1")
    repository.git("branch", "-f", "older")
    repository.write("new", "new")
    commit = repository.commit()
    for name in ("v1", "older", "HEAD~1", "refs/tags/v1", f"{commit}^", commit[:12] + "~"):
        assert pack(repository.path, tmp_path / "again.tar.gz", name).sha256 == first.sha256


@pytest.mark.parametrize("kind", ["bare", "linked", "sha256", "shared", "packed", "symlink"])
def test_kinds_of_repositories(tmp_path: Path, kind: str) -> None:
    made = Repository(tmp_path / "repo", *(["--object-format=sha256"] if kind == "sha256" else []))
    made.write("a/b", "content")
    made.write("c", BINARY)
    made.commit()
    path = tmp_path / "other"
    if kind == "bare":
        made.git("clone", "--quiet", "--bare", made.path, path)
    elif kind == "linked":
        made.git("worktree", "add", "--quiet", path)
    elif kind == "shared":
        made.git("clone", "--quiet", "--shared", made.path, path)
    elif kind == "symlink":
        path.symlink_to(made.path)
    else:
        made.git("gc", "--quiet")
        path = made.path
    tarball = pack(path, tmp_path / "one.tar.gz")
    tree = unpacked(tarball.path, tmp_path / "out") / "top"
    assert picture(tree) == {
        b"a": ("folder",),
        b"a/b": ("file", b"content", False),
        b"c": ("file", BINARY, False),
    }
    with open_repository(path) as opened:
        assert not opened.has_uncommitted_changes()
        if kind != "bare":
            (path / "new").write_text("")
            assert opened.has_uncommitted_changes()


def test_submodules_become_empty_folders(repository: Repository, tmp_path: Path) -> None:
    inner = Repository(tmp_path / "inner")
    inner.write("file", "inner")
    inner_commit = inner.commit()
    repository.git(
        "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", inner.path, "lib/inner"
    )
    repository.commit()
    tarball = pack(repository.path, tmp_path / "one.tar.gz")
    assert [str(left_out) for left_out in tarball.left_out] == [
        "lib/inner (the content of a submodule; its folder is packed empty)"
    ]
    tree = unpacked(tarball.path, tmp_path / "out") / "top"
    assert list((tree / "lib" / "inner").iterdir()) == []
    assert (tree / ".gitmodules").exists()
    with open_repository(repository.path) as opened:
        assert not opened.has_uncommitted_changes()
        commits = opened.submodules(opened.commit("HEAD"))
    assert commits == {b"lib/inner": inner_commit.encode()}
    # A submodule is a repository, too.
    inside = pack(repository.path / "lib" / "inner", tmp_path / "two.tar.gz")
    assert list(picture(unpacked(inside.path, tmp_path / "out2") / "top")) == [b"file"]


def test_aixcc_is_left_out(repository: Repository, tmp_path: Path) -> None:
    base = pack(repository.path, tmp_path / "one.tar.gz")
    repository.write(".aixcc/answer", "x")
    repository.write("src/.aixcc/answer", "x")
    repository.write("src-more/.aixcc", "x")
    repository.commit()
    again = pack(repository.path, tmp_path / "two.tar.gz")
    assert again.sha256 == base.sha256
    assert again.left_out == ()


def test_odd_trees(tmp_path: Path) -> None:
    """What git itself would not commit, but hands out when asked."""
    made = Repository(tmp_path / "repo")
    blob, long = made.hash_object(b"content"), made.hash_object(b"x" * 5000)
    subtree = made.hash_object(b"100644 x\0" + bytes.fromhex(blob), "tree")
    made.commit_tree(
        ("40000", b"..", subtree),
        ("40000", b".git", subtree),
        ("100664", b"a\tb", blob),
        ("100664", b"good", blob),
        ("120000", b"empty", made.hash_object(b"")),
        ("120000", b"long", long),
        ("120000", b"nul", made.hash_object(b"a\0b")),
    )
    tarball = pack(made.path, tmp_path / "one.tar.gz")
    assert [str(left_out) for left_out in tarball.left_out] == [
        "../x (the name has a '..' component)",
        "a\\tb (the name holds a control character)",
        "empty (the link leads to an empty name)",
        "long (the text of the link is too long or holds control characters)",
        "nul (the text of the link is too long or holds control characters)",
    ]
    tree = unpacked(tarball.path, tmp_path / "out") / "top"
    assert picture(tree) == {b"good": ("file", b"content", False)}


@pytest.mark.parametrize("twice", ["file", "folder"])
def test_one_name_twice(tmp_path: Path, twice: str) -> None:
    made = Repository(tmp_path / "repo")
    blob = made.hash_object(b"content")
    subtree = made.hash_object(b"100644 x\0" + bytes.fromhex(blob), "tree")
    second = ("100644", b"a", blob) if twice == "file" else ("40000", b"a", subtree)
    made.commit_tree(("100644", b"a", blob), second)
    text = refusal_of(lambda: pack(made.path, tmp_path / "one.tar.gz"))
    assert "holds one name twice; look at the repository with `git fsck`" in text
    assert not (tmp_path / "one.tar.gz").exists()


def test_missing_content(repository: Repository, tmp_path: Path) -> None:
    repository.git("config", "uploadpack.allowFilter", "true")
    partial = tmp_path / "partial"
    repository.git(
        "clone",
        "--quiet",
        "--no-checkout",
        "--filter=blob:none",
        f"file://{repository.path}",
        partial,
    )
    text = refusal_of(lambda: pack(partial, tmp_path / "one.tar.gz"))
    assert "clone it again without --filter" in text
    assert str(partial) in text


def test_large_files_stream(tmp_path: Path) -> None:
    made = Repository(tmp_path / "repo")
    large = os.urandom(3 * 1024 * 1024 + 5)
    made.write("large", large)
    made.write("next", "small")
    made.commit()
    tree = unpacked(pack(made.path, tmp_path / "one.tar.gz").path, tmp_path / "out") / "top"
    assert (tree / "large").read_bytes() == large
    assert (tree / "next").read_text() == "small"


# What a person did wrong.


def test_git_is_not_installed(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository.path))
    text = refusal_of(lambda: diff(repository.path, "HEAD"))
    assert text == (
        "git is not installed, and a git repository is to be packed; install git, or pack a copy "
        "of the folder without its .git"
    )


def test_empty_git_folder(tmp_path: Path) -> None:
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    text = refusal_of(lambda: diff(tmp_path / "repo", "HEAD"))
    assert text.startswith(f"{tmp_path / 'repo'} is not a git repository that can be read (")
    assert text.endswith("mend it, or remove its .git to have the folder packed as it is")


@pytest.mark.parametrize("name", ["sub", "su:b"])
def test_broken_repository_inside_another_one(repository: Repository, name: str) -> None:
    """Git would take the outer one; a ':' in the path defeats its own way to forbid that."""
    inner = repository.path / name / "broken"
    (inner / ".git").mkdir(parents=True)
    text = refusal_of(lambda: diff(inner, "HEAD"))
    assert "is not a git repository" in text
    assert "remove its .git" in text


def test_work_tree_whose_repository_is_gone(repository: Repository, tmp_path: Path) -> None:
    repository.git("worktree", "add", "--quiet", tmp_path / "linked")
    shutil.rmtree(repository.path)
    text = refusal_of(lambda: diff(tmp_path / "linked", "HEAD"))
    assert "is not a git repository that can be read (not a git repository: " in text


def test_empty_repository(tmp_path: Path) -> None:
    made = Repository(tmp_path / "repo")
    text = refusal_of(lambda: pack(made.path, tmp_path / "one.tar.gz"))
    assert text == (
        f"the git repository {made.path} has no commit yet; commit what is to be packed (git add, "
        "git commit)"
    )


@pytest.mark.parametrize(
    "name",
    [
        "no-such-branch",
        "",
        " ",
        "--help",
        "--output=written",
        "^HEAD",
        "HEAD~5",
        "HEAD..HEAD",
        "HEAD HEAD",
        "HEAD:src",
        "HEAD:src/main.c",
        ":src/main.c",
        "0" * 40,
        "a\0b",
        "a\nb",
        "\udcff",
        "\ud800x",
        "HEAD^{tree}",
    ],
)
def test_unknown_commit(repository: Repository, name: str) -> None:
    before = sorted(picture(repository.path))
    text = refusal_of(lambda: diff(repository.path, name))
    assert text.startswith(f"the git repository {repository.path} has no commit '")
    assert "look for it with `git log`" in text
    assert sorted(picture(repository.path)) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of somebody else")
def test_repository_of_another_user(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("SUDO_UID", raising=False)
    subprocess.run(["chown", "-R", "65534:65534", repository.path], check=True)
    text = refusal_of(lambda: pack(repository.path, tmp_path / "one.tar.gz"))
    assert text == (
        f"git does not trust the repository {repository.path}, which belongs to another user; "
        f"allow it with `git config --global --add safe.directory {repository.path}`, or pack a "
        "clone of your own"
    )
    # What the message says is enough.
    subprocess.run(
        ["git", "config", "--global", "--add", "safe.directory", repository.path], check=True
    )
    assert pack(repository.path, tmp_path / "one.tar.gz").files


# What is not committed.


def uncommitted(path: Path) -> bool:
    with open_repository(path) as opened:
        return opened.has_uncommitted_changes()


def change_file(made: Repository) -> None:
    made.write("build.sh", "#!/bin/sh\necho\n", mode=0o755)


def change_mode(made: Repository) -> None:
    (made.path / "build.sh").chmod(0o644)


def stage(made: Repository) -> None:
    made.write("build.sh", "#!/bin/bash\n", mode=0o755)
    made.git("add", "build.sh")
    made.write("build.sh", "#!/bin/sh\n", mode=0o755)


def add(made: Repository) -> None:
    made.write("new/file")


def remove(made: Repository) -> None:
    (made.path / "build.sh").unlink()


def rename(made: Repository) -> None:
    made.git("mv", "build.sh", "build2.sh")


@pytest.mark.parametrize("change", [change_file, change_mode, stage, add, remove, rename])
def test_uncommitted_changes(repository: Repository, change: Callable[[Repository], None]) -> None:
    assert not uncommitted(repository.path)
    change(repository)
    assert uncommitted(repository.path)


def test_what_is_no_change(repository: Repository) -> None:
    repository.write(".gitignore", "*.o\n")
    repository.commit()
    repository.write("built.o")
    repository.write(".git/info/exclude", "*.swp\n")
    repository.write("open.swp")
    repository.write(".aixcc/answer")
    repository.write("src/.aixcc")
    os.utime(repository.path / "build.sh", (1, 1))
    repository.git("config", "core.fileMode", "false")
    (repository.path / "build.sh").chmod(0o644)
    index = (repository.path / ".git" / "index").read_bytes()
    assert not uncommitted(repository.path)
    assert (repository.path / ".git" / "index").read_bytes() == index


def test_split_index(repository: Repository) -> None:
    repository.git("update-index", "--split-index")
    assert list((repository.path / ".git").glob("sharedindex.*"))
    assert not uncommitted(repository.path)
    change_file(repository)
    assert uncommitted(repository.path)


# What others put into settings.


def programs_that_leave_a_mark(made: Repository, mark: Path) -> None:
    """Name a program wherever git runs one while it reads a repository."""
    program = made.path.parent / "program"
    program.write_text(f"#!/bin/sh\necho $0 $* >> '{mark}'\ncat 2>/dev/null </dev/null\n")
    program.chmod(0o755)
    for key in (
        "core.fsmonitor",
        "core.pager",
        "core.editor",
        "core.sshCommand",
        "core.askPass",
        "core.alternateRefsCommand",
        "pager.status",
        "pager.rev-parse",
        "pager.diff-tree",
        "diff.external",
        "diff.evil.command",
        "diff.evil.textconv",
        "filter.evil.clean",
        "filter.evil.smudge",
        "filter.evil.process",
        "gpg.program",
        "credential.helper",
        "remote.origin.uploadpack",
        "uploadpack.packObjectsHook",
    ):
        made.git("config", key, str(program))
    made.git("config", "alias.status", f"!{program}")
    made.git("config", "filter.evil.required", "true")
    made.git("config", "log.showSignature", "true")
    made.git("config", "status.submoduleSummary", "true")
    hooks = made.path / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in (
        "post-index-change",
        "reference-transaction",
        "fsmonitor-watchman",
        "pre-auto-gc",
        "post-checkout",
    ):
        shutil.copy(program, hooks / name)
    made.write(".git/info/attributes", "* diff=evil filter=evil\n")


def test_settings_of_the_repository_run_nothing(repository: Repository, tmp_path: Path) -> None:
    inner = Repository(tmp_path / "inner")
    inner.write("file", "inner")
    inner.commit()
    repository.git(
        "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", inner.path, "inner"
    )
    repository.write(".gitattributes", "* diff=evil filter=evil\n")
    repository.commit()
    repository.write("src/main.c", "changed\n")
    base, head = "HEAD~1", repository.commit()
    expected = diff(repository.path, base, head)
    mark = tmp_path / "mark"
    programs_that_leave_a_mark(repository, mark)
    submodule_settings = repository.path / ".git" / "modules" / "inner" / "config"
    with submodule_settings.open("a") as file:
        file.write(f"[core]\nfsmonitor = {tmp_path / 'program'}\n")
    for name in ("src/main.c", "build.sh"):  # git has to look into them to tell
        os.utime(repository.path / name, (1, 1))

    with open_repository(repository.path) as opened:
        commit = opened.commit("HEAD")
        assert not opened.has_uncommitted_changes()
        write_tarball(opened.tree(commit), "top", tmp_path / "one.tar.gz")
        assert opened.diff(opened.commit(base), commit) == expected
        with pytest.raises(PackingError):
            opened.commit(":/nothing")
    assert not mark.exists(), mark.read_text()

    # They would have run: the same questions, asked plainly.
    for plain in (["status"], ["diff", base, head]):
        subprocess.run(
            ["git", *plain],
            cwd=repository.path,
            env=git_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert mark.exists(), plain
        mark.unlink()


def test_partial_clone_fetches_nothing(repository: Repository, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    commit = repository.commit()
    lost = repository.git("rev-parse", "HEAD:src/main.c").decode().strip()
    for key, value in {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.url": f"ext::touch {mark}",
        "remote.origin.promisor": "true",
        "protocol.allow": "always",
        "protocol.ext.allow": "always",
    }.items():
        repository.git("config", key, value)
    (repository.path / ".git" / "objects" / lost[:2] / lost[2:]).unlink()
    missing = "1" * 40
    with open_repository(repository.path) as opened:
        with pytest.raises(PackingError, match="has no commit"):
            opened.commit(missing)
        with pytest.raises(PackingError, match=r"lacks the content of 'src/main\.c'"):
            write_tarball(opened.tree(opened.commit(commit)), "top", tmp_path / "one.tar.gz")
    assert not mark.exists()

    subprocess.run(
        ["git", "rev-parse", "--verify", missing + "^{commit}"],
        cwd=repository.path,
        env=git_environment(),
        capture_output=True,
        check=False,
    )
    assert mark.exists(), "git does not fetch any more, so this test proves nothing"


def test_settings_of_the_user_change_nothing(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    repository.write("src/main.c", "changed\n")
    repository.write("src-more/data.bin", BINARY[::-1])
    repository.git("mv", "build.sh", "moved.sh")
    repository.commit()
    expected_diff = diff(repository.path, "HEAD~1")
    expected = pack(repository.path, tmp_path / "one.tar.gz")
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitattributes").write_text("* -diff filter=evil diff=evil text eol=crlf\n")
    (home / ".gitconfig").write_text(
        f"[core]\nattributesFile = {home}/.gitattributes\nfsmonitor = touch {mark};\n"
        "quotePath = false\nabbrev = 4\nbigFileThreshold = 1\ncompression = 0\nautocrlf = true\n"
        f'[filter "evil"]\nclean = touch {mark}; cat\n[diff "evil"]\ncommand = touch {mark};\n'
        f"[diff]\nexternal = touch {mark};\nnoprefix = true\nmnemonicPrefix = true\n"
        "context = 9\ninterHunkContext = 9\nalgorithm = patience\nrenames = copies\n"
        "relative = true\norderFile = /nowhere\nsuppressBlankEmpty = true\n"
        "[color]\nui = always\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert diff(repository.path, "HEAD~1") == expected_diff
    assert pack(repository.path, tmp_path / "two.tar.gz").sha256 == expected.sha256
    assert not uncommitted(repository.path)
    # The same in the repository's own settings and attributes.
    shutil.copy(home / ".gitconfig", tmp_path / "included")
    repository.git("config", "include.path", str(tmp_path / "included"))
    shutil.copy(home / ".gitattributes", repository.path / ".git" / "info" / "attributes")
    assert diff(repository.path, "HEAD~1") == expected_diff
    assert not mark.exists()


def test_variables_of_the_caller_are_not_inherited(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.write("src/main.c", "changed\n")
    repository.commit()
    expected_diff = diff(repository.path, "HEAD~1")
    expected = pack(repository.path, tmp_path / "one.tar.gz")
    other = Repository(tmp_path / "other")
    other.write("other", "other")
    other.commit()
    mark = tmp_path / "mark"
    for name, value in {
        "GIT_DIR": str(other.path / ".git"),
        "GIT_WORK_TREE": str(other.path),
        "GIT_INDEX_FILE": str(tmp_path / "no-index"),
        "GIT_OBJECT_DIRECTORY": str(other.path / ".git" / "objects"),
        "GIT_COMMON_DIR": str(other.path / ".git"),
        "GIT_EXTERNAL_DIFF": f"touch {mark}",
        "GIT_DIFF_OPTS": "--unified=9",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.fsmonitor",
        "GIT_CONFIG_VALUE_0": f"touch {mark}",
        "GIT_TRACE": str(tmp_path / "trace"),
        "GIT_CEILING_DIRECTORIES": "/",
    }.items():
        monkeypatch.setenv(name, value)
    assert diff(repository.path, "HEAD~1") == expected_diff
    assert pack(repository.path, tmp_path / "two.tar.gz").sha256 == expected.sha256
    assert not uncommitted(repository.path)
    assert not mark.exists()
    assert not (tmp_path / "trace").exists()


def test_git_in_the_packed_folder_is_not_run(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    repository.write("git", f"#!/bin/sh\ntouch '{mark}'\n", mode=0o755)
    repository.commit()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PATH", ".:" + os.environ["PATH"])
    assert pack(repository.path, tmp_path / "one.tar.gz").files
    assert not mark.exists()


def test_git_in_a_relative_folder_of_the_path(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shutil.which("git")
    assert found is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").symlink_to(found)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin")
    assert pack(repository.path, tmp_path / "one.tar.gz").files


# The diff.


def apply(diff: bytes, tree: Path) -> None:
    """Apply a diff as a consumer does, outside of any repository."""
    (tree.parent / "ref.diff").write_bytes(diff)
    done = subprocess.run(
        ["git", "apply", "-p1", "../ref.diff"],
        cwd=tree,
        env={**git_environment(), "GIT_CEILING_DIRECTORIES": str(tree.parent)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_diff_leads_from_base_to_head(repository: Repository, tmp_path: Path) -> None:
    repository.write("crlf.txt", "one\r\ntwo\r\n")
    repository.write("latin1.txt", b"caf\xe9\n")
    repository.write("becomes-folder", "x")
    repository.write("no-newline", "x")
    repository.write("gone/deep/file", "x")
    base = repository.commit()
    repository.write("src/main.c", "int main(void) { return 1; }\n")
    repository.write("src-more/data.bin", BINARY[::-1] + b"more")
    repository.write("src-more/new.bin", BINARY * 3)
    repository.write("crlf.txt", "one\r\n2\r\n")
    repository.write("latin1.txt", b"caf\xe9s\n")
    repository.write("no-newline", "x\n")
    repository.write("empty", "")
    repository.write(' \'a "new" file\\ \t', "with spaces and quotes\n")
    repository.write(" 'quoted\" $HOME `x` \\", "changed\n")
    repository.write(b"\xff not utf-8", "changed")
    (repository.path / "build.sh").chmod(0o644)
    repository.write("script", "#!/bin/sh\n", mode=0o755)
    repository.git("mv", "n" * 150, "renamed")
    shutil.rmtree(repository.path / "gone")
    (repository.path / "becomes-folder").unlink()
    repository.write("becomes-folder/file", "y")
    (repository.path / "nowhere").unlink()
    repository.write("nowhere", "now a file")
    (repository.path / "link").unlink()
    (repository.path / "link").symlink_to("src-more")
    head = repository.commit()

    change = diff(repository.path, base)
    assert b"GIT binary patch" in change
    assert b"old mode 100755\nnew mode 100644" in change
    assert b"rename from" not in change
    packed = pack(repository.path, tmp_path / "base.tar.gz", base)
    tree = unpacked(packed.path, tmp_path / "base") / "top"
    apply(change, tree)
    # A tab in a name cannot be in an archive, but a diff may bring it.
    expected = {
        name: what for name, what in picture(repository.path).items() if b".git" not in name
    }
    assert picture(tree) == expected
    assert change == diff(repository.path, base, head)


def test_diff_is_the_same_from_a_clone(repository: Repository, tmp_path: Path) -> None:
    repository.write("src/main.c", "changed\n")
    repository.write("src-more/data.bin", BINARY[::-1])
    repository.commit()
    repository.git("clone", "--quiet", "--bare", repository.path, tmp_path / "bare.git")
    assert diff(tmp_path / "bare.git", "HEAD~1") == diff(repository.path, "HEAD~1")


def test_diff_has_no_aixcc(repository: Repository) -> None:
    repository.write(".aixcc/answer", "before")
    base = repository.commit()
    repository.write(".aixcc/answer", "secret")
    repository.write(".aixcc/deep/answer", "secret")
    repository.write("src/.aixcc/answer", "secret")
    repository.write("src-more/.aixcc", "secret")
    assert "the diff would be empty" in refusal_of(
        lambda: (repository.commit(), diff(repository.path, base))
    )
    repository.write("src/x.aixcc", "kept\n")
    repository.write(".aixcc2/file", "kept\n")
    repository.commit()
    lines = diff(repository.path, base).splitlines()
    assert [line for line in lines if line.startswith(b"diff ")] == [
        b"diff --git a/.aixcc2/file b/.aixcc2/file",
        b"diff --git a/src/x.aixcc b/src/x.aixcc",
    ]


def test_empty_diff(repository: Repository) -> None:
    commit = repository.commit()
    assert refusal_of(lambda: diff(repository.path, "HEAD")) == (
        f"nothing that is packed of {repository.path} differs between {commit[:12]} and "
        f"{commit[:12]}, so the diff would be empty; commit the change first, or choose an older "
        "base"
    )


def test_diff_without_what_was_left_out(tmp_path: Path) -> None:
    made = Repository(tmp_path / "repo")
    made.write("bad\tname", "one\n")
    made.write("*", "one\n")
    made.write("kept", "one\n")
    base = made.commit()
    made.write("bad\tname", "two\n")
    made.write("*", "two\n")
    made.write("kept", "two\n")
    made.commit()
    with open_repository(made.path) as opened:
        tree = opened.tree(opened.commit(base))
        tarball = write_tarball(tree, "top", tmp_path / "one.tar.gz")
        assert tree.left_out_names == {b"bad\tname"}
        change = opened.diff(base, opened.commit("HEAD"), without=tree.left_out_names)
    assert b"bad" not in change
    unpacked_tree = unpacked(tarball.path, tmp_path / "out") / "top"
    apply(change, unpacked_tree)
    assert (unpacked_tree / "kept").read_text() == "two\n"
    assert (unpacked_tree / "*").read_text() == "two\n"


def test_diff_with_changed_submodules(repository: Repository, tmp_path: Path) -> None:
    inner = Repository(tmp_path / "inner")
    inner.write("file", "inner")
    inner.commit()
    for name in ("stays", "goes", "becomes-files"):
        repository.git(
            "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", inner.path, name
        )
    repository.write("becomes-submodule", "x")
    base = repository.commit()
    inner.write("file", "changed")
    commit = inner.commit()
    repository.git("-C", "stays", "fetch", "--quiet", inner.path)
    repository.git("-C", "stays", "checkout", "--quiet", commit)
    repository.git("rm", "--quiet", "--force", "goes", "becomes-files", "becomes-submodule")
    repository.write("becomes-files/now", "a file\n")
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{commit},becomes-submodule")
    (repository.path / "becomes-submodule").mkdir()
    repository.git("add", ".gitmodules", "stays", "becomes-files")
    repository.git("commit", "--quiet", "--message=submodules")
    packed = pack(repository.path, tmp_path / "base.tar.gz", base)
    tree = unpacked(packed.path, tmp_path / "base") / "top"
    change = diff(repository.path, base)
    assert b"goes" not in [line for line in change.splitlines() if line.startswith(b"diff ")]
    apply(change, tree)
    assert (tree / "becomes-files" / "now").read_text() == "a file\n"
    assert (tree / "becomes-submodule").is_dir()
    assert list((tree / "stays").iterdir()) == []
