"""A tensor inside a teacher's graph, given out beside its logits."""

from __future__ import annotations

from dataclasses import dataclass

import onnx


@dataclass(frozen=True, slots=True)
class InnerOutput:
    """An output to be taken as features.

    name: its tensor, `[N, ...]`, of sequences `[N, L, ...]`. model: the teacher that gives it out,
    as ONNX bytes; external data stays where it is. layered: a linear layer makes a row of logits of
    each of its rows `[..., d]`, in their order, so its other axes may be merged. transposed: that
    layer takes it as `[d, rows]`.
    """

    name: str
    model: bytes
    layered: bool = False
    transposed: bool = False


def give_out(
    model: onnx.ModelProto, name: str, *, layered: bool = False, transposed: bool = False
) -> InnerOutput:
    """The tensor `name` as an output of a copy of `model`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if name not in {entry.name for entry in copy.graph.output}:
        copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return InnerOutput(name, copy.SerializeToString(), layered, transposed)
