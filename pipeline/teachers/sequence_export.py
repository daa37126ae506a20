"""A PyTorch model of sequences to ONNX with open batch and length, and its parity check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from softlabel.pipeline.teachers.export import (
    OUTPUT_NAME,
    PARITY_BATCH_SIZES,
    Parity,
    check_size,
    compare,
    cpu_session,
    root_cause,
    to_graph,
    with_metadata,
)
from softlabel.pipeline.teachers.graph_inputs import number_inputs
from softlabel.pipeline.teachers.sequence_model import SequenceModel, tensors
from softlabel.schemas.errors import CheckFailed, DataError
from softlabel.schemas.sample import POSITIONS, Array
from softlabel.schemas.teacher import TeacherSpec


class _Outside(nn.Module):
    """What the graph holds: the model's inputs in their order, to logits with padding."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *values: Tensor) -> Tensor:
        return self.model.said(dict(zip(self.model.names, values, strict=True)))


def export_sequences(model: SequenceModel, spec: TeacherSpec, samples: Array, opset: int) -> bytes:
    """`model` in eval mode as the bytes of one ONNX file that carries `spec` as metadata.

    samples: `[2 or more]` with `POSITIONS`. Its inputs are `[batch, length]`, its output `logits`
    `[batch, length, classes]`; a length that the model insists on stands in the graph and in what
    the file says of its inputs. Raises DataError where torch cannot export the model, or it is too
    large.
    """
    check_size(model)
    # A batch of 2, for the exporter takes an axis of 1 for a constant.
    example = {name: tensors(samples[:2])[name] for name in model.names}
    every = torch.export.Dim
    axes = tuple({0: every.DYNAMIC, 1: every.AUTO} for _ in example)
    proto = to_graph(_Outside(model), example, (axes,), opset)
    inputs = number_inputs(Path("the exported model"), proto)
    names = [one.name for one in inputs]
    if names != list(model.names):
        unheard = ", ".join(repr(name) for name in model.names if name not in names)
        raise DataError(
            f"cannot export the model: what it says does not depend on {unheard}; leave that out "
            "of what its forward takes"
        )
    return with_metadata(proto, spec.model_copy(update={"inputs": inputs}))


def check_sequence_parity(
    model: SequenceModel, exported: bytes, samples: Array, tolerance: float
) -> Parity:
    """Compare ONNX Runtime with PyTorch in eval mode on batches of 1, 2 and 7 of `samples`.

    Allowed is `tolerance` times max(1, largest |logit|), at the positions that are no padding.
    Raises CheckFailed that says by how much and where they differ.
    """
    session = cpu_session(exported)
    largest = Parity(0.0, tolerance)
    for size in PARITY_BATCH_SIZES:
        batch = samples[-size:]
        with torch.no_grad():
            expected = model.eval()(tensors(batch)).numpy()
        inputs = {name: np.ascontiguousarray(batch[name]) for name in model.names}
        try:
            got = np.asarray(session.run([OUTPUT_NAME], inputs)[0])[batch[POSITIONS]]
        except Exception as error:
            raise CheckFailed(
                f"the exported file fails on a batch of {size}: {root_cause(error)}; nothing was "
                "published; the model must take any batch size"
            ) from error
        if len(got):
            seen = compare(expected, got, size, tolerance)
            largest = max(largest, seen, key=lambda parity: parity.difference)
    return largest
