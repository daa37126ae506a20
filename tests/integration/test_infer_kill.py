"""infer killed and stopped while it runs, then started again: the bytes of a run left alone."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Project

POINTS = 6
PATIENCE = 120


@pytest.fixture(scope="module")
def quiet(make_project: Callable[[], Project]) -> Project:
    """A project of 2,000 rows whose labels/ were made by a run that nobody disturbed."""
    project = make_project()
    project.source(shards=(1100, 900))
    project.teacher(work=1500)
    outcome = project.run(*COMMAND)
    assert outcome.code == 0, outcome.stderr
    assert len(list((project.root / "labels").glob("*.parquet"))) == 64
    return project


COMMAND = ("infer", "--batch-size", "8", "--shard-rows", "32")


def start(quiet: Project, folder: Path) -> Project:
    """The project of `quiet` in `folder`, without its labels."""
    for name in ("data", "models"):
        shutil.copytree(quiet.root / name, folder / name)
    return type(quiet)(folder)


def wait_for_receipts(running: subprocess.Popen[str], labels: Path, count: int) -> None:
    """Return once `count` shards are finished. The plan counts as the first."""
    deadline = time.monotonic() + PATIENCE
    while len(list(labels.glob("*.json"))) <= count:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def finished(labels: Path) -> set[str]:
    return {path.stem for path in labels.glob("part-*.json")}


def resume(project: Project, *command: str) -> dict[str, Any]:
    outcome = project.run(*command, "--json")
    assert outcome.code == 0, outcome.stderr
    report: dict[str, Any] = json.loads(outcome.stdout)
    return report


@pytest.mark.slow
def test_sigkill_at_several_points(quiet: Project, tmp_path: Path) -> None:
    """Six kills spread over the run, one at a chance moment of each sixth of its shards."""
    expected = quiet.files()
    chance = random.Random(20)
    kept = []
    for point in range(POINTS):
        project = start(quiet, tmp_path / str(point))
        labels = project.root / "labels"
        running = project.spawn(*COMMAND)
        wait_for_receipts(running, labels, chance.randrange(point * 10, point * 10 + 10))
        time.sleep(chance.uniform(0, 0.03))
        running.kill()
        assert running.wait() == -signal.SIGKILL
        running.communicate()
        assert not (labels / "labelset.json").exists()
        whole = finished(labels)
        report = resume(project, *COMMAND)
        assert report["shards_kept"] == len(whole)
        kept.append(report["shards_kept"])
        assert project.files() == expected
        assert sorted(p.name for p in project.root.iterdir()) == ["data", "labels", "models"]
    assert max(kept) > 0
    assert len(set(kept)) > 1


@pytest.mark.slow
def test_sigkill_again_and_again(quiet: Project, tmp_path: Path) -> None:
    """A machine that dies every few shards still gets there, and never loses a whole shard."""
    project = start(quiet, tmp_path)
    labels = tmp_path / "labels"
    before: set[str] = set()
    for goal in (5, 18, 31, 44, 57):
        running = project.spawn(*COMMAND)
        wait_for_receipts(running, labels, goal)
        running.kill()
        running.communicate()
        assert before < finished(labels)
        before = finished(labels)
    assert resume(project, *COMMAND)["shards_kept"] == len(before)
    assert project.files() == quiet.files()


@pytest.mark.slow
def test_sigkill_while_replacing(quiet: Project, tmp_path: Path) -> None:
    project = start(quiet, tmp_path)
    shutil.copytree(quiet.root / "labels", tmp_path / "labels")
    project.teacher("models/new.onnx", sharpness=50, work=1500)
    command = (*COMMAND, "--teacher", "models/new.onnx", "--if-different", "replace")
    running = project.spawn(*command)
    old = quiet.files()
    deadline = time.monotonic() + PATIENCE
    while (tmp_path / "labels/labelset.json").exists() or len(finished(tmp_path / "labels")) < 9:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.kill()
    running.communicate()
    assert project.files("labels.replaced") == old
    report = resume(project, *command)
    assert 9 <= report["shards_kept"] < 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "labels", "models"]
    resume(project, *COMMAND, "--teacher", "models/new.onnx", "--output", "fresh")
    assert project.files() == project.files("fresh") != old


@pytest.mark.slow
def test_sigkill_on_fashion_mnist(
    make_project: Callable[[], Project], shared_data: Path, tmp_path: Path
) -> None:
    """60,000 real pictures in dozens of shards, with batches of the usual size."""
    project = make_project()
    idx = str(shared_data / "fashion-mnist")
    assert project.run("prepare", "--format", "idx", "--path", idx).code == 0
    project.teacher(shape=(28, 28, 1), work=300)
    command = ("infer", "--batch-size", "64", "--shard-rows", "1024", "--allow-bad-teacher")
    assert project.run(*command, "--output", "quiet").code == 0
    chance = random.Random(4)
    labels = project.root / "labels"
    for goal in (chance.randrange(2, 20), chance.randrange(30, 50)):
        running = project.spawn(*command)
        wait_for_receipts(running, labels, goal)
        running.kill()
        running.communicate()
    assert resume(project, *command)["shards_kept"] >= 30
    assert project.files() == project.files("quiet")
    assert len(finished(labels)) == 59


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_politely(
    quiet: Project, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """It ends within seconds and says how to go on; what it says, typed as it stands, does."""
    project = start(quiet, tmp_path)
    labels = tmp_path / "labels"
    running = project.spawn(*COMMAND, "--output", "labels")
    wait_for_receipts(running, labels, 3)
    sent = time.monotonic()
    running.send_signal(number)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == code, stderr
    assert time.monotonic() - sent < 10
    assert "Traceback" not in stderr
    last = stderr.splitlines()[-1]
    assert last.startswith("softlabel: stopped; continue with: softlabel infer "), stderr
    expected = quiet.files()
    for name, content in project.files().items():
        assert expected[name] == content
    assert {path.stem for path in labels.glob("part-*.parquet")} == finished(labels)
    assert not (tmp_path / "labels.lease").exists()
    program, *arguments = shlex.split(last.partition("continue with: ")[2])
    assert program == "softlabel"
    assert resume(project, *arguments)["shards_kept"] >= 3
    assert project.files() == expected
