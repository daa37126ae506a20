"""Means of the loss's terms over an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed

from softlabel.pipeline.training.losses import LossTerms
from softlabel.schemas.errors import DataError
from softlabel.schemas.reports.training import EpochRecord


class EpochMeans:
    """Sums of the terms over an epoch, weighted by batch size; kept on the training device.

    With several ranks each has its own; `record` and `state_dict` add them up, and all ranks call
    these together.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.begin(0.0)

    def begin(self, rate: float) -> None:
        """Start an epoch with learning rate `rate`."""
        self._rate = rate
        self._rows = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, terms: LossTerms, student: Tensor, labels: Tensor) -> None:
        """Count a batch: its terms, student logits `[N, C]` and labels int64 `[N]`.

        A label below 0 is unknown.
        """
        rows = len(labels)
        self._rows += rows
        hits = (student.argmax(dim=1) == labels).sum()
        named = {
            "loss": terms.total,
            "hard": terms.hard,
            "soft": terms.soft,
            "soft_kl": terms.soft_kl,
            "hint": terms.hint,
            "hits": hits / rows,
            "labelled": (labels >= 0).sum() / rows,
        }
        for name, value in named.items():
            if value is not None:
                added = value.detach() * rows
                self._sums[name] = self._sums[name] + added if name in self._sums else added

    def record(self, epoch: int) -> EpochRecord:
        """The epoch's means; raises DataError where the loss is not finite."""
        rows, sums = self._added_up()
        means = {name: float(total) / rows for name, total in sums.items()}
        if not math.isfinite(means["loss"]):
            raise DataError(
                f"train: the loss is {means['loss']} in epoch {epoch}; lower --learning-rate"
            )
        return EpochRecord(
            epoch=epoch,
            learning_rate=self._rate,
            loss=means["loss"],
            hard=means["hard"],
            soft=means.get("soft"),
            soft_kl=means.get("soft_kl"),
            hint=means.get("hint"),
            train_accuracy=means["hits"] / means["labelled"] if means["labelled"] else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes to go on within the epoch."""
        rows, sums = self._added_up()
        return {"rate": self._rate, "rows": rows, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where others were: the first rank has all that they had added up."""
        self.begin(state["rate"])
        self._sums = {name: torch.zeros_like(value) for name, value in state["sums"].items()}
        if self._fabric.global_rank == 0:
            self._rows, self._sums = state["rows"], dict(state["sums"])

    def _added_up(self) -> tuple[int, dict[str, Tensor]]:
        if self._fabric.world_size == 1:
            return self._rows, self._sums
        mine = [float(self._rows), *(float(value) for value in self._sums.values())]
        added = torch.tensor(mine, dtype=torch.float64, device=self._fabric.device)
        distributed.all_reduce(added)
        rows, *sums = added.cpu()
        return int(rows), dict(zip(self._sums, sums, strict=True))
