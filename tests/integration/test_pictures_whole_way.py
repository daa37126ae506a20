"""From folders of JPEG pictures of any size to a report, each stage framing them alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import PIL
import pyarrow as pa
import pytest
from PIL import Image

import softlabel
from softlabel.pipeline.inference import trial
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.parquet import write_source_shard
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import SampleBlock
from softlabel.schemas.teacher import Framing

if TYPE_CHECKING:
    from tests.conftest import Command, Project

CLASSES = ("ant", "bee", "cow")
MODEL = (
    "--model=softlabel.pipeline.small_models:conv_net",
    '--model-args={"width": 8, "depth": 2, "channels": 3}',
)
FRAME = ("--height=24", "--width=20", "--resize=28", "--interpolation=bicubic")
FRAMING = Framing(height=24, width=20, channels=3, resize=28, interpolation="bicubic")
TRAIN = ("--epochs=12", "--batch-size=16", "--logger=none", "--source=pictures")


def ok(command: Command, *words: str) -> str:
    outcome = command(*words)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


@pytest.fixture
def pictures(empty_project: Project) -> Project:
    """Eighty pictures of three colours with noise, in a folder a class, no two of one size."""
    random = np.random.default_rng(5)
    for row in range(80):
        label = row % 3
        height, width = random.integers(30, 70, 2)
        pixels = random.integers(0, 90, (height, width, 3))
        pixels[:, :, label] += 120
        path = Path("pictures", CLASSES[label], f"{row:03d}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=85)
    return empty_project


def test_pictures_of_any_size_go_the_whole_way(pictures: Project, command: Command) -> None:
    ok(command, "train-student", *MODEL, *FRAME, *TRAIN, "--output=teacher")
    card = json.loads(Path("teacher/student.json").read_text())
    assert (card["resize"], card["interpolation"], card["height"]) == (28, "bicubic", 24)
    export = ("export", "--model=teacher/student.json", "--output=teacher.onnx")
    ok(command, *export, "--samples=pictures")
    infer = ("infer", "--teacher=teacher.onnx", "--source=pictures")
    ok(command, *infer, "--output=labels")
    labels = softlabel.open("labels")
    assert labels.classes == CLASSES
    assert labels.manifest.statistics.correct >= 75
    plan = json.loads(Path("labels/plan.json").read_text())
    assert plan["execution"]["pillow"] == PIL.__version__
    verify = ("verify", "--labels=labels", "--source=pictures", "--teacher=teacher.onnx")
    assert "replay" in ok(command, *verify)
    # The student sees them smaller than the teacher did.
    small = ("--height=16", "--width=16", "--resize=18", "--interpolation=bilinear")
    kd = ("--loss=kd", "--labels=labels", "--output=models/students/kd")
    ok(command, "train-student", *MODEL, *small, *TRAIN, *kd)
    evaluate = ("evaluate", "--models=models/students", "--source=pictures", "--labels=labels")
    ok(command, *evaluate, "--output=reports")
    measured = json.loads(Path("reports/evaluate.json").read_text())
    assert measured["students"][0]["accuracy"] > 0.9
    assert measured["label_set"]["accuracy"] == labels.manifest.statistics.correct / 80
    report = (
        "report",
        "--labels=labels",
        "--source=pictures",
        "--evaluation=reports",
    )
    ok(command, *report, "--output=reports/report.html")


def test_workers_change_no_byte(pictures: Project, command: Command) -> None:
    ok(command, "train-student", *MODEL, *FRAME, *TRAIN[1:], "--epochs=1", "--output=teacher")
    ok(command, "export", "--model=teacher/student.json", "--output=teacher.onnx")
    flags = ("infer", "--teacher=teacher.onnx", "--source=pictures", "--allow-bad-teacher")
    for workers in (0, 1, 2, 4):
        ok(command, *flags, f"--workers={workers}", f"--output=labels-{workers}")
    wanted = pictures.files("labels-0")
    assert all(pictures.files(f"labels-{workers}") == wanted for workers in (1, 2, 4))


def test_pictures_that_nobody_scales_are_told_of(pictures: Project, command: Command) -> None:
    outcome = command("train-student", *MODEL, *TRAIN, "--output=teacher")
    assert outcome.code == 3
    (line,) = [text for text in outcome.stderr.splitlines() if "error" in text]
    assert "pictures/" in line
    assert ".jpg" in line
    assert "--interpolation" in line


def test_a_picture_that_cannot_be_read_stops_the_run(pictures: Project, command: Command) -> None:
    ok(command, "train-student", *MODEL, *FRAME, *TRAIN[1:], "--epochs=1", "--output=teacher")
    ok(command, "export", "--model=teacher/student.json", "--output=teacher.onnx")
    bad = Path("pictures/bee/004.jpg")
    bad.write_bytes(bad.read_bytes()[:400])
    flags = ("infer", "--teacher=teacher.onnx", "--source=pictures", "--allow-bad-teacher")
    outcome = command(*flags, "--output=labels")
    assert outcome.code == 3
    assert "'bee/004.jpg'" in outcome.stderr
    assert not Path("labels/labelset.json").exists()


def test_a_grey_first_picture_drops_no_colour(pictures: Project, command: Command) -> None:
    Image.open("pictures/ant/000.jpg").convert("L").save("pictures/ant/000.jpg")
    ok(command, "train-student", *MODEL, *FRAME, *TRAIN[1:], "--epochs=1", "--output=teacher")
    assert json.loads(Path("teacher/student.json").read_text())["channels"] == 3


def test_validation_is_seen_as_the_student_sees_it(pictures: Project, command: Command) -> None:
    """Its folder orders the classes otherwise, its pictures have another size."""
    source = open_source(Path("pictures")).framed(FRAMING, "the test")
    segments = [Segment(source=file.name, first=0, rows=file.rows) for file in source.files]
    block = source.read(segments)
    order = ("cow", "ant", "bee")
    labels = [order.index(CLASSES[label]) for label in block.labels.to_pylist()]
    turned = SampleBlock(block.keys, block.inputs, pa.array(labels, pa.int32()))
    Path("stored").mkdir()
    write_source_shard(Path("stored/part-00000.parquet"), turned, order)
    train = ("train-student", *MODEL, "--epochs=12", "--batch-size=16", "--logger=none")
    ok(command, *train, "--source=stored", "--validation=stored", "--output=one")
    frame = ("--height=24", "--width=20", "--interpolation=bicubic", "--resize=28")
    ok(command, *train, *frame, "--source=pictures", "--validation=stored", "--output=two")
    for folder in ("one", "two"):
        epochs = json.loads(Path(folder, "train.json").read_text())["history"]
        assert epochs[-1]["validation_accuracy"] > 0.9, folder
    small = ("--height=16", "--width=16", "--interpolation=bicubic")
    outcome = command(*train, *small, "--source=pictures", "--validation=stored")
    assert outcome.code == 3
    assert (
        "stored: has pictures of 24x20 with 3 channels, the student takes 16x16" in outcome.stderr
    )


def test_a_teacher_that_knows_one_class_is_no_teacher(
    pictures: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source stands in the order of its classes: its beginning would agree with it."""
    monkeypatch.setattr(trial, "TRIED_ROWS", 16)
    ok(command, "train-student", *MODEL, *FRAME, *TRAIN, "--output=teacher")
    ok(command, "export", "--model=teacher/student.json", "--output=teacher.onnx")
    model = onnx.load("teacher.onnx")
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [3] and tensor.name.endswith("bias"):
            bias = np.array([1e4, 0, 0], np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(bias, tensor.name))
    onnx.save(model, "teacher.onnx")
    infer = ("infer", "--teacher=teacher.onnx", "--source=pictures", "--batch-size=8")
    outcome = command(*infer, "--output=labels")
    assert outcome.code == 1, outcome.stderr
    assert "chance is 33.3%" in outcome.stderr
