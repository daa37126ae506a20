"""The optimiser and the learning rate's way over the steps, by their names in torch.optim."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from softlabel.schemas.errors import ParameterError
from softlabel.schemas.params import TrainParams

# What a name brings along, where `optimizer_args` do not say otherwise.
PRESETS = {"sgd": {"momentum": 0.9, "nesterov": True}}
# One calls the loss as often as it likes within a step, the other takes sparse gradients alone.
NOT_HERE = ("lbfgs", "sparseadam")


def make_optimizer(params: TrainParams, model: nn.Module) -> Optimizer:
    """The optimiser of all of the model's parameters.

    Raises ParameterError for an unknown name or argument, or values that it refuses.
    """
    known = _optimizers()
    name = params.optimizer
    if name not in known:
        raise ParameterError(f"train: optimizer {name!r} is unknown{_nearest(name, list(known))}")
    accepted = [key for key in inspect.signature(known[name]).parameters if key != "params"]
    arguments = {"lr": params.learning_rate, "weight_decay": params.weight_decay}
    if "weight_decay" not in accepted and not params.weight_decay:
        del arguments["weight_decay"]
    given = PRESETS.get(name, {}) | params.optimizer_args
    for key in given | arguments:
        if key not in accepted:
            raise ParameterError(
                f"train: optimizer {name!r} takes no {key!r}{_nearest(key, accepted)}"
            )
    for key in arguments.keys() & given:
        raise ParameterError(
            f"train: optimizer_args: {key!r} has a setting of its own; use "
            f"{'learning_rate' if key == 'lr' else key}"
        )
    try:
        return known[name](model.parameters(), **arguments, **given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ParameterError(f"train: optimizer {name!r}: {error}; mend optimizer_args") from error


def make_schedule(
    params: TrainParams, optimizer: Optimizer, steps_per_epoch: int
) -> lr_scheduler.LRScheduler:
    """The learning rate over the steps: an even rise, where asked for, then the named schedule."""
    warmup = round(params.warmup_epochs * steps_per_epoch)
    steps = params.epochs * steps_per_epoch - warmup
    main = _named_schedule(params, optimizer, steps_per_epoch, warmup, steps)
    if not warmup:
        return main
    rise = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, main], milestones=[warmup])


def _named_schedule(
    params: TrainParams, optimizer: Optimizer, steps_per_epoch: int, warmup: int, steps: int
) -> lr_scheduler.LRScheduler:
    match params.schedule:
        case "constant":
            return lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        case "linear":
            return lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        case "step":
            falls = [epoch * steps_per_epoch - warmup for epoch in params.step_epochs]
            return lr_scheduler.MultiStepLR(optimizer, falls, params.step_factor)


def _optimizers() -> dict[str, Callable[..., Optimizer]]:
    found = {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, Optimizer) and value is not Optimizer
    }
    return {name: value for name, value in found.items() if name not in NOT_HERE}


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
