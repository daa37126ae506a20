"""convert and merge killed while they write, then started again: the bytes of a run left alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Project

PATIENCE = 120
SHARDS = 100
COMMANDS = {
    "codec": ("convert", "--codec", "dense-u8", "--output", "out"),
    "keys": ("convert", "--keys", "keys", "--output", "out"),
    "tars": ("convert", "--layout", "sidecar", "--output", "out"),
    "merge": ("merge", "--labels", "labels", "--labels", "labels", "--output", "out"),
}


@pytest.fixture(scope="module")
def labelled(make_project: Callable[[], Project]) -> Project:
    """A project of 800 rows with `labels` in 100 shards."""
    project = make_project()
    project.source(shards=(800,))
    project.teacher()
    outcome = project.run("infer", "--batch-size", "8", "--shard-rows", "8")
    assert outcome.code == 0, outcome.stderr
    keys = [f"sample-{row:06d}\n" for row in range(0, 800, 2)]
    (project.root / "keys").write_text("".join(keys))
    return project


def kill_in(project: Project, command: tuple[str, ...], shards: int) -> int:
    """Start the command, kill it once `shards` are finished; how many are then."""
    running = project.spawn(*command)
    wait_for_receipts(running, project.root / "out", shards)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    running.communicate()
    assert not (project.root / "out/labelset.json").exists()
    return len(list((project.root / "out").glob("part-*.json")))


def wait_for_receipts(running: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(list(folder.glob("part-*.json"))) < count:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_sigkill_at_chance_moments(
    labelled: Project, tmp_path: Path, command: tuple[str, ...]
) -> None:
    quiet = labelled.copy(tmp_path / "quiet")
    assert quiet.run(*command).code == 0
    project = labelled.copy(tmp_path / "killed")
    chance = random.Random(11)
    whole = 0
    for point in (chance.randrange(1, 35), chance.randrange(50, 80)):
        finished = kill_in(project, command, point)
        assert finished >= max(point, whole)
        whole = finished
    outcome = project.run(*command, "--json")
    assert outcome.code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["shards_kept"] == whole < SHARDS
    assert project.files("out") == quiet.files("out")
    assert not (project.root / "out.lease").exists()


def test_a_second_writer_is_refused(labelled: Project, tmp_path: Path) -> None:
    project = labelled.copy(tmp_path / "two")
    running = project.spawn(*COMMANDS["codec"])
    wait_for_receipts(running, project.root / "out", 2)
    running.send_signal(signal.SIGSTOP)
    try:
        before = project.files("out")
        for command in (COMMANDS["codec"], (*COMMANDS["merge"], "--if-different", "replace")):
            outcome = project.run(*command)
            assert outcome.code == 4, outcome.stderr
            assert f"held by process {running.pid}" in outcome.stderr
        assert project.files("out") == before
        running.send_signal(signal.SIGCONT)
        assert running.wait(PATIENCE) == 0
    finally:
        running.kill()
        running.communicate()
