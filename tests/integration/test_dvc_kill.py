"""`dvc repro` killed in the middle of infer: a stage that outlives dvc stays the only writer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.conftest import Outcome, Project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(make_project: Callable[[], Project], repo_root: Path) -> Project:
    """The demo's pipeline up to the export, with a teacher and batches that make infer slow."""
    project = make_project()
    for name in ("params.yaml", "dvc.yaml"):
        (project.root / name).write_bytes((repo_root / name).read_bytes())
    project.set_params(
        {
            "train_teacher.epochs": 1,
            "train_teacher.model_args": {"channels": 1, "width": 64, "depth": 3},
            "infer.batch_size": 1,
            "infer.shard_rows": 16,
        }
    )
    assert project.call("dvc", "init", "--quiet", "--no-scm").code == 0
    done(project.call("dvc", "repro", "export"))
    return project


@pytest.fixture(scope="module")
def undisturbed(exported: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The label set of a repro that nobody disturbed."""
    project = exported.copy(tmp_path_factory.mktemp("undisturbed") / "project")
    done(project.call("dvc", "repro", "infer"))
    files = project.files()
    assert len(files) == 2 * 69 + 2
    return files


@pytest.fixture
def project(exported: Project, undisturbed: dict[str, bytes], tmp_path: Path) -> Project:
    return exported.copy(tmp_path / "project")


@pytest.fixture
def running(project: Project) -> Iterator[subprocess.Popen[str]]:
    """`dvc repro infer` with some shards finished."""
    dvc = project.spawn("repro", "infer", program="dvc")
    wait_until(lambda: (project.root / "labels/part-00008.json").exists(), dvc)
    yield dvc
    if dvc.poll() is None:
        os.killpg(dvc.pid, signal.SIGKILL)
    dvc.communicate()


@pytest.fixture
def stage(running: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    """The infer process below dvc."""
    below = psutil.Process(running.pid).children(recursive=True)
    (infer,) = [
        p for p in below if p.cmdline()[-1] == "infer" and Path(p.cmdline()[0]).name != "sh"
    ]
    yield infer
    if infer.is_running():
        infer.kill()


def wait_until(happened: Callable[[], bool], dvc: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert dvc is None or dvc.poll() is None, dvc.communicate() if dvc else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)


def done(outcome: Outcome) -> str:
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    return outcome.stdout + outcome.stderr


def finished(project: Project) -> set[str]:
    return {path.stem for path in (project.root / "labels").glob("part-*.json")}


def assert_repro_completes(project: Project, undisturbed: dict[str, bytes], kept: set[str]) -> None:
    standing = {name: (project.root / f"labels/{name}.parquet").stat().st_ino for name in kept}
    said = done(project.call("dvc", "repro", "infer"))
    assert project.files() == undisturbed
    assert not list(project.root.glob("labels.*"))
    for name, inode in standing.items():
        assert (project.root / f"labels/{name}.parquet").stat().st_ino == inode
    if len(kept) < 69:
        assert f"kept {len(kept)} finished shards" in said
    assert "up to date" in project.call("dvc", "status", "infer").stdout


def test_the_stage_outlives_dvc_and_stays_the_only_writer(
    project: Project,
    undisturbed: dict[str, bytes],
    running: subprocess.Popen[str],
    stage: psutil.Process,
) -> None:
    stage.suspend()
    running.kill()
    running.wait()
    assert stage.is_running()
    before = project.files()
    second = project.call("dvc", "repro", "infer")
    assert second.code != 0
    said = second.stdout + second.stderr
    assert re.search(rf"labels\.lease: held by process {stage.pid} on ", said), said
    assert project.files() == before
    stage.resume()
    wait_until(lambda: not stage.is_running())
    assert project.files() == undisturbed
    assert_repro_completes(project, undisturbed, finished(project))


def test_dvc_killed_and_then_its_stage(
    project: Project,
    undisturbed: dict[str, bytes],
    running: subprocess.Popen[str],
    stage: psutil.Process,
) -> None:
    running.kill()
    running.wait()
    stage.kill()
    wait_until(lambda: not stage.is_running())
    kept = finished(project)
    assert 0 < len(kept) < 69
    assert_repro_completes(project, undisturbed, kept)


def test_the_whole_group_killed(
    project: Project, undisturbed: dict[str, bytes], running: subprocess.Popen[str]
) -> None:
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    wait_until(lambda: not is_locked(project))
    kept = finished(project)
    assert 0 < len(kept) < 69
    assert_repro_completes(project, undisturbed, kept)


def test_ctrl_c(
    project: Project, undisturbed: dict[str, bytes], running: subprocess.Popen[str]
) -> None:
    """A terminal sends SIGINT to the whole group."""
    os.killpg(running.pid, signal.SIGINT)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode != 0
    assert "continue with: softlabel infer" in stderr
    assert "Traceback" not in stderr
    kept = finished(project)
    assert 0 < len(kept) < 69
    assert_repro_completes(project, undisturbed, kept)


def test_killed_while_it_replaces_and_the_old_teacher_comes_back(
    project: Project, undisturbed: dict[str, bytes]
) -> None:
    """New labels half made, and then the old settings again: the old labels, whole."""
    done(project.call("dvc", "repro", "infer"))
    project.set_params({"infer.temperatures": [1.0, 3.0]})
    dvc = project.spawn("repro", "infer", program="dvc")
    labels = project.root / "labels"
    wait_until(lambda: not (labels / "labelset.json").exists() and len(finished(project)) > 5, dvc)
    os.killpg(dvc.pid, signal.SIGKILL)
    dvc.communicate()
    wait_until(lambda: not is_locked(project))
    project.set_params({"infer.temperatures": [1.0, 2.0, 4.0, 8.0]})
    outcome = project.call("dvc", "repro", "infer")
    done(outcome)
    assert project.files() == undisturbed
    assert not list(project.root.glob("labels.*"))


def is_locked(project: Project) -> bool:
    """Whether a process still holds the lock on the lease: the killed need a moment to die."""
    import fcntl

    path = project.root / "labels.lease"
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
