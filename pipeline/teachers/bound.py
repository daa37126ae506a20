"""A session run on its device's own memory: inputs go up, and what it says stays to be packed.

The way to the device and back was not measured on GPU; tests take it on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
import torch
from torch.utils.dlpack import from_dlpack

from softlabel.pipeline.codecs.codec import Codec, EncodedRows
from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.codecs.in_torch import LARGEST_HALF, encode
from softlabel.pipeline.teachers.packed import PackedOutput
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import PROBABILITY_FLOOR, OutputKind


def run_bound(
    session: onnxruntime.InferenceSession,
    device: torch.device,
    outputs: Sequence[str],
    inputs: Mapping[str, Array],
) -> list[torch.Tensor]:
    """These outputs of one run, on `device`, which is the session's."""
    binding = session.io_binding()
    held = [_bind(binding, device, name, values) for name, values in inputs.items()]
    for name in outputs:
        binding.bind_output(name, device.type, device.index or 0)
    if device.type == "cuda":
        # ONNX Runtime does not wait for torch's stream.
        torch.cuda.current_stream(device).synchronize()
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    del held
    return [from_dlpack(value) for value in binding.get_outputs()]


def pack(
    codec: Codec,
    logits: torch.Tensor,
    features: torch.Tensor | None,
    kind: OutputKind,
    order: Sequence[int] | None,
) -> PackedOutput:
    """Outputs `[N, C]` of this kind, and features `[N, width]`, as the codec stores them.

    order: the columns that the label set's classes are; None where they agree. Features are part
    of `factored`; beside the other codecs they are stored in float16.
    """
    values = logits.float()
    if kind == "probabilities":
        values = torch.where(values >= 0, values.clamp(min=PROBABILITY_FLOOR), torch.nan).log()
    if order is not None:
        values = values[:, torch.tensor(order, device=values.device)]
    inner = features if isinstance(codec, Factored) else None
    columns = {name: column.cpu().numpy() for name, column in encode(codec, values, inner).items()}
    rows = EncodedRows(columns.pop("shift"), columns.pop("top1"), columns)
    stored = None if features is None or inner is not None else _to_half(features)
    return PackedOutput(codec, rows, stored)


def _to_half(features: torch.Tensor) -> Array:
    wide = features.float()
    return np.asarray(torch.where(wide.abs() <= LARGEST_HALF, wide, torch.inf).half().cpu().numpy())


def _bind(
    binding: onnxruntime.IOBinding, device: torch.device, name: str, values: Array
) -> torch.Tensor:
    """Bind an input's copy on the device, which must live until the run is over."""
    kind = torch.from_numpy(np.empty(0, values.dtype)).dtype
    staged = torch.empty(values.shape, dtype=kind, pin_memory=device.type == "cuda")
    staged.numpy()[...] = values
    tensor = staged.to(device, non_blocking=True)
    place = (device.type, device.index or 0, values.dtype.type, tuple(values.shape))
    binding.bind_input(name, *place, tensor.data_ptr())
    return tensor
