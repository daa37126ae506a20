"""What a teacher said of a batch, in tensors: logits, or what a label set stores in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softlabel.pipeline.codecs import in_torch
from softlabel.pipeline.codecs.dense import Dense
from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.codecs.topk import TopK
from softlabel.pipeline.shards.block import LabelBlock


@dataclass(frozen=True, slots=True)
class PackedTargets:
    """Soft targets of N samples that are not logits of all classes.

    columns: of a `topk` set ids and logits `[N, k]` and tail_lse `[N]`; of a `factored` one
    features `[N, d]` and top1 `[N]`. temperature: the one that tail_lse is of.
    """

    columns: Mapping[str, Tensor]
    temperature: float | None = None

    def to(self, device: Any, non_blocking: bool = False) -> PackedTargets:
        """The same on another device."""
        return self._each(lambda column: column.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedTargets:
        """The same in page-locked memory; a `DataLoader` calls it."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> PackedTargets:
        columns = {name: change(column) for name, column in self.columns.items()}
        return PackedTargets(columns, self.temperature)


# Tensors are logits [N, C], shifted by each row's maximum, of any floating type.
Targets = Tensor | PackedTargets


def stored_targets(block: LabelBlock, temperature: float, *, spread: bool = False) -> Targets:
    """The targets of these rows, in as few bytes as they are stored in where the loss can wait.

    temperature: for `topk`, where they will be used. spread: the logits of all classes there, the
    tail spread as the set says.
    """
    codec = block.codec
    if isinstance(codec, Factored):
        return _packed({"features": block.payload["features"], "top1": block.top1})
    if isinstance(codec, TopK) and not spread:
        kept = block.sparse(temperature)
        columns = {"ids": kept.ids, "logits": kept.logits, "tail_lse": kept.tail_lse}
        return _packed(columns, temperature)
    if isinstance(codec, Dense):
        return torch.from_numpy(block.payload["logits"])
    return torch.from_numpy(block.logits(temperature))


def factored_logits(codec: Factored, targets: PackedTargets) -> Tensor:
    """The head over the stored features, float32 `[N, C]`, on the device that these are on."""
    return in_torch.decode(codec, targets.columns, T=1.0)


def _packed(columns: Mapping[str, np.ndarray], temperature: float | None = None) -> PackedTargets:
    # Unsigned integers index nothing in torch.
    return PackedTargets(
        {
            name: torch.from_numpy(values.astype(np.int64) if values.dtype.kind == "u" else values)
            for name, values in columns.items()
        },
        temperature,
    )
