"""Features of every position of sequences: with the head once as `factored`, or beside labels."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import softlabel
from softlabel.pipeline.codecs.codec import Columns
from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.inference import runner
from softlabel.pipeline.teachers import session
from softlabel.pipeline.teachers.session import TeacherSession
from softlabel.schemas.labelset import Manifest
from softlabel.schemas.sample import TeacherOutput

if TYPE_CHECKING:
    from tests.conftest import Command, Project

Floats = npt.NDArray[np.float32]
ROWS, TOKENS, CLASSES, WIDTH, LONGEST = 70, 50, 40, 6, 11
RANDOM = np.random.default_rng(0)
EMBEDDED = RANDOM.normal(size=(TOKENS, WIDTH)).astype(np.float32)
WEIGHT = RANDOM.normal(size=(CLASSES, WIDTH)).astype(np.float32)
BIAS = RANDOM.normal(size=CLASSES).astype(np.float32)
NAMES = tuple(f"c{number}" for number in range(CLASSES))
TOLD = (*(f"--classes={name}" for name in NAMES), "--output-kind=logits")
INFER = ("infer", "--teacher=teacher.onnx", "--source=rows", "--batch-size=8", *TOLD)
FACTORED = (*INFER, "--codec=factored")
KEPT = (*INFER, "--codec=topk", "--k=4")
VERIFY = ("verify", "--source=rows", "--teacher=teacher.onnx", "--labels=labels")
MODELS = """
from torch import nn


class Student(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))
"""
node = helper.make_node
FORMS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "MatMul": (
        [node("MatMul", ["h", "w"], ["m"]), node("Add", ["m", "b"], ["logits"])],
        {"w": WEIGHT.T, "b": BIAS[None, None]},
    ),
    "tied to the embedding": (
        [
            node("Transpose", ["w"], ["turned"], perm=[1, 0]),
            node("MatMul", ["h", "turned"], ["logits"]),
        ],
        {"w": WEIGHT},
    ),
    "Gemm": (
        [
            node("Reshape", ["h", "rows"], ["flat"]),
            node("Gemm", ["flat", "w", "b"], ["m"], transB=1),
            node("Shape", ["input_ids"], ["axes"]),
            node("Concat", ["axes", "classes"], ["full"], axis=0),
            node("Reshape", ["m", "full"], ["logits"]),
        ],
        {
            "rows": np.array([-1, WIDTH], np.int64),
            "w": WEIGHT,
            "b": BIAS,
            "classes": np.array([CLASSES], np.int64),
        },
    ),
}


def teacher(
    project: Project,
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any],
    classes: int = CLASSES,
) -> None:
    """Logits `[n, length, classes]`: the last layer over each token's own features, `h`."""
    graph = helper.make_graph(
        [node("Gather", ["table", "input_ids"], ["h"]), *nodes],
        "sequences",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "length", classes])],
        [
            numpy_helper.from_array(np.ascontiguousarray(value), name)
            for name, value in {"table": EMBEDDED, **constants}.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, project.root / "teacher.onnx")


def tokens() -> list[list[int]]:
    random = np.random.default_rng(1)
    lengths = random.integers(0, LONGEST + 1, ROWS)
    return [random.integers(0, TOKENS, size).tolist() for size in lengths]


def expected(bias: Floats | float = BIAS) -> Floats:
    """What the teacher says of all positions, one row's after the other."""
    every = np.concatenate(tokens()).astype(np.int64)
    return np.asarray(EMBEDDED[every] @ WEIGHT.T + bias, np.float32)


@pytest.fixture
def world(empty_project: Project) -> Project:
    """A source of lists of any length, each with the teacher's own answers, and no teacher."""
    answers = expected().argmax(axis=1).tolist()
    labels = [[answers.pop(0) for _ in row] for row in tokens()]
    columns = {
        "id": [f"row-{row}" for row in range(ROWS)],
        "input_ids": pa.array(tokens(), pa.list_(pa.int32())),
        "labels": pa.array(labels, pa.list_(pa.int64())),
    }
    (empty_project.root / "rows").mkdir()
    table = pa.table(columns)
    pq.write_table(table.slice(0, 40), empty_project.root / "rows/part-0.parquet")
    pq.write_table(table.slice(40), empty_project.root / "rows/part-1.parquet")
    return empty_project


def ran(command: Command, *arguments: str) -> str:
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def manifest() -> Manifest:
    return Manifest.model_validate_json(Path("labels/labelset.json").read_bytes())


