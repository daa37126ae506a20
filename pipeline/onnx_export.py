"""PyTorch to ONNX with a dynamic batch axis, and the parity check that guards its publication."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch

from softlabel.pipeline.models import PictureModel
from softlabel.schemas.errors import CheckFailed, DataError
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import METADATA_KEY, TeacherSpec

INPUT_NAME = "pixels"
OUTPUT_NAME = "logits"
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
    `[batch, classes]`. Raises DataError where torch cannot export the model or it is too large.
    """
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if weights > LARGEST_FILE:
        raise DataError(
            f"the model's weights take {weights / 2**30:.1f} GiB; one ONNX file holds 2 GiB; "
            "export it in float16"
        )
    # An example batch of 2: the exporter takes an axis of 1 for a constant.
    example = torch.zeros((2, *spec.preprocess.shape), dtype=torch.uint8)
    with _quiet_exporter(), torch.no_grad():
        try:
            program = torch.onnx.export(
                model.eval(),
                (example,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"torch cannot export the model: {reason}") from error
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {METADATA_KEY: spec.model_dump_json()})
    return bytes(proto.SerializeToString(deterministic=True))


def check_parity(model: PictureModel, exported: bytes, pixels: Array, tolerance: float) -> Parity:
    """Compare ONNX Runtime with PyTorch in eval mode on batches of 1, 2 and 7 of `pixels`.

    pixels: uint8 `[7 or more, height, width, channels]`. Allowed is `tolerance` times
    max(1, largest |logit|). Raises CheckFailed that says by how much and where they differ.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    largest = Parity(0.0, tolerance)
    for size in PARITY_BATCH_SIZES:
        batch = np.ascontiguousarray(pixels[-size:])
        with torch.no_grad():
            expected = model.eval()(torch.from_numpy(batch)).numpy()
        got = session.run([OUTPUT_NAME], {INPUT_NAME: batch})[0]
        seen = _compare(expected, np.asarray(got), size, tolerance)
        largest = max(largest, seen, key=lambda parity: parity.difference)
    return largest


def _compare(expected: Array, got: Array, size: int, tolerance: float) -> Parity:
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
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
