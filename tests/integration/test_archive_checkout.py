"""A checkout without history of its own: DVC and dvclive must work there, and git ones too."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Project

COMMIT = ("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "x")
CONFIG = Path(".dvc/config.local")


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def no_git(project: Project) -> None:
    """An archive, unpacked where no repository is."""


def in_a_foreign_repository(project: Project) -> None:
    """An archive, unpacked somewhere inside another project's repository."""
    above = project.root.parent
    git(above, "init", "--quiet")
    (above / "theirs.txt").write_text("theirs")
    git(above, "add", "theirs.txt")
    git(above, *COMMIT)


def without_a_commit(project: Project) -> None:
    """An archive in which somebody has typed `git init`."""
    git(project.root, "init", "--quiet")


def with_a_commit(project: Project) -> None:
    """What `git clone` gives."""
    git(project.root, "init", "--quiet")
    git(project.root, "add", "--all")
    git(project.root, *COMMIT)


@pytest.fixture
def checkout(tmp_path: Path, unpack: Callable[[Path], Project]) -> Project:
    return unpack(tmp_path / "above" / "softlabel")


def environment(project: Project) -> dict[str, str]:
    """Git may look above the project here, which is what some of these tests are about."""
    outside = project.root.parent.parent
    return project.environment() | {
        "GIT_CEILING_DIRECTORIES": str(outside),
        "DVC_SITE_CACHE_DIR": str(outside / "dvc-site"),
    }


def call(project: Project, *command: str) -> str:
    done = subprocess.run(
        command,
        cwd=project.root,
        env=environment(project),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def settle(project: Project) -> str:
    """Run the script and return what it left in DVC's local settings."""
    call(project, "bash", "scripts/settle_scm.sh")
    path = project.root / CONFIG
    return path.read_text() if path.exists() else ""


def test_the_archive_holds_the_links(checkout: Project) -> None:
    for name in ("pipeline", "schemas", "stages"):
        link = checkout.root / "softlabel" / name
        assert link.is_symlink()
        assert link.resolve() == checkout.root / name
    assert not (checkout.root / ".git").exists()


def test_its_own_code_is_what_runs(checkout: Project) -> None:
    code = "import softlabel.pipeline.publish as p, softlabel.schemas.errors as e; "
    command = ("python", "-P", "-c", code + "print(p.__file__, e.__file__)")
    where = call(checkout, *command).split()
    assert len(where) == 2
    for path in where:
        assert Path(path).resolve().is_relative_to(checkout.root)


@pytest.mark.parametrize("place", [no_git, in_a_foreign_repository, without_a_commit])
def test_dvc_goes_without_git(checkout: Project, place: Callable[[Project], None]) -> None:
    place(checkout)
    first = settle(checkout)
    assert first.count("no_scm = true") == 1
    assert settle(checkout) == first
    assert "infer" in call(checkout, "dvc", "stage", "list")
    assert not (checkout.root.parent / ".dvc").exists()


def test_dvc_goes_with_git_where_there_is_history(checkout: Project) -> None:
    with_a_commit(checkout)
    assert "no_scm" not in settle(checkout)
    assert "infer" in call(checkout, "dvc", "stage", "list")


def test_history_that_comes_later_is_used(checkout: Project) -> None:
    assert "no_scm = true" in settle(checkout)
    with_a_commit(checkout)
    assert "no_scm" not in settle(checkout)
    assert "infer" in call(checkout, "dvc", "stage", "list")


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", [no_git, in_a_foreign_repository, without_a_commit, with_a_commit]
)
def test_training_with_curves(checkout: Project, place: Callable[[Project], None]) -> None:
    """dvclive, the default logger, refuses some repositories; a stage under DVC uses it."""
    place(checkout)
    settle(checkout)
    checkout.set_params({"train_student.epochs": 1})
    call(checkout, "dvc", "repro", "train_plain@hard-0")
    curves = checkout.root / "models/students/hard-0/dvclive"
    assert (curves / "metrics.json").is_file()
    if place is in_a_foreign_repository:
        done = subprocess.run(
            ["git", "status", "--porcelain"],
            cwd=checkout.root.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == ["??", "softlabel/"]