def check_stored(told: Floats) -> None:
    """Looked up in another order, every position decodes to what was said of it."""
    labels = softlabel.open("labels", check="full")
    order = np.random.default_rng(2).permutation(ROWS)
    block = labels.lookup([f"row-{row}" for row in order]).take(np.argsort(order))
    assert block.lengths is not None
    assert block.lengths.tolist() == [len(row) for row in tokens()]
    assert block.payload["features"].shape == (len(told), WIDTH)
    decoded = block.logits() + block.shift[:, None]
    np.testing.assert_allclose(decoded, told, atol=2e-2)
    assert np.abs(np.roll(decoded, 1, axis=0) - told).max() > 1
    np.testing.assert_array_equal(block.top1, told.argmax(axis=1))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_last_layer(world: Project, command: Command, form: str) -> None:
    teacher(world, *FORMS[form])
    ran(command, *FACTORED)
    check_stored(expected(0 if form == "tied to the embedding" else BIAS))
    identity = manifest().identity
    assert (identity.codec, identity.positions, identity.features) == ("factored", True, None)
    assert max(measured.kl_mean for measured in manifest().fidelity) < 1e-5
    assert "negative control" in ran(command, *VERIFY)


def test_layouts_and_what_reads_them(world: Project, command: Command) -> None:
    teacher(world, *FORMS["MatMul"])
    ran(command, *FACTORED, "--layout=sidecar")
    check_stored(expected())
    ran(command, *VERIFY)
    for layout in ("lists", "packed"):
        ran(command, "convert", "--labels=labels", f"--layout={layout}", f"--output={layout}")
    shown = json.loads(ran(command, "inspect", "--labels=packed", "--rows=1", "--json"))
    assert shown["positions"] == len(expected())
    flags = ("--labels=packed", "--codec=dense-f32", "--layout=packed", "--output=dense")
    ran(command, "convert", *flags)
    blocks = [softlabel.open(name).lookup(["row-9", "row-4"]) for name in ("dense", "packed")]
    np.testing.assert_allclose(blocks[0].logits(), blocks[1].logits(), atol=1e-6)


