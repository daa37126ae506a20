"""An exception planted in each part of infer: it ends the run, and whole shards are left."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.conftest import Command, Project

INFER = ("infer", "--batch-size=4", "--shard-rows=16", "--workers=2", "--allow-bad-teacher")
# The command line of its arguments from the third on, in which call number N of a function,
# `module:name` or `module:class.name`, does what the second says.
PROGRAM = """
import functools, importlib, itertools, sys, time
from pathlib import Path
from softlabel import cli
place, number, act, *arguments = sys.argv[1:]
module, _, path = place.partition(":")
*owners, name = path.split(".")
owner = functools.reduce(getattr, owners, importlib.import_module(module))
original, calls = getattr(owner, name), itertools.count(1)

def planted(*given, **options):
    if next(calls) == int(number):
        if act == "raise":
            raise RuntimeError("planted")
        Path("here").touch()
        time.sleep(60)
    return original(*given, **options)

setattr(owner, name, planted)
sys.argv = ["softlabel", *arguments]
cli.main()
"""
PLACES = {
    "reader": ("softlabel.pipeline.sources.source:Source.read", 9, 70),
    "decoder": ("softlabel.pipeline.sources.pictures:decode", 30, 70),
    "provider": ("onnxruntime:InferenceSession.run", 9, 4),
    "encoder": ("softlabel.pipeline.inference.runner:encode_rows", 3, 70),
    "writer": ("softlabel.pipeline.shards.parquet:ParquetWriter.append", 3, 70),
    "end of a shard": ("softlabel.pipeline.shards.parquet:ParquetWriter.finish", 2, 70),
    "digest of the source": ("softlabel.pipeline.sources.source:Source.digest", 2, 70),
    "receipt": ("softlabel.pipeline.inference.runner:publish_bytes", 2, 70),
}


@pytest.fixture(scope="module")
def quiet(make_project: Callable[[], Project]) -> Project:
    """96 pictures in two classes, and their labels by a run that nobody disturbed."""
    project = make_project()
    shape = (8, 8, 3)
    random = np.random.default_rng(3)
    for row in range(96):
        path = project.root / f"data/train/{'ab'[row % 2]}/{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(path)
    project.teacher(classes=("a", "b"), shape=shape)
    assert project.run(*INFER).code == 0
    return project


@pytest.fixture
def project(quiet: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("data", "models"):
        shutil.copytree(quiet.root / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return type(quiet)(tmp_path)


def start(project: Project, place: str, number: int, act: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, place, str(number), act, *INFER],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_whole_shards_alone(project: Project, quiet: Project) -> None:
    """What is there, is what the undisturbed run made; and a shard has its receipt."""
    expected = quiet.files()
    # What is not published stands under another name, and is removed in the end.
    found = {n: content for n, content in project.files().items() if not n.endswith(".tmp")}
    shards = {name.partition(".")[0] for name in found if name.endswith(".parquet")}
    assert shards == {
        name.partition(".")[0] for name in found if name.startswith("part-") and "json" in name
    }
    assert all(expected[name] == content for name, content in found.items())


@pytest.mark.parametrize("part", PLACES)
def test_an_exception_ends_the_run(
    project: Project, quiet: Project, command: Command, part: str
) -> None:
    place, number, code = PLACES[part]
    running = start(project, place, number, "raise")
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == code, stderr
    last = stderr.splitlines()[-1]
    assert last.startswith("softlabel: error: ")
    assert "planted" in last
    assert "Traceback" not in stderr
    if part in ("digest of the source", "receipt"):
        # A shard that was published counts for nothing without its receipt.
        Path("labels/part-00001.parquet").unlink()
    assert not list(Path("labels").glob(".*"))
    assert_whole_shards_alone(project, quiet)
    assert not (project.root / "labels.lease").exists()
    assert command(*INFER).code == 0
    assert project.files() == quiet.files()


@pytest.mark.parametrize("part", ["provider", "decoder"])
def test_a_second_signal_ends_at_once(
    project: Project, quiet: Project, command: Command, part: str
) -> None:
    """The first one waits for what a thread is doing, here for a minute."""
    place, number, _ = PLACES[part]
    running = start(project, place, number, "wait")
    deadline = time.monotonic() + 60
    while not (project.root / "here").exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    try:
        running.send_signal(signal.SIGINT)
        time.sleep(1)
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        _, stderr = running.communicate(timeout=20)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == 143, stderr
    assert stderr.splitlines()[-1].startswith("softlabel: stopped; continue with: softlabel infer ")
    assert "Traceback" not in stderr
    assert_whole_shards_alone(project, quiet)
    assert command(*INFER).code == 0
    assert project.files() == quiet.files()
