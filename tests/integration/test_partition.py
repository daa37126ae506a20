"""Shares of one run at the same time in one folder: together the bytes of a run that is alone."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Command, Project

COMMAND = ("infer", "--batch-size", "8", "--shard-rows", "32", "--output", "labels")
SHARDS = 32


@pytest.fixture(scope="module")
def quiet(make_project: Callable[[], Project]) -> Project:
    """A project of 1,000 rows whose labels/ were made by one run."""
    project = make_project()
    project.source(shards=(520, 480))
    project.teacher(work=1500)
    assert project.run(*COMMAND).code == 0
    return project


@pytest.fixture
def project(quiet: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("data", "models"):
        shutil.copytree(quiet.root / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return type(quiet)(tmp_path)


def spawn(project: Project, share: str, *more: str) -> subprocess.Popen[str]:
    return project.spawn(*COMMAND, "--partition", share, *more)


def ended(running: list[subprocess.Popen[str]]) -> list[str]:
    """What all of them said on stdout, once they have ended well."""
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * len(running), results
    return [stdout for stdout, _ in results]


def wait_for(condition: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def receipts(project: Project, index: int, parts: int) -> int:
    """How many shards of this share have a receipt."""
    numbers = range(index, SHARDS, parts)
    return sum((project.root / f"labels/part-{number:05d}.json").exists() for number in numbers)


def stopped_share(project: Project, index: int, parts: int) -> subprocess.Popen[str]:
    """A share that has begun to write, stopped so that it cannot end by itself."""
    running = spawn(project, f"{index}/{parts}")
    wait_for(lambda: receipts(project, index, parts) > 0, running)
    running.send_signal(signal.SIGSTOP)
    return running


def beside(project: Project) -> list[str]:
    return sorted(path.name for path in project.root.iterdir())


def test_four_at_once(project: Project, quiet: Project) -> None:
    said = ended([spawn(project, f"{index}/4") for index in range(4)])
    assert project.files() == quiet.files()
    assert beside(project) == ["data", "labels", "models"]
    complete = [text.startswith("wrote labels: 1,000 rows in 32 shards") for text in said]
    assert any(complete)
    for text, whole in zip(said, complete, strict=True):
        assert whole or "of labels is whole: " in text


def test_one_after_the_other(project: Project, quiet: Project, command: Command) -> None:
    for index in (2, 0):
        outcome = command(*COMMAND, "--partition", f"{index}/3")
        assert f"share {index}/3 of labels is whole: " in outcome.stdout
    assert "the set is unfinished: 11 shards of other shares missing" in outcome.stdout
    assert not Path("labels/labelset.json").exists()
    report = json.loads(command(*COMMAND, "--partition=1/3", "--json").stdout)
    assert (report["rows"], report["rows_written"]) == (1000, 10 * 32 + 8)
    assert project.files() == quiet.files()
    # Nothing is left to do, in the same or in other shares.
    for share in ("1/3", "7/9", "90/100"):
        assert command(*COMMAND, "--partition", share).code == 0
    assert project.files() == quiet.files()


def test_more_shares_than_shards(project: Project, quiet: Project, command: Command) -> None:
    outcome = command(*COMMAND, "--partition=50/60")
    assert outcome.code == 0
    assert "0 rows in 0 shards" in outcome.stdout
    assert command(*COMMAND).code == 0
    assert project.files() == quiet.files()


@pytest.mark.slow
def test_a_killed_share_is_run_again_beside_the_others(project: Project, quiet: Project) -> None:
    victim = stopped_share(project, 1, 3)
    others = [spawn(project, f"{index}/3") for index in (0, 2)]
    victim.kill()
    victim.communicate()
    again = spawn(project, "1/3")
    ended([*others, again])
    assert project.files() == quiet.files()
    assert beside(project) == ["data", "labels", "models"]


def test_all_that_end_together_find_the_set_complete(project: Project, quiet: Project) -> None:
    shutil.copytree(quiet.root / "labels", "labels")
    for name in ("labelset.json", "part-00003.json", "part-00009.parquet"):
        Path("labels", name).unlink()
    ended([spawn(project, f"{index}/4") for index in range(4)])
    assert project.files() == quiet.files()
    assert beside(project) == ["data", "labels", "models"]


@pytest.mark.slow
def test_who_may_not_write_beside_a_share(project: Project, quiet: Project) -> None:
    running = stopped_share(project, 1, 4)
    try:
        before = project.files()
        for more in (["--partition", "1/4"], [], ["--overwrite"], ["--partition", "0/3"]):
            outcome = project.run(*COMMAND, *more)
            assert outcome.code == 4, outcome.stderr
            assert f"held by process {running.pid} on " in outcome.stderr.splitlines()[-1]
            assert "labels.lease-1-of-4" in outcome.stderr
            assert project.files() == before
    finally:
        running.send_signal(signal.SIGCONT)
    ended([running, *(spawn(project, f"{index}/4") for index in (0, 2, 3))])
    assert project.files() == quiet.files()


def test_no_share_writes_beside_the_whole_run(project: Project, quiet: Project) -> None:
    running = project.spawn(*COMMAND)
    wait_for(lambda: receipts(project, 0, 1) > 0, running)
    running.send_signal(signal.SIGSTOP)
    try:
        outcome = project.run(*COMMAND, "--partition", "3/4")
        assert outcome.code == 4
        assert f"labels.lease: held by process {running.pid} on " in outcome.stderr
    finally:
        running.send_signal(signal.SIGCONT)
    ended([running])
    assert project.files() == quiet.files()


@pytest.mark.slow
def test_a_whole_run_ends_what_dead_shares_began(project: Project, quiet: Project) -> None:
    running = stopped_share(project, 1, 4)
    running.kill()
    running.communicate()
    assert (project.root / "labels.lease-1-of-4").exists()
    assert project.run(*COMMAND).code == 0
    assert project.files() == quiet.files()
    assert beside(project) == ["data", "labels", "models"]


def test_a_share_of_another_teacher_is_refused(project: Project, command: Command) -> None:
    assert command(*COMMAND, "--partition=0/2").code == 0
    before = project.files()
    project.teacher("models/other.onnx", sharpness=50, work=1500)
    outcome = command(*COMMAND, "--partition=1/2", "--teacher=models/other.onnx")
    assert outcome.code == 3
    assert "different: teacher" in outcome.stderr
    assert project.files() == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--partition=4/4",), "4/4 is none of 4 shares; they are counted from 0, the last is 3/4"),
        (("--partition=-1/4",), "partition"),
        (("--partition=1",), "partition"),
        (("--partition=0/0",), "partition"),
        (("--partition=0/2", "--overwrite"), "goes with neither overwrite nor if_different"),
        (("--partition=0/2", "--if-different=replace"), "remove the folder to start afresh"),
        (("--partition=0/2", "--extend"), "goes with neither extend nor batch_size 'auto'"),
        (("--partition=0/2", "--batch-size=auto"), "give a number for all shares"),
    ],
)
def test_what_is_no_share(
    project: Project, command: Command, flags: tuple[str, ...], said: str
) -> None:
    outcome = command(*COMMAND, *flags)
    assert outcome.code == 2
    assert said in outcome.stderr
    assert beside(project) == ["data", "models"]


@pytest.mark.slow
def test_a_stopped_share_says_how_it_goes_on(project: Project, quiet: Project) -> None:
    running = stopped_share(project, 0, 2)
    running.send_signal(signal.SIGTERM)
    running.send_signal(signal.SIGCONT)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == 143
    assert "continue with: softlabel infer" in stderr.splitlines()[-1]
    assert "--partition 0/2" in stderr.splitlines()[-1]
    ended([spawn(project, f"{index}/2") for index in range(2)])
    assert project.files() == quiet.files()
