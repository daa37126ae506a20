"""Trainings with more to remember than a model, killed by SIGKILL within an epoch, and going on.

Each is to see the samples, and learn from the targets, that it would have without the kill: the
same weights, curves and label memories to the byte.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from softlabel.schemas.params import InferParams, TrainParams
from softlabel.stages import infer, train_student
from tests.integration.test_train_resume import STUDENT

if TYPE_CHECKING:
    from tests.conftest import Project

EPOCHS, STEPS = 4, 8
COMMON = {
    "model": "watched:Watched", "loss": "kd", "epochs": EPOCHS, "batch_size": 64, "logger": "none",
    "device": "cpu", "checkpoint_steps": 3, "output": "out",
}  # fmt: skip
SELF = {"targets": "self", "soft_weight": 0.8}
PEERS = {"targets": "peers", "members": 2, "temperature": 2.0}
STEPWISE = PEERS | {"exchange_steps": 4, "checkpoint_steps": 4}
HINTS = {"labels": "labels", "hint_layer": "net.1", "hint_weight": 0.5, "hint_epochs": 2}
# The settings; in which batch of its own a member dies, how many batches others had had by then,
# and how many came since the last checkpoint. Of peers, which take turns, the first one dies.
CASES = {
    "self": (SELF, 2 * STEPS + 4, 0, 2),
    "peers": (PEERS, STEPS + 6, STEPS, 2),
    "steps": (STEPWISE, STEPS + 6, STEPS + 4, 2),
    "hints": (HINTS, STEPS + 6, 0, 2),
    "hints beside": (HINTS, 2 * STEPS + 4, 0, 2),
}


def flags(settings: Mapping[str, Any]) -> list[str]:
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def results(root: Path) -> dict[str, Any]:
    """Every file of all members, but the times in their reports."""
    found: dict[str, Any] = {}
    for path in sorted((root / "out").rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            found[str(path.relative_to(root))] = (
                json.loads(data)["history"] if path.name == "train.json" else data
            )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "dies", "others", "lost"), CASES.values(), ids=list(CASES))
def test_sigkill_within_an_epoch(
    project: Project,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    dies: int,
    others: int,
    lost: int,
) -> None:
    (project.root / "watched.py").write_text(STUDENT)
    if "labels" in settings:
        infer.run(InferParams(features="floats", allow_bad_teacher=True))
    disturbed = project.copy(tmp_path_factory.mktemp("disturbed") / "project")
    params = TrainParams.model_validate(COMMON | settings)
    train_student.run(params)
    quiet = (project.root / "seen.txt").read_text().splitlines()
    assert len(quiet) == EPOCHS * STEPS * params.members

    monkeypatch.chdir(disturbed.root)
    Path("die").write_text(str(dies))
    running = disturbed.spawn("train-student", *flags(COMMON | settings))
    _, stderr = running.communicate(timeout=120)
    assert running.returncode == -signal.SIGKILL, stderr
    assert Path("seen.txt").read_text().splitlines() == quiet[: dies + others]
    Path("seen.txt").unlink()
    train_student.run(params)
    assert Path("seen.txt").read_text().splitlines() == quiet[dies + others - lost :]
    assert results(disturbed.root) == results(project.root)
