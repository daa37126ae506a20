"""Two infer runs on one folder: one works, the other names it and touches nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from softlabel.pipeline.labelset.lease import lease, lease_path
from softlabel.schemas.errors import LeaseHeld

if TYPE_CHECKING:
    from tests.conftest import Project

COMMAND = ("infer", "--batch-size", "8", "--shard-rows", "32", "--output", "labels")


@pytest.fixture(scope="module")
def quiet(make_project: Callable[[], Project]) -> Project:
    """A project of 1,500 rows whose labels/ were made by a run that was alone."""
    project = make_project()
    project.source(shards=(1500,))
    project.teacher(work=1500)
    assert project.run(*COMMAND).code == 0
    return project


@pytest.fixture
def project(quiet: Project, tmp_path: Path) -> Project:
    for name in ("data", "models"):
        shutil.copytree(quiet.root / name, tmp_path / name)
    return type(quiet)(tmp_path)


def wait_for_shards(project: Project, *running: subprocess.Popen[str]) -> None:
    """Wait until one of these runs has written a few shards."""
    deadline = time.monotonic() + 60
    while not (project.root / "labels/part-00002.json").exists():
        assert any(process.poll() is None for process in running)
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def writer(project: Project) -> Iterator[subprocess.Popen[str]]:
    """An infer that has begun to write, stopped so that it cannot end by itself."""
    running = project.spawn(*COMMAND)
    wait_for_shards(project, running)
    running.send_signal(signal.SIGSTOP)
    yield running
    if running.poll() is None:
        running.kill()
    running.communicate()


def test_the_second_is_refused(
    project: Project, quiet: Project, writer: subprocess.Popen[str]
) -> None:
    before = project.files()
    for flags in ([], ["--overwrite"], ["--if-different", "replace"]):
        outcome = project.run(*COMMAND, *flags)
        assert outcome.code == 4
        last = outcome.stderr.splitlines()[-1]
        assert last.startswith("softlabel: error: ")
        assert f"held by process {writer.pid} on " in last
        assert "labels.lease" in last
        assert "Traceback" not in outcome.stderr
        assert project.files() == before
    writer.send_signal(signal.SIGCONT)
    assert writer.wait(60) == 0
    assert project.files() == quiet.files()
    assert not (project.root / "labels.lease").exists()
    assert project.run(*COMMAND).code == 0


@pytest.mark.parametrize("spelling", ["data/../labels", "LINK", "INSIDE"])
def test_the_folder_by_another_name(
    project: Project, writer: subprocess.Popen[str], spelling: str
) -> None:
    """However the folder is spelt, it is one folder and has one writer."""
    working = project
    if spelling == "LINK":
        (project.root / "linked").symlink_to("labels")
        spelling = "linked"
    elif spelling == "INSIDE":
        working, spelling = type(project)(project.root / "labels"), "."
    before = project.files()
    paths = [str(project.root / name) for name in ("models/teacher.onnx", "data/train")]
    arguments = ("--teacher", paths[0], "--source", paths[1], "--output", spelling)
    outcome = working.run(*COMMAND[:-2], *arguments)
    assert outcome.code == 4, outcome.stderr
    assert f"held by process {writer.pid} on " in outcome.stderr
    assert project.files() == before


def test_a_dead_writer_holds_nothing(
    project: Project, quiet: Project, writer: subprocess.Popen[str]
) -> None:
    writer.kill()
    writer.wait()
    assert (project.root / "labels.lease").exists()
    begin = time.monotonic()
    assert project.run(*COMMAND).code == 0
    assert time.monotonic() - begin < 30
    assert project.files() == quiet.files()
    assert not (project.root / "labels.lease").exists()


@pytest.mark.slow
def test_four_at_once(project: Project, quiet: Project) -> None:
    """The one that writes stands still until the others have ended, however late they came."""
    running = [project.spawn(*COMMAND) for _ in range(4)]
    wait_for_shards(project, *running)
    holder = json.loads((project.root / "labels.lease").read_text())["pid"]
    (writer,) = (process for process in running if process.pid == holder)
    writer.send_signal(signal.SIGSTOP)
    for other in running:
        if other is not writer:
            _, stderr = other.communicate(timeout=120)
            assert other.returncode == 4
            assert f"held by process {holder} " in stderr
    writer.send_signal(signal.SIGCONT)
    writer.communicate(timeout=120)
    assert writer.returncode == 0
    assert project.files() == quiet.files()


@pytest.mark.slow
def test_a_writer_that_lost_its_lease_stops(
    project: Project, writer: subprocess.Popen[str]
) -> None:
    """It slept so long that another host took over: it must notice, and write no more."""
    path = project.root / "labels.lease"
    path.write_text(json.dumps({"host": "other", "hostname": "far", "pid": 1, "token": "t"}))
    shutil.copytree(project.root / "labels", project.root / "before")
    # Slow it down, so that it lives to its next beat.
    writer.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 7
    while writer.poll() is None and time.monotonic() < deadline:
        writer.send_signal(signal.SIGSTOP)
        time.sleep(0.095)
        writer.send_signal(signal.SIGCONT)
        time.sleep(0.005)
    _, stderr = writer.communicate(timeout=60)
    assert writer.returncode == 4, stderr
    assert "took over" in stderr
    assert path.exists()
    assert not (project.root / "labels/labelset.json").exists()


OTHER = {"host": "another-boot", "hostname": "far", "pid": 4711, "token": "x", "beats": 3}


def test_a_living_writer_on_another_host(tmp_path: Path) -> None:
    """Its lock may not reach us, its heartbeat does."""
    path = lease_path(tmp_path / "labels")
    path.write_text(json.dumps(OTHER))
    stop = threading.Event()

    def beat() -> None:
        beats = 3
        while not stop.wait(0.05):
            beats += 1
            scratch = path.with_name("scratch")
            scratch.write_text(json.dumps(OTHER | {"beats": beats}))
            path.write_bytes(scratch.read_bytes())

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with (
            pytest.raises(LeaseHeld, match="held by process 4711 on far"),
            lease(tmp_path / "labels", beat_seconds=0.5),
        ):
            pass
    finally:
        stop.set()
        beating.join()


@pytest.mark.parametrize("left", [json.dumps(OTHER), "", "{", "[1]", "\0" * 40])
def test_what_a_dead_host_left(tmp_path: Path, left: str) -> None:
    path = lease_path(tmp_path / "labels")
    path.write_text(left)
    with lease(tmp_path / "labels", beat_seconds=0.1):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()
