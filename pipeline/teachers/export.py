"""PyTorch to ONNX with a dynamic batch axis, and the parity check that guards its publication."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from softlabel.pipeline.teachers.head import last_layer_input
from softlabel.pipeline.teachers.models import PictureModel
from softlabel.pipeline.teachers.position_model import PositionModel
from softlabel.schemas.errors import CheckFailed, DataError
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import METADATA_KEY, TeacherSpec

INPUT_NAME = "pixels"
OUTPUT_NAME = "logits"
FEATURES_NAME = "features"
PARITY_BATCH_SIZES = (1, 2, 7)
# Protobuf's limit, less what the graph itself may take.
LARGEST_FILE = 2**31 - 2**24


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest difference of two logits that was seen, and the largest allowed."""

    difference: float
    allowed: float


def export_onnx(model: PictureModel, spec: TeacherSpec, opset: int) -> bytes:
    """`model` in eval mode as the bytes of one ONNX file that carries `spec` as metadata.

    Its input `pixels` is uint8 `[batch, height, width, channels]`, its output `logits` float32
    `[batch, classes]`, or `[batch, positions, classes]` where `spec` has a grid of these; where it
    names features, that output holds the inputs of its last linear layer. Raises DataError where
    torch cannot export the model, it is too large or has no such layer.
    """
    assert spec.preprocess is not None
    shape = spec.preprocess.shape
    wanted = [len(spec.classes)] if spec.grid is None else [math.prod(spec.grid), len(spec.classes)]
    for size in PARITY_BATCH_SIZES:
        _eager(model, np.zeros((size, *shape), np.uint8), wanted)
    check_size(model)
    # An example batch of 2: the exporter takes an axis of 1 for a constant.
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    batch = {"pixels": {0: torch.export.Dim("batch")}}
    proto = to_graph(_outside(model), {INPUT_NAME: example}, batch, opset)
    if spec.features is not None:
        _name_features(proto, spec.features)
    return with_metadata(proto, spec)


def check_size(model: nn.Module) -> None:
    """Raise DataError where the weights do not fit into one file."""
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if weights > LARGEST_FILE:
        raise DataError(
            f"the model's weights take {weights / 2**30:.1f} GiB; one ONNX file holds 2 GiB; "
            "export it in float16"
        )


