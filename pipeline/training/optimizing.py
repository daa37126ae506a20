"""The optimiser and the learning rate's way over the steps."""

from __future__ import annotations

import torch
from torch import nn

from softlabel.schemas.params import TrainParams


def make_optimizer(params: TrainParams, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all of the model's parameters."""
    weights, rate, decay = model.parameters(), params.learning_rate, params.weight_decay
    if params.optimizer == "sgd":
        return torch.optim.SGD(weights, rate, momentum=0.9, weight_decay=decay, nesterov=True)
    return torch.optim.AdamW(weights, rate, weight_decay=decay)


def make_schedule(
    params: TrainParams, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over so many steps in all."""
    if params.schedule == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
