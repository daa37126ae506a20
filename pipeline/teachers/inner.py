"""A tensor inside a teacher's graph, given out beside its logits."""

from __future__ import annotations

from dataclasses import dataclass

import onnx


@dataclass(frozen=True, slots=True)
class InnerOutput:
    """An output to be taken as features.

    name: its tensor, `[N, ...]`, or `[d, N]` where `transposed`. model: the teacher that gives it
    out, as ONNX bytes; external data stays where it is.
    """

    name: str
    model: bytes
    transposed: bool = False


def give_out(model: onnx.ModelProto, name: str, transposed: bool = False) -> InnerOutput:
    """The tensor `name` as an output of a copy of `model`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if name not in {entry.name for entry in copy.graph.output}:
        copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return InnerOutput(name, copy.SerializeToString(), transposed)
