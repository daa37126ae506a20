"""Teachers and students that speak of each position of a picture, from pictures to figures."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import softlabel
from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.shards import tally
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.export import export_onnx
from softlabel.pipeline.teachers.models import PictureModel
from softlabel.pipeline.teachers.position_model import with_positions
from softlabel.pipeline.teachers.session import TeacherSession
from softlabel.pipeline.teachers.teacher import reopen_teacher
from softlabel.pipeline.training import join
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import TeacherOutput
from softlabel.schemas.teacher import Preprocess, TeacherSpec
from tests.unit.encoded import segments

if TYPE_CHECKING:
    from tests.conftest import Command, Project

ROWS, HEIGHT, WIDTH = 90, 16, 24
GRID = (8, 12)
CLASSES = ("ground", "tree", "pond")
NAMES = tuple(f"--classes={name}" for name in CLASSES)
GREY = tuple(f"--{name}=0.5" for name in ("mean", "std") for _ in range(3))
MODULE = "segmenters:net"
EXPORT = ("export", f"--model={MODULE}", "--weights=net.safetensors", *NAMES, *GREY)
SIZE = (f"--height={HEIGHT}", f"--width={WIDTH}", "--channels=3")
INFER = ("infer", "--teacher=models/teacher.onnx", "--batch-size=16")
TRAIN = ("train-student", f"--model={MODULE}", "--logger=none", "--learning-rate=0.03")
MODELS = '''
from torch import nn


class Net(nn.Module):
    """Colours to classes, at every second pixel or each; wrapped as torchvision's segmenters do."""

    def __init__(self, num_classes, width, wrapped, last, stride):
        super().__init__()
        self.see = nn.Conv2d(3, width, 3, stride=stride, padding=1)
        self.say = nn.Conv2d(width, num_classes, 1)
        self.wrapped, self.last = wrapped, last

    def forward(self, x):
        said = self.say(self.see(x).relu())
        if self.last:
            said = said.permute(0, 2, 3, 1)
        return {"out": said} if self.wrapped else said


def net(num_classes, width=8, wrapped=False, last=False, stride=2):
    return Net(num_classes, width, wrapped, last, stride)
