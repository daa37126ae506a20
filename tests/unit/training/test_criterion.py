from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.training.criterion import Loss
from softlabel.pipeline.training.distillation import SoftTerm, distillation_terms
from softlabel.pipeline.training.losses import LossTerms
from softlabel.pipeline.training.targets import PackedTargets, stored_targets
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.labelset import CodecName
from softlabel.schemas.params import TrainParams
from softlabel.torch import DistillationLoss
from tests.unit.blocks import CLASSES, CODECS, block_of, packing_of, write_set

ROWS = 5
T, WEIGHT = 2.0, 0.7
LOSSES = [loss for loss in get_args(Loss) if loss != "hard"]


@pytest.fixture
def student() -> Tensor:
    return torch.randn(ROWS, len(CLASSES), requires_grad=True)


@pytest.fixture
def hard() -> Tensor:
    return torch.randint(0, len(CLASSES), (ROWS,))


@pytest.fixture
def factored(tmp_path: Any) -> LabelSet:
    packing = packing_of("factored")
    return open_labelset(write_set(tmp_path / "factored", packing, [block_of(packing, ROWS)]))


def by_the_command(
    student: Tensor, teacher: Any, hard: Tensor, temperature: float = T, **settings: Any
) -> LossTerms:
    """The terms as train-student has them."""
    params = TrainParams.model_validate(
        {"model": "any", "labels": "any", "loss": "kd", "label_smoothing": 0.1} | settings
    )
    return distillation_terms(params, SoftTerm(temperature, WEIGHT), student, teacher, hard)


def same(one: LossTerms, other: LossTerms) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_the_losses_are_those_of_the_command() -> None:
    assert get_args(Loss) == get_args(TrainParams.model_fields["loss"].annotation)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("standardise", [False, True])
def test_every_loss_is_the_commands(
    loss: Any, standardise: bool, student: Tensor, hard: Tensor
) -> None:
    teacher = torch.randn(ROWS, len(CLASSES))
    settings: dict[str, Any] = {"loss": loss, "standardise": standardise, "other_weight": 3.0}
    criterion = DistillationLoss(WEIGHT, T, 0.1, **settings)
    terms = criterion.terms(student, teacher, hard)
    same(terms, by_the_command(student, teacher, hard, **settings))
    assert torch.equal(criterion(student, teacher, hard), terms.total)


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "topk"])
def test_every_codecs_labels_are_taken_as_stored(
    codec: CodecName, factored: LabelSet, student: Tensor, hard: Tensor
) -> None:
    block = block_of(packing_of(codec), ROWS)
    labels = factored if codec == "factored" else None
    criterion = DistillationLoss(WEIGHT, T, 0.1, labels=labels, fitted_temperature=1.5)
    terms = criterion.terms(student, stored_targets(block, 1.0), hard)
    same(terms, by_the_command(student, torch.from_numpy(block.logits()) / 1.5, hard))
    (gradient,) = torch.autograd.grad(terms.total, student)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("fitted", [1.0, 1.5])
def test_topk_labels_are_one_bucket_or_spread(fitted: float, student: Tensor, hard: Tensor) -> None:
    block = block_of(packing_of("topk"), ROWS)
    criterion = DistillationLoss(WEIGHT, T, 0.1, fitted_temperature=fitted)
    targets = stored_targets(block, fitted * T)
    kept = block.sparse(fitted * T)
    ids = torch.from_numpy(kept.ids.astype(np.int64))
    sparse = criterion._kept(targets, fitted * T) if isinstance(targets, PackedTargets) else None
    assert sparse is not None
    assert torch.equal(sparse.ids, ids)
    assert torch.equal(sparse.logits, torch.from_numpy(kept.logits) / fitted)
    assert torch.equal(sparse.tail_lse, torch.from_numpy(kept.tail_lse))
    same(criterion.terms(student, targets, hard), by_the_command(student, sparse, hard))
    spread = stored_targets(block, fitted * T, spread=True)
    dense = torch.from_numpy(block.logits(fitted * T)) / fitted
    same(criterion.terms(student, spread, hard), by_the_command(student, dense, hard))


def test_settings_may_move_between_steps(student: Tensor, hard: Tensor) -> None:
    teacher = torch.randn(ROWS, len(CLASSES))
    criterion = DistillationLoss(0.1, 9.0, 0.1)
    criterion.soft_weight, criterion.temperature = WEIGHT, 3.0
    same(
        criterion.terms(student, teacher, hard),
        by_the_command(student, teacher, hard, temperature=3.0),
    )


def test_hard_labels_alone_need_no_targets(student: Tensor, hard: Tensor) -> None:
    loss = DistillationLoss(label_smoothing=0.1, loss="hard")(student, None, hard)
    wanted = torch.nn.functional.cross_entropy(student, hard, label_smoothing=0.1)
    torch.testing.assert_close(loss, wanted)
    with pytest.raises(ParameterError, match="loss 'kd' needs soft targets and got None"):
        DistillationLoss()(student, None, hard)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"soft_weight": 1.5}, "soft_weight: Input should be less than or equal to 1; got 1.5"),
        ({"temperature": 0.0}, "temperature: Input should be greater than 0; got 0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing: Input should be less than 1; got 1.0"),
        ({"loss": "kl"}, "loss: Input should be 'hard', 'kd'"),
        ({"fitted_temperature": -1.0}, "fitted_temperature must be above 0, got -1.0"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ParameterError, match=f"DistillationLoss: {problem}"):
        DistillationLoss(**settings)


def test_what_does_not_fit_together_is_named(student: Tensor, hard: Tensor) -> None:
    with pytest.raises(ParameterError, match=r"targets are \[5, 7\], the student's logits \[5, 6"):
        DistillationLoss()(student, torch.zeros(ROWS, 7), hard)
    with pytest.raises(ParameterError, match=r"hard labels \[N\], got .*takes batch_size=None"):
        DistillationLoss()(student, None, hard[None])
    features = stored_targets(block_of(packing_of("factored"), ROWS), 1.0)
    with pytest.raises(ParameterError, match="features of a factored label set; pass that as lab"):
        DistillationLoss()(student, features, hard)
    kept = stored_targets(block_of(packing_of("topk"), ROWS), 4.0)
    with pytest.raises(ParameterError, match="is that of temperature 4, and the loss uses 2; give"):
        DistillationLoss(temperature=2.0)(student, kept, hard)
    with pytest.raises(ParameterError, match="loss 'dkd' needs the logits of all classes"):
        DistillationLoss(loss="dkd")(student, kept, hard)


def test_packed_targets_go_where_batches_go() -> None:
    targets = stored_targets(block_of(packing_of("topk"), ROWS), 4.0)
    moved = targets.to("meta")
    assert isinstance(moved, PackedTargets)
    assert {column.device.type for column in moved.columns.values()} == {"meta"}
    assert moved.temperature == 4.0
