"""What a step does, on ten samples and a linear model: by hand, or against plain PyTorch."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from softlabel.pipeline.training import trainer
from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.fabric import make_fabric
from softlabel.pipeline.training.lesson import Lesson, Outcome
from softlabel.pipeline.training.loop import train
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports.training import EpochRecord

ROWS, CLASSES, STEPS = 10, 3, 2


def parameters(**changed: Any) -> TrainParams:
    fixed = {
        "model": "a:b",
        "loss": "kd",
        "labels": "labels",
        "optimizer": "sgd",
        "optimizer_args": {"momentum": 0, "nesterov": False},
    }
    usual = {"learning_rate": 0.5, "weight_decay": 0, "schedule": "constant", "epochs": 3}
    return TrainParams.model_validate(fixed | usual | changed)


class Linear(nn.Module):
    """Logits of one-pixel pictures."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(CLASSES, 4, generator=generator))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1).float() / 255 @ self.weight.T


def batches(epoch: int, first: int) -> Iterator[TrainingBatch]:
    random = np.random.default_rng(epoch)
    for step in range(STEPS):
        pixels = random.integers(0, 256, (ROWS, 2, 2, 1), np.uint8)
        labels = random.integers(0, CLASSES, ROWS, np.int64)
        keys = pa.array([f"{step}-{row}" for row in range(ROWS)])
        teacher = random.normal(size=(ROWS, CLASSES)).astype(np.float32)
        if step >= first:
            yield TrainingBatch(keys, pixels, labels, teacher)


def trained(params: TrainParams, **more: Any) -> tuple[Tensor, list[EpochRecord]]:
    """The final weights and the curve."""
    model = Linear()
    fabric = make_fabric("cpu", "32-true")
    records = list(train(params, fabric, model, batches, STEPS, None, **more))
    return model.weight.detach().clone(), records


def figures(record: EpochRecord) -> dict[str, float]:
    return record.model_dump(exclude_none=True)


@pytest.mark.parametrize("changed", [{"loss": "kd"}, {"loss": "dkd"}, {"mixup": 0.5, "cutmix": 1}])
def test_accumulation_changes_nothing_but_memory(
    changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, records = trained(parameters(**changed))
    sizes: list[int] = []
    for name in ("plain", "mixed"):
        lesson = getattr(Lesson, name)

        def watched(self: Lesson, part: TrainingBatch, *rest: Any, lesson: Any = lesson) -> Outcome:
            sizes.append(len(part.keys))
            return lesson(self, part, *rest)  # type: ignore[no-any-return]

        monkeypatch.setattr(Lesson, name, watched)
    parts, curve = trained(parameters(**changed, accumulate=4))
    assert sizes == [2, 3, 2, 3] * STEPS * 3
    torch.testing.assert_close(parts, weights)
    for one, other in zip(curve, records, strict=True):
        assert figures(one) == pytest.approx(figures(other), rel=1e-5)


def test_more_parts_than_samples_are_as_many_as_there_are() -> None:
    weights, _ = trained(parameters(accumulate=99))
    torch.testing.assert_close(weights, trained(parameters())[0])


def test_a_long_gradient_is_cut_to_the_norm() -> None:
    one_step = parameters(epochs=1, learning_rate=1.0, clip_norm=0.01)
    only = functools.partial(train, one_step, make_fabric("cpu", "32-true"))
    model = Linear()
    before = model.weight.detach().clone()
    list(only(model, lambda epoch, first: iter(list(batches(0, 1))), 1, None))
    assert float((model.weight.detach() - before).norm()) == pytest.approx(0.01, rel=1e-4)


def test_the_average_follows_the_weights_from_the_first_step_on() -> None:
    seen: list[Tensor] = []
    model = Linear()
    fabric = make_fabric("cpu", "32-true")
    model.register_forward_hook(lambda *_: seen.append(model.weight.detach().clone()))
    list(train(parameters(), fabric, model, batches, STEPS, None))
    after_steps = [*seen[1:], model.weight.detach()]
    average = after_steps[0]
    for weights in after_steps[1:]:
        average = 0.8 * average + 0.2 * weights
    torch.testing.assert_close(trained(parameters(ema=0.8))[0], average)


@pytest.mark.parametrize(
    ("changed", "rates"),
    [
        ({"schedule": "constant"}, [0.5, 0.5, 0.5, 0.5]),
        ({"schedule": "linear"}, [0.5, 0.375, 0.25, 0.125]),
        ({"schedule": "step", "step_epochs": [1, 3]}, [0.5, 0.05, 0.05, 0.005]),
        # It rises over two steps, 1/3 and 2/3 of it, and then falls over the six that are left.
        ({"schedule": "linear", "warmup_epochs": 1}, [0.5 / 3, 0.5, 0.5 * 2 / 3, 0.5 / 3]),
    ],
)
def test_the_learning_rate_follows_its_schedule_from_step_to_step(
    changed: dict[str, Any], rates: list[float]
) -> None:
    _, records = trained(parameters(epochs=4, **changed))
    assert [record.learning_rate for record in records] == pytest.approx(rates)


def test_patience_stops_and_the_best_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([0.9, 0.5, 0.7, 0.5, 0.4])
    monkeypatch.setattr(
        trainer,
        "validate",
        lambda *_: {"validation_accuracy": 0.5, "validation_nll": next(figures)},
    )
    patient = parameters(epochs=5, patience=2, validation=Path("somewhere"))
    weights, records = trained(patient)
    assert [record.validation_nll for record in records] == [0.9, 0.5, 0.7, 0.5]
    monkeypatch.undo()
    torch.testing.assert_close(weights, trained(parameters(epochs=2))[0], rtol=0, atol=0)


def test_compiled_it_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compiler = torch.compile

    def eager(model: nn.Module, **options: Any) -> Any:
        calls.append(model)
        return compiler(model, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    weights, _ = trained(parameters(compile=True))
    assert calls
    torch.testing.assert_close(weights, trained(parameters())[0])


def test_parts_of_a_batch_keep_what_belongs_together() -> None:
    (batch, _) = batches(0, 0)
    parts = list(batch.parts(3))
    assert [len(part.keys) for part in parts] == [3, 3, 4]
    assert [part.share for part in parts] == [0.3, 0.3, 0.4]
    for name in ("keys", "pixels", "labels", "teacher"):
        joined = [row for part in parts for row in getattr(part, name).tolist()]
        assert joined == getattr(batch, name).tolist()
