"""Which weights a training publishes: the last, a moving average, or those of its best epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports.training import EpochRecord


class Judged:
    """The model that is validated and published: `model` itself, or its moving average.

    With `patience` the weights of the epoch with the lowest validation NLL are kept as well.
    """

    def __init__(self, params: TrainParams, model: nn.Module) -> None:
        self._model = model
        self._patience = params.patience
        self._average = None
        if params.ema is not None:
            average = get_ema_multi_avg_fn(params.ema)
            self._average = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self._best: Mapping[str, Any] = {}
        self._lowest = float("inf")
        self.best_epoch: int | None = None

    @property
    def model(self) -> nn.Module:
        """The model to validate."""
        return self._model if self._average is None else self._average.module

    def after_step(self) -> None:
        """Let the average follow the weights."""
        if self._average is not None:
            self._average.update_parameters(self._model)

    def after_epoch(self, record: EpochRecord) -> None:
        """Keep the weights where they are the best so far."""
        if self._patience is None or record.validation_nll is None:
            return
        if record.validation_nll < self._lowest:
            self._lowest, self.best_epoch = record.validation_nll, record.epoch
            self._best = {
                name: value.detach().cpu().clone()
                for name, value in self.model.state_dict().items()
            }

    def enough(self, epochs: int) -> bool:
        """Whether after so many epochs the best one is `patience` epochs ago."""
        if self._patience is None or self.best_epoch is None:
            return False
        return epochs - 1 - self.best_epoch >= self._patience

    def settle(self) -> None:
        """Bring the weights to publish into the model that was trained."""
        if self.best_epoch is not None:
            self._model.load_state_dict(self._best)
        elif self._average is not None:
            self._model.load_state_dict(self._average.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes to go on."""
        average = {} if self._average is None else self._average.state_dict()
        kept = {"best": dict(self._best), "lowest": self._lowest, "best_epoch": self.best_epoch}
        return {"average": average} | kept

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self._best, self._lowest = state["best"], state["lowest"]
        self.best_epoch = state["best_epoch"]
