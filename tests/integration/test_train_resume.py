"""Training killed and going on: the samples, curve and weights of a training left alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from softlabel.schemas.params import TrainParams
from softlabel.stages import train_student

if TYPE_CHECKING:
    from tests.conftest import Command, Project

EPOCHS, BATCH, STEPS = 3, 64, 8
# Whatever keeps a state of its own.
ALL = {
    "optimizer": "sgd", "warmup_epochs": 0.5, "ema": 0.9, "patience": 1, "clip_norm": 1.0,
    "learning_rate": 0.2,
}  # fmt: skip
# With all that a resume could lose: running means, random numbers, momenta, a falling rate.
STUDENT = """
import os
import signal
from pathlib import Path
from zlib import crc32

from torch import nn


class Watched(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.3),
            nn.Linear(16, num_classes),
        )
        self.batches = 0

    def forward(self, pictures):
        if self.training:
            self.batches += 1
            with open("seen.txt", "a") as file:
                print(*[crc32(picture.numpy().tobytes()) for picture in pictures], file=file)
            if Path("die").exists() and int(Path("die").read_text()) == self.batches:
                Path("die").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if Path("stop").exists() and int(Path("stop").read_text()) == self.batches:
                raise KeyboardInterrupt
        return self.net(pictures)
"""
COMMAND = (
    "train-student", "--model", "watched:Watched", "--loss", "hard", "--epochs", str(EPOCHS),
    "--batch-size", str(BATCH), "--validation", "data/train", "--logger", "none", "--output",
    "student", "--device", "cpu", "--checkpoint-steps", "3",
)  # fmt: skip


@pytest.fixture(scope="module")
def quiet(make_project: Callable[[], Project]) -> Project:
    """A project whose student was trained by a run that nobody disturbed."""
    project = make_project()
    project.source()
    (project.root / "watched.py").write_text(STUDENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        train_student.run(parameters())
    assert len(seen(project.root)) == EPOCHS * STEPS
    return project


@pytest.fixture
def disturbed(quiet: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The same project before any training, entered."""
    shutil.copytree(quiet.root / "data", tmp_path / "data")
    shutil.copy(quiet.root / "watched.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    return type(quiet)(tmp_path)


def seen(root: Path) -> list[str]:
    """The batches trained on, in order."""
    return (root / "seen.txt").read_text().splitlines()


def results(root: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """Weights and curve of the finished student."""
    folder = root / "student"
    assert sorted(path.name for path in folder.iterdir()) == [
        "student.json",
        "student.safetensors",
        "train.json",
    ]
    assert not folder.with_name("student.lease").exists()
    history = json.loads((folder / "train.json").read_text())["history"]
    return (folder / "student.safetensors").read_bytes(), history


def parameters(**changed: Any) -> TrainParams:
    values = {
        "model": "watched:Watched",
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "source": "data/train",
        "validation": "data/train",
        "logger": "none",
        "output": "student",
        "device": "cpu",
        "checkpoint_steps": 3,
    }
    return TrainParams.model_validate(values | changed)


def stop_at(batch: int, **changed: Any) -> None:
    Path("stop").write_text(str(batch))
    with pytest.raises(KeyboardInterrupt):
        train_student.run(parameters(**changed))
    Path("stop").unlink()


@pytest.mark.slow
def test_sigkill_within_an_epoch(quiet: Project, disturbed: Project, command: Command) -> None:
    """Killed in the sixth step of the second epoch, after whose fourth the last checkpoint came."""
    (disturbed.root / "die").write_text(str(STEPS + 6))
    running = disturbed.spawn(*COMMAND)
    _, stderr = running.communicate(timeout=120)
    assert running.returncode == -signal.SIGKILL, stderr
    assert not (disturbed.root / "student/student.json").exists()
    expected = seen(quiet.root)
    assert seen(disturbed.root) == expected[: STEPS + 6]
    (disturbed.root / "seen.txt").unlink()
    outcome = command(*COMMAND)
    assert outcome.code == 0, outcome.stderr
    assert "goes on after 12 of 24 steps" in outcome.stderr
    assert seen(disturbed.root) == expected[STEPS + 4 :]
    assert results(disturbed.root) == results(quiet.root)
    for epoch in range(EPOCHS):
        batches = expected[epoch * STEPS : (epoch + 1) * STEPS]
        assert len({sample for batch in batches for sample in batch.split()}) == 500


@pytest.mark.parametrize("settings", [{}, ALL])
def test_stopped_anywhere_and_again(disturbed: Project, settings: dict[str, Any]) -> None:
    """Every start dies in its fifth batch, and still it ends, at what a quiet one comes to."""
    train_student.run(parameters(**settings))
    quiet = results(disturbed.root)
    shutil.rmtree(disturbed.root / "student")
    starts = 0
    while not (disturbed.root / "student/student.json").exists():
        starts += 1
        Path("stop").write_text("5")
        try:
            train_student.run(parameters(**settings))
        except KeyboardInterrupt:
            continue
    assert starts > 5
    assert results(disturbed.root) == quiet


def test_without_checkpoints_it_starts_afresh(quiet: Project, disturbed: Project) -> None:
    stop_at(STEPS + 2, checkpoint_epochs=0, checkpoint_steps=0)
    assert list((disturbed.root / "student").iterdir()) == []
    (disturbed.root / "seen.txt").unlink()
    train_student.run(parameters())
    assert seen(disturbed.root) == seen(quiet.root)


def test_another_run_is_named_and_kept(disturbed: Project, command: Command) -> None:
    stop_at(STEPS + 2)
    before = disturbed.files("student")
    outcome = command(*COMMAND, "--learning-rate", "0.5", "--label-smoothing", "0.1")
    assert outcome.code == 3
    assert (
        "label_smoothing 0.0 instead of 0.1; learning_rate 0.002 instead of 0.5" in outcome.stderr
    )
    assert "--overwrite" in outcome.stderr
    assert disturbed.files("student") == before
    outcome = command(*COMMAND, "--learning-rate", "0.5", "--if-different", "replace")
    assert outcome.code == 0
    assert "goes on" not in outcome.stderr
    assert results(disturbed.root)[1][0]["learning_rate"] == 0.5


def test_another_source_under_the_same_name(disturbed: Project, command: Command) -> None:
    stop_at(STEPS + 2)
    shutil.rmtree("data")
    disturbed.source(shards=(300, 201))
    outcome = command(*COMMAND)
    assert outcome.code == 3
    assert "source files" in outcome.stderr


def test_overwrite_starts_afresh(quiet: Project, disturbed: Project) -> None:
    stop_at(STEPS + 2)
    (disturbed.root / "seen.txt").unlink()
    train_student.run(parameters(overwrite=True))
    assert seen(disturbed.root) == seen(quiet.root)


def test_a_damaged_checkpoint_is_not_trusted(disturbed: Project, command: Command) -> None:
    stop_at(STEPS + 2)
    path = disturbed.root / "student/training.checkpoint"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    outcome = command(*COMMAND)
    assert outcome.code == 3
    assert "training.checkpoint: is damaged; pass --overwrite" in outcome.stderr


def test_a_full_disk_costs_no_checkpoint(
    quiet: Project, disturbed: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from the fifth checkpoint on; with more room the run goes on from there."""
    synced = os.fsync
    calls = 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(handle)

    monkeypatch.setattr(os, "fsync", full)
    outcome = command(*COMMAND)
    assert outcome.code == 4
    assert "No space left on device" in outcome.stderr
    assert "run the same command again" in outcome.stderr
    assert [path.name for path in (disturbed.root / "student").iterdir()] == ["training.checkpoint"]
    monkeypatch.undo()
    monkeypatch.chdir(disturbed.root)
    outcome = command(*COMMAND)
    assert outcome.code == 0
    assert "goes on after 9 of 24 steps" in outcome.stderr
    assert results(disturbed.root) == results(quiet.root)
