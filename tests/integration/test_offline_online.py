"""A student taught from the store follows the one whose teacher runs in the training loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.teachers.models import PictureModel, build_model
from softlabel.pipeline.teachers.session import TeacherSession
from softlabel.pipeline.teachers.teacher import open_teacher
from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.fabric import make_fabric
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.loop import train
from softlabel.schemas.params import ExportParams, InferParams, PrepareParams, TrainParams
from softlabel.schemas.reports.training import EpochRecord
from softlabel.schemas.sample import Array, TeacherOutput
from softlabel.stages import export, infer, prepare, train_student

STEPS = 50
BATCH = 64
MODELS = "softlabel.pipeline.small_models"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits and a teacher of two epochs: uncertain enough that its soft targets matter."""
    folder = tmp_path_factory.mktemp("world")
    prepare.run(PrepareParams(output=folder / "data", shard_rows=500))
    train_student.run(
        TrainParams(
            model=f"{MODELS}:conv_net",
            model_args={"width": 8, "depth": 2},
            source=folder / "data/train",
            epochs=2,
            logger="none",
            output=folder / "teacher",
        )
    )
    card = folder / "teacher/student.json"
    export.run(ExportParams(model=str(card), output=folder / "teacher.onnx"))
    return folder


def label(world: Path, name: str) -> JoinedSamples:
    params = InferParams(
        teacher=world / "teacher.onnx",
        source=world / "data/train",
        output=world / name,
        batch_size=BATCH,
        allow_bad_teacher=True,
    )
    infer.run(params)
    return JoinedSamples(open_source(params.source), open_labelset(params.output))


def online(world: Path) -> Callable[[TrainingBatch], TrainingBatch]:
    params = InferParams(teacher=world / "teacher.onnx", source=world / "data/train")
    source = open_source(params.source)
    teacher = open_teacher(params.teacher[0], params, source.shape)
    session = TeacherSession(teacher, "cpu", BATCH)
    return lambda batch: replace(batch, teacher=session.run(batch.pixels).logits)


def curve(
    world: Path, samples: JoinedSamples, teach: Callable[[TrainingBatch], TrainingBatch]
) -> Array:
    """The loss of each of the first 50 steps: an epoch of one batch a record."""
    params = TrainParams(
        model=f"{MODELS}:mlp",
        loss="kd",
        labels=world,
        temperature=2.0,
        soft_weight=0.9,
        epochs=STEPS,
        batch_size=BATCH,
        learning_rate=0.01,
    )
    endless = itertools.chain.from_iterable(
        samples.epoch(seed=3, epoch=epoch, batch_size=BATCH, shuffle_rows=700)
        for epoch in itertools.count()
    )
    first = [teach(batch) for batch in itertools.islice(endless, STEPS)]
    torch.manual_seed(0)
    model = PictureModel(build_model(params.model, {"hidden": 16}, 10, 1), (0.5,), (0.5,))
    records: list[EpochRecord] = []

    def batches(epoch: int, start: int) -> Iterator[TrainingBatch]:
        return iter([first[epoch]])

    records += train(params, make_fabric("cpu", "32-true"), model, batches, 1, None)
    return np.array([record.loss for record in records])


def relative_distance(one: Array, other: Array) -> float:
    return float((np.abs(one - other) / np.abs(other)).max())


def test_stored_labels_follow_the_teacher_in_the_loop(world: Path) -> None:
    samples = label(world, "labels")
    offline = curve(world, samples, lambda batch: batch)
    assert len(offline) == STEPS
    assert relative_distance(offline, curve(world, samples, online(world))) < 1e-3


def test_labels_shifted_by_one_row_do_not(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TeacherSession.run
    monkeypatch.setattr(
        TeacherSession,
        "run",
        lambda self, pixels: TeacherOutput(np.roll(run(self, pixels).logits, 1, axis=0)),
    )
    shifted = label(world, "shifted")
    monkeypatch.undo()
    offline = curve(world, shifted, lambda batch: batch)
    assert relative_distance(offline, curve(world, shifted, online(world))) > 1e-3
