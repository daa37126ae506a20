"""What an ONNX graph says of its inputs, one of pictures or named ones of numbers, and weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from softlabel.schemas.errors import DataError
from softlabel.schemas.teacher import NumberInput

if TYPE_CHECKING:
    import onnx

# Element types that a table's columns can be, and what NumPy calls them.
NUMBERS = {
    "FLOAT16": "float16",
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "BOOL": "bool",
    **{name: name.lower() for name in ("INT8", "INT16", "INT32", "INT64")},
    **{name: name.lower() for name in ("UINT8", "UINT16", "UINT32", "UINT64")},
}


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give: those without a value in the file."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [entry for entry in model.graph.input if entry.name not in constants]


def picture_input(model: onnx.ModelProto) -> onnx.ValueInfoProto | None:
    """The only input, where it has the four axes of pictures; else the model takes numbers."""
    entries = graph_inputs(model)
    if len(entries) == 1 and len(dimensions(entries[0])) == 4:
        return entries[0]
    return None


def number_inputs(path: Path, model: onnx.ModelProto) -> tuple[NumberInput, ...]:
    """The inputs as columns of a table, axes that are open as -1.

    Raises DataError where one is not of numbers, or has no batch axis.
    """
    import onnx

    inputs = []
    for entry in graph_inputs(model):
        kind = onnx.TensorProto.DataType.Name(entry.type.tensor_type.elem_type)
        axes = dimensions(entry)
        if kind not in NUMBERS or not axes:
            raise DataError(
                f"{path}: input {entry.name!r} is no batch of numbers that NumPy has; export the "
                "model with inputs [batch, ...] of floats, integers or booleans"
            )
        shape = tuple(-1 if size is None else size for size in axes[1:])
        inputs.append(NumberInput(name=entry.name, dtype=NUMBERS[kind], shape=shape))
    if not inputs:
        raise DataError(f"{path}: takes no inputs; export the model again")
    return tuple(inputs)


def weight_type(model: onnx.ModelProto) -> str:
    """The floating type that most of the weights have, as ONNX names it in lower case."""
    import onnx

    sizes = dict.fromkeys(("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"), 0)
    for tensor in model.graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        if kind in sizes:
            sizes[kind] += math.prod(tensor.dims)
    most = max(sizes, key=lambda kind: sizes[kind])
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(most, most.lower())


def dimensions(entry: onnx.ValueInfoProto) -> list[int | None]:
    """The axes that the graph states, None where it leaves one open."""
    return [
        dim.dim_value if dim.HasField("dim_value") else None
        for dim in entry.type.tensor_type.shape.dim
    ]
