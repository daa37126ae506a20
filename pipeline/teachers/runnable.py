"""What ONNX Runtime is given of a teacher: its file, or a copy that also does what NumPy cannot.

NumPy has no bfloat16, and pictures are made ready in float32: the copy casts them, and what it
gives, on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from softlabel.pipeline.teachers.graph_inputs import graph_inputs
from softlabel.pipeline.teachers.inner import InnerOutput
from softlabel.pipeline.teachers.teacher import Teacher

FLOAT32 = " as float32"


@dataclass(frozen=True, slots=True)
class Runnable:
    """model: ONNX bytes, or None for the teacher's own file.

    pictures: the input that takes them, None of a teacher of numbers. outputs: the logits, and
    features where they were asked for.
    """

    model: bytes | None
    pictures: str | None
    outputs: tuple[str, ...]


def runnable(teacher: Teacher, inner: InnerOutput | None) -> Runnable:
    """The teacher with `inner` given out, its pictures and outputs in types that NumPy has."""
    outputs = (teacher.spec.output,) if inner is None else (teacher.spec.output, inner.name)
    extended = None if inner is None else inner.model
    if not teacher.narrow:
        return Runnable(extended, teacher.input_name, outputs)
    if extended is None:
        model = onnx.load(teacher.path, load_external_data=False)
    else:
        model = onnx.load_from_string(extended)
    pictures = None if teacher.input_name is None else _take_float32(model, teacher.input_name)
    for name in outputs:
        model.graph.node.append(_cast(name, name + FLOAT32, TensorProto.FLOAT))
        output = helper.make_tensor_value_info(name + FLOAT32, TensorProto.FLOAT, None)
        model.graph.output.append(output)
    return Runnable(model.SerializeToString(), pictures, tuple(name + FLOAT32 for name in outputs))


def _take_float32(model: onnx.ModelProto, name: str) -> str:
    """Let the graph take its pictures as float32; as they are where they are uint8."""
    (entry,) = [one for one in graph_inputs(model) if one.name == name]
    kind = entry.type.tensor_type.elem_type
    if kind == TensorProto.UINT8:
        return name
    model.graph.node.insert(0, _cast(name + FLOAT32, name, kind))
    entry.name = name + FLOAT32
    entry.type.tensor_type.elem_type = TensorProto.FLOAT
    return entry.name


def _cast(one: str, other: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [one], [other], to=kind)