def to_graph(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], open_axes: Any, opset: int
) -> onnx.ModelProto:
    """The graph of `model` in eval mode with these inputs, by example, and the output `logits`.

    open_axes: as torch.export has its dynamic shapes. Raises DataError where torch cannot.
    """
    with _quiet_exporter(), torch.no_grad():
        try:
            program = torch.onnx.export(
                model.eval(),
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=[OUTPUT_NAME],
                dynamic_shapes=open_axes,
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise DataError(f"torch cannot export the model: {root_cause(error)}") from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    _forget_this_machine(proto)
    return proto


def with_metadata(proto: onnx.ModelProto, spec: TeacherSpec) -> bytes:
    """The bytes of the file, which says of itself what `spec` says."""
    onnx.helper.set_model_props(proto, {METADATA_KEY: spec.model_dump_json(exclude_none=True)})
    return bytes(proto.SerializeToString(deterministic=True))


def check_parity(model: PictureModel, exported: bytes, pixels: Array, tolerance: float) -> Parity:
    """Compare ONNX Runtime with PyTorch in eval mode on batches of 1, 2 and 7 of `pixels`.

    pixels: uint8 `[7 or more, height, width, channels]`. Allowed is `tolerance` times
    max(1, largest |logit|). Raises CheckFailed that says by how much and where they differ.
    """
    session = cpu_session(exported)
    largest = Parity(0.0, tolerance)
    for size in PARITY_BATCH_SIZES:
        batch = np.ascontiguousarray(pixels[-size:])
        expected = _eager(model, batch, None)
        got = _exported(session, batch)
        classes = expected.shape[-1]
        seen = compare(expected.reshape(-1, classes), got.reshape(-1, classes), size, tolerance)
        largest = max(largest, seen, key=lambda parity: parity.difference)
    return largest


def cpu_session(exported: bytes) -> onnxruntime.InferenceSession:
    """ONNX Runtime with this file on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])


class _Positions(nn.Module):
    """What the graph of a model of positions holds: their logits with an axis of their own."""

    def __init__(self, model: PositionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.said(pixels)


def _outside(model: PictureModel) -> nn.Module:
    return _Positions(model) if isinstance(model, PositionModel) else model


def _eager(model: PictureModel, batch: Array, wanted: Sequence[int] | None) -> Array:
    """PyTorch's logits of one batch, checked to be `[N, *wanted]` where that is given."""
    try:
        with torch.no_grad():
            logits = _outside(model).eval()(torch.from_numpy(batch))
    except Exception as error:
        raise DataError(
            f"cannot export the model: it fails on a batch of {len(batch)}: {root_cause(error)}; "
            "it must take any number of these pictures"
        ) from error
    shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if wanted is not None and shape != [len(batch), *wanted]:
        raise DataError(
            f"cannot export the model: its output has shape {shape} for a batch of {len(batch)}; "
            f"{wanted[-1]} classes need one output of shape {[len(batch), *wanted]}; check the "
            "class names, or wrap the model"
        )
    return np.asarray(logits.numpy())


def _exported(session: onnxruntime.InferenceSession, batch: Array) -> Array:
    try:
        return np.asarray(session.run([OUTPUT_NAME], {INPUT_NAME: batch})[0])
    except Exception as error:
        raise CheckFailed(
            f"the exported file fails on a batch of {len(batch)}: {root_cause(error)}; nothing "
            "was published; the model must take any batch size"
        ) from error


def _name_features(proto: onnx.ModelProto, name: str) -> None:
    """Add the output `name`, which hands on the inputs of the last linear layer."""
    path = Path("the exported model")
    inner = last_layer_input(path, proto, OUTPUT_NAME, "leave --features out")
    proto.graph.node.append(onnx.helper.make_node("Identity", [inner], [name]))
    known = [entry for entry in proto.graph.value_info if entry.name == inner]
    output = onnx.ValueInfoProto()
    output.CopyFrom(known[0] if known else onnx.ValueInfoProto())
    output.name = name
    proto.graph.output.append(output)


def _forget_this_machine(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes, which hold stack traces with this machine's paths."""
    del proto.metadata_props[:]
    graph = proto.graph
    del graph.metadata_props[:]
    noted = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for entry in itertools.chain.from_iterable(noted):
        del entry.metadata_props[:]
        entry.doc_string = ""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _forget_nodes(inner)
    for function in proto.functions:
        del function.metadata_props[:]
        _forget_nodes(function)


def _forget_nodes(part: onnx.GraphProto | onnx.FunctionProto) -> None:
    for node in part.node:
        del node.metadata_props[:]
        node.doc_string = ""


def root_cause(error: BaseException) -> str:
    """The first line of the error that began it all: what the user's own code said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def compare(expected: Array, got: Array, size: int, tolerance: float) -> Parity:
    """How far two logits `[N, classes]` are apart. Raises CheckFailed where it is too far.

    size: of the batch that they are of.
    """
    allowed = tolerance * max(1.0, float(np.abs(expected).max()))
    difference = np.abs(expected - got)
    # NaN on either side must not pass a comparison.
    worst = np.unravel_index(np.nan_to_num(difference, nan=np.inf).argmax(), difference.shape)
    if not difference[worst] <= allowed:
        raise CheckFailed(
            f"ONNX Runtime and PyTorch differ by {difference[worst]:.3g} (allowed {allowed:.3g}) "
            f"at batch size {size}, row {worst[0]}, class {worst[1]}: {got[worst]:.6g} against "
            f"{expected[worst]:.6g}; nothing was published; see whether the model behaves "
            "otherwise when exported, or pass --tolerance"
        )
    return Parity(float(difference[worst]), allowed)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's chatter (missing torchvision, deprecations inside it) off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
