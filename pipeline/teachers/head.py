"""The linear layer that makes a teacher's logits: finding it in the ONNX graph.

Shapes: N rows, C classes, d inputs of the layer. Of sequences logits are `[batch, length, C]`, and
rows are their positions: those of a sample side by side, as in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from softlabel.pipeline.codecs.factored import HEAD_TOLERANCE, Head
from softlabel.pipeline.codecs.numerics import Floats
from softlabel.pipeline.teachers.inner import InnerOutput, give_out
from softlabel.schemas.errors import DataError
from softlabel.schemas.sample import Array, RunTeacher, TeacherOutput

FACTORED = "codec factored needs a linear layer as the teacher's last step"
FEATURES = "its features are the inputs of a linear layer at its end"
DENSE = "pass --codec dense-f16"
FLOATING = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}
# They only arrange what another operator computed, which is the one worth naming.
SHAPING = {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"}


@dataclass(frozen=True, slots=True)
class LinearEnd:
    """The layer at the end of a teacher, and its inputs as an output of that."""

    head: Head
    inner: InnerOutput


def find_head(path: Path, output: str, classes: int) -> LinearEnd:
    """The Gemm, or MatMul with or without Add, whose result is `output`.

    Identity, Dropout and casts between floating types may stand around it, and a Reshape behind it:
    as long as the last axis is of the classes, rows stay what they are. Raises DataError, naming
    what was found instead, where there is no such layer, its weights are not in the file, float32
    cannot hold them, or it has no fewer inputs than classes.
    """
    model = onnx.load(path, load_external_data=False)
    graph = _Graph(path, model, FACTORED, DENSE)
    weight, bias, features, transposed = _linear(graph, output)
    if weight.shape[0] != classes:
        raise graph.refusal(f"its last layer has {weight.shape[0]} outputs for {classes} classes")
    if weight.shape[1] >= classes:
        raise graph.refusal(
            f"its last layer has {weight.shape[1]} inputs for {classes} classes, so storing them "
            "would save nothing"
        )
    inner = give_out(model, features, layered=True, transposed=transposed)
    return LinearEnd(Head(weight, bias), inner)


def last_layer_input(path: Path, model: onnx.ModelProto, output: str, remedy: str) -> str:
    """The tensor that the last linear layer before `output` takes, `[..., d]`.

    A softmax or its logarithm may stand behind the layer, and all that `find_head` allows. Raises
    DataError, naming what was found instead and `remedy`, where there is no such layer.
    """
    graph = _Graph(path, model, FEATURES, remedy)
    node = graph.maker(output)
    while _passes(node) or (node.op_type in ("Softmax", "LogSoftmax") and node.domain == ""):
        output = node.input[0]
        node = graph.maker(output)
    layer, _ = _last_layer(graph, output)
    if _attributes(layer).get("transA"):
        raise graph.refusal(f"its last {layer.op_type} takes them transposed")
    return str(layer.input[0])


def checking_head(run: RunTeacher, head: Head, path: Path) -> RunTeacher:
    """`run`, whose first batch must show that `head` over the features makes the logits.

    Raises DataError with the difference where it does not: something else stands in between.
    """
    checked = False

    def checking(pixels: npt.NDArray[np.uint8]) -> TeacherOutput:
        nonlocal checked
        output = run(pixels)
        if not checked:
            _check_head(head, output, path)
            # Sequences may all be empty.
            checked = len(output.logits) > 0
        return output

    return checking


def _check_head(head: Head, output: TeacherOutput, path: Path) -> None:
    assert output.features is not None
    width = head.weight.shape[1]
    if output.features.shape[1] != width:
        raise DataError(
            f"{path}: gave its last layer {output.features.shape[1]} inputs a row, codec "
            f"factored needs {width}; pass --codec dense-f16"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number is refused by its key
        made = head.logits(output.features)
        # Equal infinities, masked classes among them, differ by nothing.
        differences = np.where(made == output.logits, 0, np.abs(made - output.logits))
    known = np.isfinite(output.logits).any(axis=1) & np.isfinite(output.features).all(axis=1)
    known &= ~np.isnan(output.logits).any(axis=1)
    largest = np.abs(output.logits[np.isfinite(output.logits)]).max(initial=0)
    difference = differences[known].max(initial=0)
    if not difference <= HEAD_TOLERANCE * largest:
        raise DataError(
            f"{path}: its last linear layer over its inputs differs from its logits by "
            f"{difference:.3g} (largest logit {largest:.3g}), so codec factored would not store "
            "what it says; pass --codec dense-f16"
        )


class _Graph:
    """The nodes of a graph by what they make, and its constants."""

    def __init__(self, path: Path, model: onnx.ModelProto, need: str, remedy: str) -> None:
        self._path = path
        self._need = need
        self._remedy = remedy
        self._makers: dict[str, onnx.NodeProto] = {
            name: node for node in model.graph.node for name in node.output
        }
        self._initializers: dict[str, onnx.TensorProto] = {
            tensor.name: tensor for tensor in model.graph.initializer
        }

    def maker(self, name: str) -> onnx.NodeProto:
        """The node that makes the tensor `name`. Raises DataError where none does."""
        if name not in self._makers:
            raise self.refusal(f"{name!r} is no result of a linear layer")
        return self._makers[name]

    def described(self, name: str) -> str:
        """The operator that makes the tensor `name`, in words; through what arranges it only."""
        found = []
        while name in self._makers:
            node = self._makers[name]
            found.append(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
            if node.op_type not in SHAPING:
                break
            name = node.input[0]
        return " of ".join(found) or f"the input {name!r}"

    def constant(self, name: str) -> Array | None:
        """The value of `name` where it is in the file, through Identity, Cast and Transpose."""
        if name in self._initializers:
            return self._array(self._initializers[name])
        node = self._makers.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        attributes = _attributes(node)
        if node.op_type == "Constant":
            tensor = attributes.get("value")
            return self._array(tensor) if isinstance(tensor, onnx.TensorProto) else None
        if node.op_type not in ("Identity", "Cast", "Transpose"):
            return None
        value = self.constant(node.input[0])
        if value is None or node.op_type == "Identity":
            return value
        if node.op_type == "Transpose":
            return np.transpose(value, attributes.get("perm"))
        return value.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))

    def refusal(self, found: str) -> DataError:
        """The error for a graph without a usable layer."""
        return DataError(f"{self._path}: {self._need}, and {found}; {self._remedy}")

    def _array(self, tensor: onnx.TensorProto) -> Array:
        return numpy_helper.to_array(tensor, base_dir=str(self._path.parent))


def _linear(graph: _Graph, name: str) -> tuple[Floats, Floats, str, bool]:
    """Weight `[C, d]`, bias `[C]`, the name of the layer's input, whether that is `[d, N]`."""
    node, added = _last_layer(graph, name)
    weight, own, transposed = _layer(graph, node)
    bias = np.zeros(len(weight), np.float32)
    for value in [*own, *added]:
        bias += _row(graph, value, len(weight))
    return weight, bias, node.input[0], transposed


