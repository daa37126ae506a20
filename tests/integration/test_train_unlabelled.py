"""Students of pictures that a teacher labelled and nobody else did, or only some of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch.utils.data import DataLoader

import softlabel
from softlabel.schemas.errors import ParameterError
from tests.unit.builders import CLASSES, write_labels, write_source

if TYPE_CHECKING:
    from tests.conftest import Command

ROWS, EVERY = 30, 3
TRAIN = (
    "train-student",
    "--model=softlabel.pipeline.small_models:mlp",
    '--model-args={"inputs": 6, "hidden": 8}',
    "--optimizer=sgd",
    "--learning-rate=0.05",
    "--epochs=4",
    "--device=cpu",
    "--logger=none",
    "--json",
)
KD = ("--source=some", "--labels=of-some", "--loss=kd")


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, every in (("some", EVERY), ("none", 1)):
        source = write_source(tmp_path / name, (20, 10), unlabelled=every)
        write_labels(tmp_path / f"of-{name}", source)


def curve(command: Command, output: str, *flags: str) -> list[dict[str, float]]:
    outcome = command(*TRAIN, *flags, f"--output={output}")
    assert outcome.code == 0, outcome.stderr
    history = json.loads(outcome.stdout)["history"]
    return [{name: value for name, value in e.items() if value is not None} for e in history]


def test_what_has_no_hard_label_has_no_part_in_the_hard_term(
    tmp_path: Path, command: Command
) -> None:
    """Without soft term a training on all is one on those that have a label."""
    known = [number for number in range(ROWS) if number % EVERY]
    for number in known:
        write_source(tmp_path / f"each/{number}", (1,), first=number)
    Path("known").mkdir()
    for number in known:
        Path(f"each/{number}/part-00000.parquet").rename(f"known/part-{number:05d}.parquet")
    whole = ("--batch-size=30", "--shuffle-rows=64")
    some = curve(command, "on-some", *KD, *whole, "--soft-weight=0")
    alone = curve(command, "on-known", "--source=known", "--loss=hard", *whole)
    for one, other in zip(some, alone, strict=True):
        assert one["hard"] == pytest.approx(other["hard"], rel=1e-5)


@pytest.mark.parametrize("mixed", [(), ("--mixup=0.4",)])
def test_parts_of_a_batch_make_its_means(command: Command, mixed: tuple[str, ...]) -> None:
    flags = (*KD, *mixed, "--soft-weight=0.3", "--batch-size=10")
    whole = curve(command, "whole", *flags)
    parts = curve(command, "parts", *flags, "--accumulate=4")
    for one, other in zip(parts, whole, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_soft_labels_alone_teach(command: Command) -> None:
    history = curve(command, "on-none", "--source=none", "--labels=of-none", "--loss=kd")
    assert [epoch["hard"] for epoch in history] == [0.0] * 4
    assert history[-1]["soft"] < history[0]["soft"]
    assert "train_accuracy" not in history[-1]


def test_the_dataset_says_which_labels_are_unknown() -> None:
    dataset = softlabel.torch.DistillationDataset("some", "of-some", batch_size=8)
    student, criterion = torch.nn.Linear(6, 4), softlabel.torch.DistillationLoss()
    dkd = softlabel.torch.DistillationLoss(loss="dkd")
    for batch in DataLoader(dataset, batch_size=None):
        numbers = [int(key.removeprefix("n")) for key in batch.keys]
        expected = [n % len(CLASSES) if n % EVERY else -100 for n in numbers]
        assert batch.hard_labels.tolist() == expected
        logits = student(batch.pixels.flatten(1).float())
        assert criterion(logits, batch.targets, batch.hard_labels).isfinite()
        with pytest.raises(ParameterError, match="'dkd' needs every hard label"):
            dkd(logits, batch.targets, batch.hard_labels)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--source=some", "--loss=hard"), "training needs one for every sample, or stored soft"),
        (("--source=some", "--loss=hard", "--labels=of-some"), "has no hard label"),
        (("--source=some", "--loss=kd", "--targets=self"), "has no hard label"),
        (("--source=some", "--loss=kd", "--targets=peers", "--members=2"), "has no hard label"),
        ((*KD[:2], "--loss=dkd"), "has no hard label, and loss 'dkd' needs one everywhere"),
        ((*KD[:2], "--loss=dkd", "--mixup=0.4"), "loss 'dkd' needs one everywhere"),
    ],
)
def test_what_needs_every_hard_label(command: Command, flags: tuple[str, ...], said: str) -> None:
    outcome = command(*TRAIN, *flags, "--output=refused")
    assert outcome.code == 3
    assert said in outcome.stderr
    assert not Path("refused/student.json").exists()