def test_packed_beside_the_teacher(
    world: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device, where all rows but the first, which are measured, are packed by torch."""
    monkeypatch.setattr(session, "packing_device", lambda provider, options: "cpu")
    monkeypatch.setattr(runner, "measured_rows", lambda shards, grid: 8)
    teacher(world, *FORMS["Gemm"])
    ran(command, *FACTORED)
    check_stored(expected())


@contextlib.contextmanager
def saying_otherwise(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[TeacherOutput], TeacherOutput]
) -> Iterator[None]:
    """Teachers whose output is changed before anybody sees it."""
    run = TeacherSession.run
    with monkeypatch.context() as patched:
        patched.setattr(TeacherSession, "run", lambda self, rows: change(run(self, rows)))
        yield


def shifted(said: TeacherOutput) -> TeacherOutput:
    return said.take(np.roll(np.arange(len(said.logits)), 1))


def with_shifted_features(said: TeacherOutput) -> TeacherOutput:
    assert said.features is not None
    return replace(said, features=np.roll(said.features, 1, axis=0))


def test_features_shifted_by_one_position_do_not_pass(
    world: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features and logits alike: nothing but the replay can see it."""
    teacher(world, *FORMS["MatMul"])
    with saying_otherwise(monkeypatch, shifted):
        ran(command, *FACTORED, "--allow-bad-teacher")
    checked = command(*VERIFY)
    assert checked.code == 1
    assert "the teacher says otherwise" in checked.stdout


def test_plan_tries_it_and_says_how_to_get_it(world: Project, command: Command) -> None:
    teacher(world, *FORMS["MatMul"])
    given = ("--teacher=teacher.onnx", "--source=rows", "--max-kl=1e-4", "--batch-size=8")
    report = json.loads(ran(command, "plan", *given, "--json", *TOLD))
    trials = {trial["name"]: trial for trial in report["trials"]}
    assert trials["factored"]["top1_agreement"] == 1
    assert trials["factored"]["bytes_per_sample"] < trials["dense-u8"]["bytes_per_sample"]
    assert report["recommended"] == "factored"
    assert "--codec factored" in report["command"]


def test_many_classes_get_it_by_default(world: Project, command: Command) -> None:
    many = tuple(f"{number:04d}" for number in range(4097))
    Path("many.txt").write_text("\n".join(many))
    weight = RANDOM.normal(size=(WIDTH, len(many))).astype(np.float32)
    teacher(world, [node("MatMul", ["h", "w"], ["logits"])], {"w": weight}, len(many))
    given = ("infer", "--teacher=teacher.onnx", "--source=rows", "--batch-size=8")
    done = command(*given, "--classes=@many.txt", "--output-kind=logits", "--allow-bad-teacher")
    assert done.code == 0, done.stderr
    assert manifest().identity.codec == "factored"
    assert "codec factored: 6 features a position" in done.stderr


def test_a_student_learns_from_it_as_from_full_logits(
    world: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head is multiplied where the student is: batches that wait hold features alone."""

    def refuse(self: Factored, columns: Columns, T: float) -> Floats:
        raise AssertionError("the host made logits of all classes")

    (world.root / "models.py").write_text(MODELS)
    teacher(world, *FORMS["MatMul"])
    losses = []
    for codec in ("factored", "dense-f32"):
        ran(command, *INFER, f"--codec={codec}", f"--output={codec}")
        taught = ("--model=models:Student", "--source=rows", "--loss=kd", f"--labels={codec}")
        steps = ("--epochs=5", "--batch-size=16", "--accumulate=2", "--learning-rate=0.1")
        flags = ("--temperature=1", "--logger=none", f"--output=on-{codec}", "--json")
        with monkeypatch.context() as patched:
            patched.setattr(Factored, "logits", refuse)
            done = json.loads(ran(command, "train-student", *taught, *steps, *flags))
        losses.append([epoch["loss"] for epoch in done["history"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < 0.8 * losses[0][0]


@pytest.mark.parametrize(
    ("form", "asked", "layout"),
    [
        ("MatMul", "auto", "packed"),
        ("MatMul", "h", "sidecar"),
        ("Gemm", "auto", "lists"),
        ("Gemm", "flat", "packed"),
    ],
)
def test_features_beside_other_codecs(
    world: Project, command: Command, form: str, asked: str, layout: str
) -> None:
    teacher(world, *FORMS[form])
    ran(command, *KEPT, f"--features={asked}", f"--layout={layout}")
    assert manifest().identity.features == WIDTH
    block = softlabel.open("labels").lookup(["row-9", "row-4", "row-60"])
    every = np.array([token for row in (9, 4, 60) for token in tokens()[row]])
    np.testing.assert_array_equal(block.features, EMBEDDED[every].astype(np.float16))
    ran(command, *VERIFY)


def test_other_positions_features_do_not_pass(
    world: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher(world, *FORMS["MatMul"])
    with saying_otherwise(monkeypatch, with_shifted_features):
        ran(command, *KEPT, "--features=h")
    checked = command(*VERIFY)
    assert checked.code == 1
    assert "the teacher's features are others" in checked.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--codec=factored",), "its logits are made by Tanh; pass --codec dense-f16"),
        (
            ("--codec=dense-f16", "--features=auto"),
            "its logits are made by Tanh; name an inner output",
        ),
        (
            ("--codec=dense-f16", "--features=whole"),
            "of shape [8, 6]; features are floating-point numbers with axes of 8 samples and",
        ),
    ],
)
def test_what_is_of_no_position_is_refused(
    world: Project, command: Command, flags: tuple[str, ...], said: str
) -> None:
    whole = node("ReduceMax", ["h", "axis"], ["whole"], keepdims=0)
    bent = [*FORMS["MatMul"][0][:1], whole, node("Tanh", ["m"], ["logits"])]
    teacher(world, bent, {**FORMS["MatMul"][1], "axis": np.array([1], np.int64)})
    refused = command(*INFER, *flags)
    assert refused.code == 3
    assert said in refused.stderr
    assert not Path("labels").exists()


def test_a_student_s_layer_learns_them(world: Project, command: Command) -> None:
    (world.root / "models.py").write_text(MODELS)
    teacher(world, *FORMS["MatMul"])
    ran(command, *KEPT, "--features=h")
    taught = ("--model=models:Student", '--model-args={"width": 8}', "--loss=kd", "--source=rows")
    hints = ("--labels=labels", "--hint-layer=embed", "--hint-weight=50", "--temperature=1")
    steps = ("--batch-size=16", "--epochs=25", "--learning-rate=0.05", "--logger=none")
    curves = []
    for parts in ("1", "3"):
        flags = (*taught, *hints, *steps, f"--accumulate={parts}", f"--output=in-{parts}")
        done = json.loads(ran(command, "train-student", *flags, "--json"))
        curves.append([epoch["hint"] for epoch in done["history"]])
    # A token's own features: who met another position's would not come near.
    assert curves[0][-1] < 0.02 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-2)


@pytest.mark.slow
def test_a_teacher_that_export_wrote(world: Project, command: Command) -> None:
    (world.root / "models.py").write_text(MODELS)
    Path("names.txt").write_text("\n".join(NAMES))
    model = nn.ModuleDict({"embed": nn.Embedding(TOKENS, WIDTH), "head": nn.Linear(WIDTH, CLASSES)})
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (EMBEDDED, WEIGHT, BIAS), strict=True):
            parameter.copy_(torch.from_numpy(value))
    torch.save(model.state_dict(), "weights.pt")
    exported = ("--model=models:Student", '--model-args={"width": 6}', "--classes=@names.txt")
    flags = ("--weights=weights.pt", "--samples=rows", "--output=teacher.onnx")
    ran(command, "export", *exported, *flags)
    flags = ("--source=rows", "--batch-size=8", "--codec=factored")
    ran(command, "infer", "--teacher=teacher.onnx", *flags)
    check_stored(expected())