'''

Masks = npt.NDArray[np.uint8]


def scenes(rows: int, height: int, width: int, seed: int) -> tuple[npt.NDArray[np.uint8], Masks]:
    """Noise with a green and a blue square in each, their masks, and a border without labels."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 120, (rows, height, width, 3))
    masks = np.zeros((rows, height, width), np.uint8)
    for row in range(rows):
        for label in (1, 2):
            top, left = random.integers(0, (height - 6, width - 6))
            pixels[row, top : top + 6, left : left + 6, label] += 110
            masks[row, top : top + 6, left : left + 6] = label
    masks[:, 1] = 255
    return pixels.astype(np.uint8), masks


def at_positions(masks: Masks) -> npt.NDArray[np.int64]:
    """The labels of the grid's positions, -1 where there is none: the pixels at their centres."""
    labels = masks[:, 1::2, 1::2].astype(np.int64)
    labels[labels == 255] = -1
    return labels


class Trained(NamedTuple):
    """Weights of a net that was trained on other scenes, and its teacher file."""

    weights: dict[str, Tensor]
    teacher: bytes


@pytest.fixture(scope="module")
def trained() -> Trained:
    pixels, masks = scenes(120, HEIGHT, WIDTH, seed=7)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    y = torch.from_numpy(at_positions(masks))
    space: dict[str, Any] = {}
    exec(MODELS, space)
    torch.manual_seed(0)
    model: nn.Module = space["net"](len(CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y, ignore_index=-1).backward()
        optimizer.step()
    grey = (0.5,) * 3
    found = with_positions(PictureModel(model, grey, grey), (HEIGHT, WIDTH, 3), len(CLASSES))
    assert found is not None
    spec = TeacherSpec(
        preprocess=Preprocess(
            height=HEIGHT,
            width=WIDTH,
            channels=3,
            mean=grey,
            std=grey,
            layout="NHWC",
            in_graph=True,
        ),
        classes=CLASSES,
        output="logits",
        positions=True,
        grid=found[1],
    )
    return Trained(model.state_dict(), export_onnx(found[0], spec, 20))


@pytest.fixture
def project(empty_project: Project, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The trained net's module, weights and file, and scenes in two files, their masks beside."""
    Path("segmenters.py").write_text(MODELS)
    # Another project's module of this name may be loaded.
    monkeypatch.delitem(sys.modules, "segmenters", raising=False)
    save_file(trained.weights, "net.safetensors")
    Path("models").mkdir()
    Path("models/teacher.onnx").write_bytes(trained.teacher)
    pixels, masks = scenes(ROWS, HEIGHT, WIDTH, seed=1)
    Path("scenes").mkdir()
    for name, rows in {"part-0": slice(0, 50), "part-1": slice(50, ROWS)}.items():
        np.save(f"scenes/{name}.npy", pixels[rows])
        np.save(f"scenes/{name}.labels.npy", masks[rows])
    return empty_project


def ok(command: Command, *words: str) -> str:
    outcome = command(*words)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def refused(command: Command, code: int, words: tuple[str, ...], *said: str) -> None:
    outcome = command(*words)
    assert outcome.code == code, outcome.stderr
    (line,) = [text for text in outcome.stderr.splitlines() if "error:" in text]
    assert [word for word in said if word not in line] == [], line


@pytest.mark.slow
def test_from_pictures_and_masks_to_a_student(project: Project, command: Command) -> None:
    ok(command, *EXPORT, *SIZE, "--samples=scenes")
    ok(command, *INFER, "--source=scenes", "--codec=topk", "--k=2")
    labels = softlabel.open("labels", check="full")
    assert labels.manifest.identity.grid == GRID
    assert labels.manifest.statistics.labelled == ROWS * (GRID[0] - 1) * GRID[1]
    assert labels.manifest.statistics.correct > 0.9 * labels.manifest.statistics.labelled
    verify = ("verify", "--source=scenes", "--teacher=models/teacher.onnx")
    assert "negative control" in ok(command, *verify)
    assert "90 pictures with 8x12 positions each" in ok(command, "inspect")

    given = ("--source=scenes", "--labels=labels", "--batch-size=10", "--validation=scenes")
    narrow = ('--model-args={"width": 6, "wrapped": true}', "--epochs=8", "--json")
    kd = ("--loss=kd", "--temperature=1", "--accumulate=2", "--output=models/students/kd")
    told = json.loads(ok(command, *TRAIN, *given, *narrow, *kd, "--export-onnx"))
    assert told["history"][-1]["validation_accuracy"] > 0.87
    hard = ("--loss=hard", "--output=models/students/hard")
    ok(command, *TRAIN, *given, *narrow, *hard)
    evaluate = ("evaluate", "--source=scenes", "--labels=labels", "--json")
    measured = json.loads(ok(command, *evaluate))
    assert [student["name"] for student in measured["students"]] == ["hard", "kd"]
    for student in measured["students"]:
        assert student["rows"] == labels.manifest.statistics.labelled
        assert student["against_labels"]["agreement"] > 0.87
    # The student is a teacher as any other.
    again = ("infer", "--teacher=models/students/kd/student.onnx", "--source=scenes")
    ok(command, *again, "--batch-size=16", "--output=of-the-student")
    said = softlabel.open("of-the-student").manifest.statistics
    accuracy = measured["students"][1]["accuracy"]
    assert said.correct / said.labelled == pytest.approx(accuracy, abs=1e-3)


def test_every_position_meets_its_own_label(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(command, *INFER, "--source=scenes", "--codec=dense-f32")
    labels = open_labelset(Path("labels"))
    identity = labels.manifest.identity
    session = TeacherSession(reopen_teacher(Path("models/teacher.onnx"), identity), "cpu", 16)
    source = open_source(Path("scenes")).fed(identity, "the teacher").naming(CLASSES)
    masks = np.concatenate([np.load(f"scenes/part-{part}.labels.npy") for part in (0, 1)])
    hard = dict(zip(source.keys(segments(source)).to_pylist(), at_positions(masks), strict=True))
    # Seven pictures at a time, for the sake of memory.
    monkeypatch.setattr(join, "UNIT_POSITIONS", 7 * GRID[0] * GRID[1])
    read, together = Source.read_stored, list[int]()

    def counted(self: Source, unit: Sequence[Segment], rows: npt.NDArray[np.int64]) -> ShardRows:
        together.append(len(rows))
        return read(self, unit, rows)

    monkeypatch.setattr(Source, "read_stored", counted)
    seen = []
    for batch in JoinedSamples(source, labels).epoch(
        seed=3, epoch=0, batch_size=16, shuffle_rows=60
    ):
        logits = session.run(batch.pixels).logits
        shifted = logits - logits.max(axis=1, keepdims=True)
        assert batch.teacher is not None
        np.testing.assert_allclose(batch.teacher, shifted, atol=1e-5)
        keys = batch.keys.to_pylist()
        own = np.concatenate([hard[key].ravel() for key in keys])
        assert np.array_equal(np.maximum(batch.labels, -1), own)
        seen += keys
    assert sorted(seen) == sorted(hard)
    assert seen != list(hard)
    assert max(together) == 7


def test_fidelity_is_of_many_pictures(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones may be easy, and what `verify` allows others rests on it."""
    each = GRID[0] * GRID[1]
    monkeypatch.setattr(tally, "FIDELITY_POSITIONS", 20 * each)
    ok(command, *INFER, "--source=scenes", "--shard-rows=48")
    labels = softlabel.open("labels")
    assert len(labels.manifest.shards) == 2
    assert labels.manifest.fidelity[0].rows == 20 * each


def test_labels_shifted_by_one_picture_do_not_pass(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, each = TeacherSession.run, GRID[0] * GRID[1]
    with monkeypatch.context() as patched:
        patched.setattr(
            TeacherSession,
            "run",
            lambda self, rows: TeacherOutput(np.roll(run(self, rows).logits, each, axis=0)),
        )
        ok(command, *INFER, "--source=scenes", "--allow-bad-teacher")
    checked = command("verify", "--source=scenes", "--teacher=models/teacher.onnx")
    assert checked.code == 1
    assert "the teacher says otherwise" in checked.stdout


def test_the_negative_control_moves_whole_pictures(project: Project, command: Command) -> None:
    """Neighbours in a picture of one colour say the same: moved by one, nothing would change."""
    for part in (0, 1):
        plain = np.zeros((45, HEIGHT, WIDTH, 3), np.uint8)
        plain[::2, ..., 1] = 200
        np.save(f"scenes/part-{part}.npy", plain)
        Path(f"scenes/part-{part}.labels.npy").unlink()
    ok(command, *INFER, "--source=scenes", "--codec=topk", "--k=1")
    ok(command, "verify", "--source=scenes", "--teacher=models/teacher.onnx")


def encoded(pixels: npt.NDArray[np.uint8], kind: str = "PNG") -> dict[str, Any]:
    """As Hugging Face writes pictures; grey ones with a palette, as Pascal VOC has its masks."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if pixels.ndim == 2 and kind == "PNG":
        image.putpalette(np.random.default_rng(0).bytes(768))
    image.save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def write_parquet(masks: list[dict[str, Any] | None], pictures: list[dict[str, Any]]) -> None:
    Path("voc").mkdir()
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"pixel_values": pa.array(pictures, kind), "label": pa.array(masks, kind)}
    pq.write_table(pa.table(columns), "voc/train.parquet", row_group_size=7)


def test_encoded_masks_of_any_size(project: Project, command: Command) -> None:
    random = np.random.default_rng(2)
    sizes = random.integers(20, 50, (40, 2)).tolist()
    drawn = [scenes(1, height, width, seed) for seed, (height, width) in enumerate(sizes)]
    pictures = [encoded(pixels[0]) for pixels, _ in drawn]
    masks: list[dict[str, Any] | None] = [encoded(mask[0]) for _, mask in drawn]
    masks[3] = None
    masks[5] = encoded(drawn[5][1][0], "JPEG")
    masks[6] = encoded(drawn[6][0][0])
    masks[7] = encoded(drawn[7][1][0][1:])
    write_parquet(masks, pictures)
    ok(command, *EXPORT, *SIZE, "--interpolation=bilinear")
    infer = (*INFER, "--source=voc", "--codec=dense-f16")
    refused(command, 3, infer, "'train-00000005'", "JPEG", "write PNG")
    ok(command, *infer, "--on-bad-sample=skip")
    reasons = {reject.key: reject.reason for reject in softlabel.open("labels").rejects}
    assert list(reasons) == [f"train-0000000{row}" for row in (5, 6, 7)]
    assert "in colour" in reasons["train-00000006"]
    assert "mask" in reasons["train-00000007"]

    labels = softlabel.open("labels", check="full")
    block = labels.lookup(["train-00000003", "train-00000009"])
    unknown, known = block.labels[: block.starts()[1]], block.labels[block.starts()[1] :]
    assert unknown.null_count == len(unknown)
    # An oracle of its own for the pixel at the centre.
    mask = torch.from_numpy(drawn[9][1])[None]
    nearest = nn.functional.interpolate(mask, GRID, mode="nearest-exact").ravel().tolist()
    assert known.fill_null(255).to_pylist() == nearest

    # A student that sees the same part of each picture, in half the size, has the same labels.
    smaller = ("--height=8", "--width=12", '--model-args={"stride": 1}', "--epochs=8")
    kd = ("--loss=kd", "--labels=labels", "--source=voc", "--batch-size=8", "--temperature=1")
    ok(command, *TRAIN, *kd, *smaller, "--interpolation=bilinear", "--output=models/students/kd")
    evaluate = ("evaluate", "--source=voc", "--labels=labels", "--json")
    (student,) = json.loads(ok(command, *evaluate))["students"]
    assert student["rows"] == labels.manifest.statistics.labelled
    assert student["accuracy"] > 0.8
    cropped = ("--resize=16", "--interpolation=bilinear")
    refused(command, 3, (*TRAIN, *kd, *smaller, *cropped), "another part of each picture")


def foreign(*shape: int | str, order: tuple[int, ...] = (0, 1, 2)) -> None:
    """The teacher's file without metadata, its output transposed and in another shape."""
    model = onnx.load("models/teacher.onnx")
    del model.metadata_props[:]
    (output,) = model.graph.output
    known = [size if isinstance(size, int) else 0 for size in shape]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, *known]), "shape"))
    moved = helper.make_node("Transpose", [output.name], ["moved"], perm=order)
    model.graph.node.extend([moved, helper.make_node("Reshape", ["moved", "shape"], ["said"])])
    del model.graph.output[:]
    said = helper.make_tensor_value_info("said", TensorProto.FLOAT, ["n", *shape])
    model.graph.output.append(said)
    onnx.save(model, "foreign.onnx")


FOREIGN = ("infer", "--teacher=foreign.onnx", "--batch-size=16", "--source=scenes", *NAMES)
TOLD = ("--input-layout=NHWC", "--output-kind=logits", "--codec=dense-f32")


@pytest.mark.parametrize(
    ("shape", "order"),
    [((96, 3), (0, 1, 2)), ((3, 8, 12), (0, 2, 1)), ((8, 12, 3), (0, 1, 2))],
    ids=["positions", "classes first", "classes last"],
)
def test_anybodys_file_says_the_same(
    project: Project, command: Command, shape: tuple[int, ...], order: tuple[int, ...]
) -> None:
    foreign(*shape, order=order)
    ok(command, *FOREIGN, *TOLD, "--output=theirs")
    ok(command, *INFER, "--source=scenes", "--codec=dense-f32")
    (ours,), (theirs,) = (softlabel.open(name).batches(ROWS) for name in ("labels", "theirs"))
    assert np.array_equal(ours.logits(), theirs.logits())
    assert softlabel.open("theirs").manifest.identity.grid == GRID
    ok(command, "verify", "--labels=theirs", "--source=scenes", "--teacher=foreign.onnx")


def test_anybodys_file_that_does_not_tell_its_positions(project: Project, command: Command) -> None:
    foreign(3, "height", "width", order=(0, 2, 1))
    refused(command, 3, (*FOREIGN, *TOLD), "'said'", "[?, 3, ?, ?]", "make_dynamic_shape_fixed")
    # Not so many as a picture of 16x24 has in any size: a line of text, for one.
    foreign(32, 9)
    refused(command, 3, (*FOREIGN, *TOLD), "[?, 32, 9]", "3 class names")


def test_sets_of_other_positions_are_not_compared(project: Project, command: Command) -> None:
    foreign(3, 12, 8, order=(0, 2, 1))
    ok(command, *FOREIGN, *TOLD, "--output=turned", "--allow-bad-teacher")
    ok(command, *INFER, "--source=scenes")
    merge = ("merge", "--labels=labels", "--labels=turned", "--output=both")
    refused(command, 3, merge, "turned", "grid")
    kd = (*TRAIN, "--source=scenes", "--loss=kd", "--epochs=1", "--output=models/students/kd")
    ok(command, *kd, "--labels=labels")
    evaluate = ("evaluate", "--source=scenes", "--labels=turned")
    refused(command, 3, evaluate, "8x12 positions", "turned", "12x8 positions")


def test_pictures_in_class_folders_are_labelled_without_masks(
    project: Project, command: Command
) -> None:
    pixels, _ = scenes(4, HEIGHT, WIDTH, seed=3)
    for row, picture in enumerate(pixels):
        folder = Path("pictures", "north" if row % 2 else "south")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{row}.png")
    ok(command, *INFER, "--source=pictures")
    labels = softlabel.open("labels")
    assert labels.classes == CLASSES
    assert labels.manifest.statistics.labelled == 0
    ok(command, "verify", "--source=pictures", "--teacher=models/teacher.onnx")
    student = (*TRAIN, "--source=pictures", "--labels=labels", "--epochs=1")
    ok(command, *student, "--loss=kd", "--soft-weight=1", "--output=student")
    refused(command, 3, (*student, "--loss=hard"), "hard label")


def test_what_goes_with_positions_and_what_does_not(project: Project, command: Command) -> None:
    refused(command, 3, (*INFER, "--source=scenes", "--codec=factored"), "teacher.onnx", "factored")
    refused(command, 3, (*INFER, "--source=scenes", '--augment=["horizontal_flip"]'), "positions")
    ok(command, *INFER, "--source=scenes")
    kd = (*TRAIN, "--source=scenes", "--labels=labels", "--loss=kd", "--epochs=1")
    refused(command, 2, (*kd, "--mixup=0.2"), "mixup", "positions")
    refused(command, 2, (*kd, '--model-args={"stride": 1}'), "16x24 positions", "8x12 positions")
    flat = ("--model=softlabel.pipeline.small_models:mlp", '--model-args={"inputs": 1152}')
    refused(command, 2, (*kd, *flat), "whole pictures", "8x12 positions")
    refused(command, 2, (*kd, flat[0]), "does not take pictures of 16x24")
    with pytest.raises(ParameterError, match="pictures' positions"):
        softlabel.torch.DistillationDataset("scenes", "labels")
    ok(command, "calibrate")
    refused(command, 3, ("report", "--labels=labels"), "report")
