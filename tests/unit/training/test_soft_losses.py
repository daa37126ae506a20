"""Every soft loss against its formula written out, its limits and its worked numbers."""

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import pearsonr
from torch import Tensor

from softlabel.pipeline.training.losses import (
    dist_loss,
    dkd_loss,
    hard_loss,
    jensen_shannon,
    kd_loss,
    logit_mse,
    reverse_kl,
    standardise,
)

N, C = 6, 5


def logits() -> Tensor:
    return torch.randn(N, C, dtype=torch.float64) * 3


def labels() -> Tensor:
    return torch.randint(0, C, (N,))


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(dim=1)


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss, student)
    return result


def test_smoothing_of_the_others_only() -> None:
    student, hard = logits(), labels()
    target = torch.full((N, C), 0.2 / (C - 1), dtype=torch.float64)
    target[torch.arange(N), hard] = 0.8
    wanted = -(target * student.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(hard_loss(student, hard, 0.2, others_only=True), wanted)
    with pytest.raises(ValueError, match=r"at most 0\.8"):
        hard_loss(student, hard, 0.9, others_only=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_reverse_kl_and_jensen_shannon_from_scratch(temperature: float) -> None:
    student, teacher = logits(), logits()
    p, q = (teacher / temperature).softmax(dim=1), (student / temperature).softmax(dim=1)
    torch.testing.assert_close(reverse_kl(student, teacher, temperature), kl(q, p).mean())
    theirs = [jensenshannon(p[row], q[row]) ** 2 for row in range(N)]
    value = float(jensen_shannon(student, teacher, temperature))
    assert value == pytest.approx(sum(theirs) / N)
    assert value == pytest.approx(float(jensen_shannon(teacher, student, temperature)))


def test_jensen_shannon_of_what_shares_nothing_is_ln_2() -> None:
    student = torch.tensor([[0.0, -torch.inf]])
    teacher = torch.tensor([[-torch.inf, 0.0]])
    assert float(jensen_shannon(student, teacher, 1.0)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_kd_is_tckd_and_nckd(temperature: float, masked: bool) -> None:
    # Zhao et al. 2022, eq. 6: KL = TCKD + (1 - p_target) NCKD, sample by sample.
    student, teacher, hard = logits(), logits(), torch.zeros(N, dtype=torch.int64)
    if masked:
        teacher[:, 3] = -torch.inf
    for row in range(N):
        one = slice(row, row + 1)
        share = float((teacher[one] / temperature).softmax(dim=1)[0, hard[row]])
        parts = dkd_loss(student[one], teacher[one], hard[one], temperature, 1.0, 1 - share)
        whole = kd_loss(student[one], teacher[one], hard[one], 1.0, temperature).soft_kl
        assert whole is not None
        torch.testing.assert_close(parts, whole)


def test_dkd_worked() -> None:
    # Teacher (1/2, 1/4, 1/4), student (1/4, 1/2, 1/4), class 0: TCKD = KL((1/2,1/2)||(1/4,3/4)),
    # NCKD = KL((1/2,1/2)||(2/3,1/3)).
    teacher = torch.tensor([[0.5, 0.25, 0.25]]).log().double()
    student = torch.tensor([[0.25, 0.5, 0.25]]).log().double()
    target = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    others = 0.5 * math.log(3 / 4) + 0.5 * math.log(3 / 2)
    value = dkd_loss(student, teacher, torch.tensor([0]), 1.0, 3.0, 5.0)
    assert float(value) == pytest.approx(3 * target + 5 * others, rel=1e-6)


def test_logit_mse_is_the_high_temperature_limit() -> None:
    student, teacher = logits().requires_grad_(), logits()
    soft = kd_loss(student, teacher, labels(), 1.0, 1e4)
    assert soft.soft_kl is not None
    limit = logit_mse(student, teacher)
    torch.testing.assert_close(1e8 * soft.soft_kl, limit, rtol=1e-3, atol=1e-6)
    wanted = gradient(soft.total, student)
    # What is left of the next order is 1/T of the logits' size, whatever the component's.
    torch.testing.assert_close(gradient(limit, student), wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_dist_is_one_less_the_correlations(temperature: float) -> None:
    student, teacher = logits(), logits()
    p, q = (teacher / temperature).softmax(dim=1), (student / temperature).softmax(dim=1)
    between = sum(1 - pearsonr(p[row], q[row]).statistic for row in range(N)) / N
    within = sum(1 - pearsonr(p[:, c], q[:, c]).statistic for c in range(C)) / C
    assert float(dist_loss(student, teacher, temperature)) == pytest.approx(between + within)
    assert float(dist_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-9)


def test_standardised_logits_have_no_scale_and_no_offset() -> None:
    plain = logits()
    moved = plain * 7 + torch.randn(N, 1, dtype=torch.float64)
    torch.testing.assert_close(standardise(moved), standardise(plain), rtol=1e-5, atol=1e-6)
    assert standardise(plain).mean(dim=1).abs().max() < 1e-12
    deviation = plain.std(dim=1, correction=0)
    # What keeps a constant row finite, 1e-7, is added to each.
    wanted = deviation / (deviation + 1e-7)
    torch.testing.assert_close(
        standardise(plain).std(dim=1, correction=0), wanted, atol=0, rtol=1e-12
    )
    assert torch.isfinite(standardise(torch.ones(2, C))).all()


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "dkd", "dist", "mse"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    teacher, hard = logits(), labels()
    losses = {
        "reverse_kl": lambda s: reverse_kl(s, teacher, 2.0),
        "jensen_shannon": lambda s: jensen_shannon(s, teacher, 2.0),
        "dkd": lambda s: dkd_loss(s, teacher, hard, 2.0),
        "dist": lambda s: dist_loss(s, teacher),
        "mse": lambda s: logit_mse(s, teacher),
    }
    assert torch.autograd.gradcheck(losses[name], (logits().requires_grad_(),))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_masked_class_leaves_gradients_finite(temperature: float) -> None:
    teacher, student, hard = logits(), logits().requires_grad_(), labels()
    teacher[:, 2] = -torch.inf
    hard[hard == 2] = 0
    for loss in (
        jensen_shannon(student, teacher, temperature),
        dkd_loss(student, teacher, hard, temperature),
        dist_loss(student, teacher, temperature),
    ):
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient(loss, student)).all()
