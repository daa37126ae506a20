"""A batch of tensors, and how a worker hands it to the process that trains."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from softlabel.pipeline.training.targets import PackedTargets, Targets

# Where a tensor may begin: no processor loads more at a time.
ALIGNMENT = 64


class DistillationBatch(NamedTuple):
    """N samples with their soft labels.

    pixels: uint8 `[N, channels, height, width]`, channels last in memory, or what the transform
    made of each, stacked. targets: for `DistillationLoss`; None without a label set. hard_labels:
    int64 `[N]`, -100 where unknown. keys: strings `[N]`; an array, for a `DataLoader` looks at each
    item of a list. seen: how many samples of the epoch all ranks together have had with this step.
    """

    pixels: Tensor
    targets: Targets | None
    hard_labels: Tensor
    keys: npt.NDArray[np.object_]
    seen: int


def in_one_piece(batch: DistillationBatch) -> DistillationBatch:
    """The same batch with its tensors in one piece of memory, for a `DataLoader` to hand over.

    Each piece costs that a shared file, a connection and two mappings: more than the copy.
    """
    pixels, targets, hard_labels, keys, seen = batch
    if not pixels.is_cpu:
        return batch
    match targets:
        case None:
            pixels, hard_labels = _together(pixels, hard_labels)
        case PackedTargets(columns, temperature):
            pixels, hard_labels, *moved = _together(pixels, hard_labels, *columns.values())
            targets = PackedTargets(dict(zip(columns, moved, strict=True)), temperature)
        case _:
            pixels, hard_labels, targets = _together(pixels, hard_labels, targets)
    return _Handed(pixels, targets, hard_labels, keys, seen)


class _Handed(DistillationBatch):
    """A batch in one piece of memory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, tuple(self)


def _received(*parts: Any) -> DistillationBatch:
    batch = DistillationBatch(*parts)
    # Who keeps the hard labels of an epoch must not keep its pictures.
    return batch._replace(hard_labels=batch.hard_labels.clone())


def _together(*tensors: Tensor) -> list[Tensor]:
    """Copies of the tensors behind one another in shared memory."""
    sizes = (-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors)
    starts = list(itertools.accumulate(sizes, initial=0))
    # Shared from the start, as by torch's own collate: else a DataLoader copies it once more.
    shared = torch.UntypedStorage._new_shared(starts[-1])
    memory = torch.empty(0, dtype=torch.uint8).set_(shared)
    copies = []
    for start, tensor in zip(starts, tensors, strict=False):
        # Channels stay last where they are.
        strides = torch.empty_like(tensor, device="meta").stride()
        place = memory[start : start + tensor.nbytes].view(tensor.dtype)
        copies.append(place.as_strided(tensor.shape, strides).copy_(tensor))
    return copies