def _last_layer(graph: _Graph, name: str) -> tuple[onnx.NodeProto, list[Floats]]:
    """The Gemm or MatMul that makes `name`, and the constants that are added to what it makes."""
    added = []
    while True:
        node = graph.maker(name)
        if _passes(node) or (node.op_type == "Reshape" and node.domain == ""):
            name = node.input[0]
        elif node.op_type == "Add" and node.domain == "":
            constants = [graph.constant(operand) for operand in node.input]
            if sum(value is None for value in constants) != 1:
                raise graph.refusal("its logits are an Add of two computed tensors")
            added += [_float32(graph, value, "bias") for value in constants if value is not None]
            name = next(
                operand
                for operand, value in zip(node.input, constants, strict=True)
                if value is None
            )
        else:
            break
    if node.op_type not in ("Gemm", "MatMul") or node.domain != "":
        raise graph.refusal(f"its logits are made by {graph.described(name)}")
    return node, added


def _passes(node: onnx.NodeProto) -> bool:
    """Whether the node hands its first input on: at most another floating type."""
    if node.domain != "":
        return False
    if node.op_type == "Cast":
        return _attributes(node)["to"] in FLOATING
    # The third input of Dropout is its training mode.
    inputs = sum(bool(name) for name in node.input)
    return node.op_type == "Identity" or (node.op_type == "Dropout" and inputs < 3)


def _layer(graph: _Graph, node: onnx.NodeProto) -> tuple[Floats, list[Floats], bool]:
    """Weight `[C, d]`, the biases and whether the input is transposed, of a Gemm or MatMul."""
    attributes = _attributes(node)
    value = graph.constant(node.input[1])
    if value is None:
        raise graph.refusal(
            f"the weights of its last {node.op_type} are not in the file but made at run time by "
            f"{graph.described(node.input[1])}"
        )
    weight = _float32(graph, value, "weight")
    if weight.ndim != 2:
        raise graph.refusal(f"the weight of its last {node.op_type} has shape {[*weight.shape]}")
    if not attributes.get("transB"):
        weight = weight.T
    weight = np.ascontiguousarray(np.float32(attributes.get("alpha", 1)) * weight)
    if len(node.input) < 3 or not node.input[2]:
        return weight, [], bool(attributes.get("transA"))
    value = graph.constant(node.input[2])
    if value is None:
        raise graph.refusal(
            f"the bias of its last Gemm is made at run time by {graph.described(node.input[2])}"
        )
    bias = np.float32(attributes.get("beta", 1)) * _float32(graph, value, "bias")
    return weight, [np.asarray(bias)], bool(attributes.get("transA"))


def _float32(graph: _Graph, value: Array, what: str) -> Floats:
    """The array in float32, where that loses nothing."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = value.astype(np.float32)
        exact = np.array_equal(single.astype(value.dtype), value)
    if not exact or value.dtype.kind in "iub":
        raise graph.refusal(f"the {what} of its last layer is {value.dtype}, beyond float32")
    return single


def _row(graph: _Graph, value: Floats, classes: int) -> Floats:
    """A bias that broadcasts over rows, `[C]`."""
    if value.size != 1 and (value.size != classes or value.shape[-1] != classes):
        raise graph.refusal(f"the bias of its last layer has shape {[*value.shape]}")
    return np.broadcast_to(value.reshape(-1), classes)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
