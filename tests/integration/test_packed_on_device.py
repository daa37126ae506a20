"""Labels packed where the teacher ran: here the CPU stands for the device, and torch packs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper

import softlabel
from softlabel.pipeline.inference.usable import Slots, read_slots
from softlabel.pipeline.teachers import bound, session
from softlabel.schemas.labelset import Plan, Reject
from softlabel.schemas.teacher import METADATA_KEY, TeacherSpec
from tests.conftest import POISON

if TYPE_CHECKING:
    from tests.conftest import Command, Project

CLASSES = tuple(f"class-{number:03d}" for number in range(100))
TEACHER = Path("models/teacher.onnx")
INFER = ("infer", "--batch-size=32")
SUMS = ("lse", "tail_lse")
# Of 1,500 samples in one shard the first 1,024 are measured.
ROWS, PACKED = 1500, range(1024, 1500)


@pytest.fixture
def many(empty_project: Project) -> Project:
    empty_project.source(shards=(ROWS,), classes=CLASSES)
    empty_project.teacher(classes=CLASSES)
    return empty_project


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Say that torch is beside the teacher; gives the rows that were packed by it."""
    rows: list[int] = []
    pack = bound.pack

    def counted(codec: Any, logits: Any, *others: Any) -> Any:
        rows.append(len(logits))
        return pack(codec, logits, *others)

    monkeypatch.setattr(bound, "pack", counted)
    monkeypatch.setattr(session, "packing_device", lambda provider, options: "cpu")
    yield rows


def whole(folder: str) -> Any:
    (block,) = softlabel.open(folder).batches(ROWS)
    return block


def turn(**spec: Any) -> None:
    """Change the teacher's metadata."""
    model = onnx.load(TEACHER)
    (entry,) = [one for one in model.metadata_props if one.key == METADATA_KEY]
    told = TeacherSpec.model_validate_json(entry.value).model_copy(update=spec)
    entry.value = told.model_dump_json(exclude_none=True)
    if spec.get("output_kind") == "probabilities":
        model.graph.node[-1].CopyFrom(helper.make_node("Softmax", ["seen"], ["logits"]))
    TEACHER.write_bytes(model.SerializeToString())


CASES = [
    ("dense-f32", "logits", ()),
    ("dense-u8", "logits", ()),
    ("topk", "logits", ("--k=5", "--tail=prior")),
    ("factored", "logits", ()),
    ("factored", "reversed", ()),
    ("dense-f16", "reversed", ("--features=auto",)),
    ("dense-f16", "probabilities", ()),
]


@pytest.mark.parametrize(("codec", "kind", "flags"), CASES)
def test_the_same_labels_as_from_the_host(
    many: Project,
    command: Command,
    request: pytest.FixtureRequest,
    codec: str,
    kind: str,
    flags: tuple[str, ...],
) -> None:
    if kind == "reversed":
        turn(classes=CLASSES[::-1])
    if kind == "probabilities":
        turn(output_kind="probabilities")
    told = (*INFER, "--codec", codec, *flags, "--allow-bad-teacher")
    assert command(*told, "--output=host").code == 0
    packed = request.getfixturevalue("on_device")
    done = command(*told, "--output=device")
    assert done.code == 0, done.stderr
    assert sum(packed) == len(PACKED)
    host, device = whole("host"), whole("device")
    assert device.keys.equals(host.keys)
    assert device.labels.equals(host.labels)
    assert np.array_equal(device.top1, host.top1)
    # The logarithm of a probability is another library's, to the last bit.
    exact = kind != "probabilities"
    for name, values in {**host.payload, "shift": host.shift}.items():
        got = device.shift if name == "shift" else device.payload[name]
        if exact and name not in SUMS:
            assert np.array_equal(got, values), name
        else:
            np.testing.assert_allclose(
                got.astype(np.float64), values.astype(np.float64), rtol=2e-3, atol=2e-3
            )
    if host.features is not None:
        assert np.array_equal(device.features, host.features)
    plan = Plan.model_validate_json(Path("device/plan.json").read_bytes())
    assert plan.execution is not None
    assert str(plan.execution.packing).startswith("torch ")
    checked = command("verify", "--labels=device", "--source=data/train", f"--teacher={TEACHER}")
    assert checked.code == 0, checked.stdout


def test_what_cannot_be_held_is_named_by_its_key(
    empty_project: Project, command: Command, on_device: list[int]
) -> None:
    empty_project.source(shards=(ROWS,), poisoned=(1200,))
    empty_project.teacher(poisoned=True)
    # The look at samples of the whole source would find it first.
    unseen = (*INFER, "--allow-bad-teacher")
    refused = command(*unseen)
    assert refused.code == 3
    assert "logits hold NaN for key 'sample-001200'" in refused.stderr
    assert sum(on_device) > 0
    model = onnx.load(TEACHER)
    value = np.asarray(65504 / (POISON - 0.5), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(value, "factor"))
    model.graph.node.append(helper.make_node("Mul", ["rows", "factor"], ["wide"]))
    model.graph.node[-2].CopyFrom(helper.make_node("Identity", ["seen"], ["logits"]))
    TEACHER.write_bytes(model.SerializeToString())
    refused = command(*unseen, "--features=wide", "--output=wide")
    assert refused.code == 3
    assert "features are beyond 65,504, the end of float16 for key 'sample-001200'" in (
        refused.stderr
    )


def test_samples_that_are_left_out_leave_the_others_as_they_are(
    many: Project, command: Command, monkeypatch: pytest.MonkeyPatch, on_device: list[int]
) -> None:
    assert command(*INFER, "--codec=dense-f32", "--output=all").code == 0

    def one_is_bad(source: Any, segments: Any, on_bad: Any) -> Slots:
        slots = read_slots(source, segments, "stop")
        if segments[0].first != 1056:
            return slots
        key, shard = slots.samples.keys[3].as_py(), segments[0].source
        return Slots(slots.samples, {3: Reject(key=key, source=shard, row=1059, reason="is bad")})

    monkeypatch.setattr("softlabel.pipeline.inference.runner.read_slots", one_is_bad)
    some = ("--codec=dense-f32", "--output=some", "--on-bad-sample=skip")
    done = command(*INFER, *some)
    assert done.code == 0, done.stderr
    kept = np.delete(np.arange(ROWS), 1059)
    every, left = whole("all"), softlabel.open("some")
    (block,) = left.batches(ROWS)
    assert block.keys.equals(every.keys.take(kept))
    assert np.array_equal(block.payload["logits"], every.payload["logits"][kept])
