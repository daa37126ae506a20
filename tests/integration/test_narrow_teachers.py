"""Teachers in float16 and bfloat16, whose pictures and logits are of those types too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

import softlabel
from softlabel.schemas.labelset import Plan

if TYPE_CHECKING:
    from tests.conftest import Command, Project

TEACHER = Path("models/teacher.onnx")
INFER = ("infer", "--batch-size=32", "--codec=dense-f32")
VERIFY = ("verify", "--labels=labels", "--source=data/train", f"--teacher={TEACHER}")
FOREIGN = (
    *(f"--classes={name}" for name in range(10)),
    *("--input-layout=NHWC", "--output-kind=logits", "--mean=0", f"--std={1 / 255!r}"),
)
KINDS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def narrow(kind: int, pictures: bool) -> None:
    """Let the teacher's weights and logits be of `kind`, and its pictures too.

    ONNX Runtime has no product in bfloat16 on the CPU: the weights are cast before they are used.
    """
    model = onnx.load(TEACHER)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
            wide = helper.make_tensor(f"{name}-", kind, values.shape, values.reshape(-1).tolist())
            tensor.CopyFrom(wide)
            casts.append(helper.make_node("Cast", [f"{name}-"], [name], to=TensorProto.FLOAT))
    for node in casts:
        graph.node.insert(0, node)
    graph.node[-1].CopyFrom(helper.make_node("Cast", ["seen"], ["logits"], to=kind))
    graph.output[0].type.tensor_type.elem_type = kind
    if pictures:
        graph.input[0].type.tensor_type.elem_type = kind
        del model.metadata_props[:]
    onnx.checker.check_model(model)
    TEACHER.write_bytes(model.SerializeToString())


def logits(folder: str) -> npt.NDArray[Any]:
    (block,) = softlabel.open(folder).batches(500)
    return np.asarray(block.logits() + block.shift[:, None])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pictures", [False, True])
def test_they_say_what_float32_says(
    project: Project, command: Command, kind: str, pictures: bool
) -> None:
    assert command(*INFER, "--output=wide").code == 0
    narrow(KINDS[kind], pictures)
    done = command(*INFER, *(FOREIGN if pictures else ()))
    assert done.code == 0, done.stderr
    expected = logits("wide")
    largest = np.abs(expected).max()
    step = 2.0**-10 if kind == "float16" else 2.0**-7
    assert 0 < np.abs(logits("labels") - expected).max() < 8 * step * largest
    plan = Plan.model_validate_json(Path("labels/plan.json").read_bytes())
    assert plan.execution is not None
    assert plan.execution.precision == kind
    passed = command(*VERIFY)
    assert passed.code == 0, passed.stdout


def test_features_of_such_a_teacher(project: Project, command: Command) -> None:
    """The tensor that it gives out is of a type that NumPy does not have."""
    narrow(TensorProto.BFLOAT16, pictures=False)
    model = onnx.load(TEACHER)
    model.graph.node.append(helper.make_node("Cast", ["rows"], ["short"], to=TensorProto.BFLOAT16))
    TEACHER.write_bytes(model.SerializeToString())
    assert command(*INFER, "--features=short").code == 0
    (block,) = softlabel.open("labels").batches(500)
    assert block.features is not None
    assert block.features.shape == (500, 64)
    assert 0 < len(np.unique(block.features)) < 255
