import math

import pytest
import torch
from torch import Tensor, nn

from softlabel.pipeline.training.losses import (
    IGNORED,
    hard_loss,
    kd_loss,
    soft_loss,
    teacher_entropy,
)

N, C = 7, 5


def logits() -> Tensor:
    return torch.randn(N, C, dtype=torch.float64) * 3


def labels() -> Tensor:
    return torch.randint(0, C, (N,))


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss, student)
    return result


def smoothed(hard: Tensor, smoothing: float) -> Tensor:
    """`(1-e) y + e/C`."""
    return (1 - smoothing) * torch.eye(C, dtype=torch.float64)[hard] + smoothing / C


def cross_entropy(target: Tensor, student: Tensor) -> Tensor:
    return -(target * student.log_softmax(dim=1)).sum(dim=1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_hard_loss_is_torchs_and_that_of_the_formula(smoothing: float) -> None:
    student, hard = logits().requires_grad_(), labels()
    loss = hard_loss(student, hard, smoothing)
    theirs = nn.CrossEntropyLoss(label_smoothing=smoothing)(student, hard)
    torch.testing.assert_close(loss, theirs)
    formula = cross_entropy(smoothed(hard, smoothing), student)
    torch.testing.assert_close(loss, formula)
    torch.testing.assert_close(gradient(loss, student), gradient(formula, student))


@pytest.mark.parametrize("soft_weight", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_kd_at_temperature_one_is_the_cross_entropy_to_mixed_targets(
    soft_weight: float, smoothing: float
) -> None:
    student, teacher, hard = logits().requires_grad_(), logits(), labels()
    total = kd_loss(student, teacher, hard, soft_weight, 1.0, smoothing).total
    soft = teacher.softmax(dim=1)
    mixed = (1 - soft_weight) * smoothed(hard, smoothing) + soft_weight * soft
    wanted = cross_entropy(mixed, student)
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(gradient(total, student), gradient(wanted, student))


def test_kd_worked() -> None:
    # Two classes; softmax at T = 2 gives 3/4 and 1/4 for the teacher, even odds for the student.
    teacher = torch.tensor([[2 * math.log(3), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    terms = kd_loss(student, teacher, torch.tensor([1]), 0.75, 2.0)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert terms.soft is not None and terms.soft_kl is not None
    assert float(terms.hard) == pytest.approx(math.log(2))
    assert float(terms.soft) == pytest.approx(math.log(2))
    assert float(terms.soft_kl) == pytest.approx(math.log(2) - entropy)
    assert float(terms.total) == pytest.approx((0.25 + 0.75 * 4) * math.log(2))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_raw_terms_do_not_depend_on_the_weight(temperature: float) -> None:
    student, teacher, hard = logits(), logits(), labels()
    first = kd_loss(student, teacher, hard, 0.1, temperature, 0.1)
    second = kd_loss(student, teacher, hard, 0.8, temperature, 0.1)
    assert first.soft is not None and second.soft is not None
    torch.testing.assert_close(first.hard, second.hard)
    torch.testing.assert_close(first.hard, hard_loss(student, hard, 0.1))
    torch.testing.assert_close(first.soft, second.soft)
    for weight, terms in ((0.1, first), (0.8, second)):
        assert terms.soft is not None
        wanted = (1 - weight) * terms.hard + weight * temperature**2 * terms.soft
        torch.testing.assert_close(terms.total, wanted)


def test_smoothing_touches_the_hard_part_alone() -> None:
    student, teacher, hard = logits(), logits(), labels()
    plain = kd_loss(student, teacher, hard, 1.0, 2.0, 0.0)
    smooth = kd_loss(student, teacher, hard, 1.0, 2.0, 0.3)
    torch.testing.assert_close(plain.total, smooth.total)
    assert not torch.isclose(plain.hard, smooth.hard)


def test_high_temperature_matches_centred_logits() -> None:
    # Hinton et al. 2015, eq. 4: T^2 dC/ds -> (s - t) / C for logits centred per row.
    student, teacher = logits().requires_grad_(), logits()
    # What is left out is of the order of z^2 / T.
    temperature = 1e7
    soft = kd_loss(student, teacher, labels(), 1.0, temperature).total
    difference = student.detach() - teacher
    centred = difference - difference.mean(dim=1, keepdim=True)
    torch.testing.assert_close(gradient(soft, student), centred / (N * C), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_kl_is_the_divergence_from_scratch(temperature: float) -> None:
    student, teacher = logits().requires_grad_(), logits()
    terms = kd_loss(student, teacher, labels(), 0.5, temperature)
    p = (teacher / temperature).exp() / (teacher / temperature).exp().sum(dim=1, keepdim=True)
    q = (student / temperature).exp() / (student / temperature).exp().sum(dim=1, keepdim=True)
    wanted = (p * (p / q).log()).sum(dim=1).mean()
    assert terms.soft is not None and terms.soft_kl is not None
    torch.testing.assert_close(terms.soft_kl, wanted)
    torch.testing.assert_close(gradient(terms.soft, student), gradient(wanted, student))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_a_student_that_agrees_has_no_divergence_and_no_soft_gradient(temperature: float) -> None:
    teacher = logits()
    student = (teacher + torch.randn(N, 1, dtype=torch.float64)).requires_grad_()
    terms = kd_loss(student, teacher, labels(), 1.0, temperature)
    assert terms.soft is not None and terms.soft_kl is not None
    assert terms.soft_kl.item() == pytest.approx(0, abs=1e-12)
    assert gradient(terms.soft, student).abs().max() < 1e-12


def test_a_masked_class_has_no_part_in_the_soft_terms() -> None:
    teacher, student = logits(), logits().requires_grad_()
    teacher[:, 2] = -math.inf
    terms = kd_loss(student, teacher, labels(), 0.9, 4.0)
    kept = [0, 1, 3, 4]
    entropy = teacher_entropy(teacher[:, kept], 4.0)
    torch.testing.assert_close(teacher_entropy(teacher, 4.0), entropy)
    assert torch.isfinite(terms.total)
    assert torch.isfinite(gradient(terms.total, student)).all()


def test_extreme_logits_stay_finite() -> None:
    teacher = torch.tensor([[0.0, -65504.0, -65504.0]])
    student = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    terms = kd_loss(student, teacher, torch.tensor([0]), 0.9, 1.0)
    assert terms.total.item() == pytest.approx(0.1 * 2e4 + 0.9 * 2e4)
    assert torch.isfinite(gradient(terms.total, student)).all()


def test_batches_are_averaged() -> None:
    student, teacher, hard = logits(), logits(), labels()
    whole = kd_loss(student, teacher, hard, 0.5, 2.0).total
    rows = [
        kd_loss(student[i : i + 1], teacher[i : i + 1], hard[i : i + 1], 0.5, 2.0).total
        for i in range(N)
    ]
    torch.testing.assert_close(whole, torch.stack(rows).mean())
    torch.testing.assert_close(
        soft_loss(student.repeat(3, 1), teacher.repeat(3, 1), 2.0), soft_loss(student, teacher, 2.0)
    )


def test_positions_without_a_label_have_no_part_in_the_hard_term() -> None:
    student = torch.randn(6, 4, requires_grad=True)
    labels = torch.tensor([1, IGNORED, 3, IGNORED, 0, 2])
    known = labels != IGNORED
    loss = hard_loss(student, labels, 0.2)
    torch.testing.assert_close(loss, nn.CrossEntropyLoss(label_smoothing=0.2)(student, labels))
    torch.testing.assert_close(loss, hard_loss(student[known], labels[known], 0.2))
    assert hard_loss(student, torch.full((6,), IGNORED)).item() == 0
