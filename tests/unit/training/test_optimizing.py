import io
from typing import Any

import pytest
import torch
from torch import nn

from softlabel.pipeline.training.optimizing import make_optimizer, make_schedule
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.params import TrainParams


def parameters(**changed: Any) -> TrainParams:
    return TrainParams.model_validate({"model": "a:b", "learning_rate": 1.0} | changed)


def rates(steps_per_epoch: int = 2, **changed: Any) -> list[float]:
    """The learning rate of every step."""
    params = parameters(**changed)
    optimizer = make_optimizer(params, nn.Linear(2, 2))
    schedule = make_schedule(params, optimizer, steps_per_epoch)
    found = []
    for _ in range(params.epochs * steps_per_epoch):
        found.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "radam", "rmsprop", "adafactor"])
def test_an_optimizer_of_torch_by_its_name(name: str) -> None:
    optimizer = make_optimizer(parameters(optimizer=name, weight_decay=0.25), nn.Linear(2, 2))
    assert type(optimizer).__name__.lower() == name
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1.0, 0.25)


def test_arguments_reach_it_and_go_before_the_preset() -> None:
    params = parameters(optimizer="sgd", optimizer_args={"nesterov": False})
    (group,) = make_optimizer(params, nn.Linear(2, 2)).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.9, False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": "adamv"}, "optimizer 'adamv' is unknown; did you mean 'adam"),
        ({"optimizer": "lbfgs"}, "optimizer 'lbfgs' is unknown"),
        ({"optimizer_args": {"beta": 1}}, "'adamw' takes no 'beta'; did you mean 'betas'"),
        ({"optimizer_args": {"lr": 1}}, "'lr' has a setting of its own; use learning_rate"),
        ({"optimizer_args": {"betas": [2, 2]}}, "'adamw': Invalid beta parameter"),
        ({"optimizer": "rprop", "weight_decay": 0.1}, "'rprop' takes no 'weight_decay'"),
    ],
)
def test_what_it_does_not_take_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_optimizer(parameters(**changed), nn.Linear(2, 2))


def test_an_optimizer_without_weight_decay() -> None:
    assert make_optimizer(parameters(optimizer="rprop", weight_decay=0), nn.Linear(2, 2))


def test_schedules() -> None:
    assert rates(epochs=2, schedule="constant") == [1, 1, 1, 1]
    assert rates(epochs=2, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(epochs=2, schedule="cosine") == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
    falling = rates(epochs=4, schedule="step", step_epochs=[1, 3], step_factor=0.5)
    assert falling == pytest.approx([1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25])


def test_the_rise_comes_before_the_schedule_and_takes_its_share_of_the_steps() -> None:
    rise = [0.25, 0.5, 0.75]
    assert rates(epochs=4, schedule="linear", warmup_epochs=1.5) == pytest.approx(
        [*rise, 1, 0.8, 0.6, 0.4, 0.2]
    )
    falling = rates(epochs=4, schedule="step", step_epochs=[3], warmup_epochs=1.5)
    assert falling == pytest.approx([*rise, 1, 1, 1, 0.1, 0.1])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "step"])
@pytest.mark.parametrize("warmup_epochs", [0, 1.5])
def test_a_schedule_goes_on_from_what_a_checkpoint_holds(
    schedule: str, warmup_epochs: float
) -> None:
    falls: Any = {"step_epochs": [2]} if schedule == "step" else {}
    params = parameters(epochs=3, schedule=schedule, warmup_epochs=warmup_epochs, **falls)
    expected = rates(epochs=3, schedule=schedule, warmup_epochs=warmup_epochs, **falls)
    optimizer = make_optimizer(params, nn.Linear(2, 2))
    running = make_schedule(params, optimizer, 2)
    found = []
    for _ in range(len(expected)):
        file = io.BytesIO()
        torch.save((optimizer.state_dict(), running.state_dict()), file)
        file.seek(0)
        states = torch.load(file, weights_only=True)
        optimizer = make_optimizer(params, nn.Linear(2, 2))
        running = make_schedule(params, optimizer, 2)
        optimizer.load_state_dict(states[0])
        running.load_state_dict(states[1])
        found.append(float(running.get_last_lr()[0]))
        assert found[-1] == optimizer.param_groups[0]["lr"]
        optimizer.step()
        running.step()
    assert found == expected
