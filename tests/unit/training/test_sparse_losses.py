"""Sparse targets give what the dense formulas give on the same support."""

import math

import pytest
import torch
from torch import Tensor

from softlabel.pipeline.training.losses import soft_loss
from softlabel.pipeline.training.sparse_losses import bucket_loss, sparse_teacher_entropy

N, C, K = 5, 9, 3


def sparse(teacher: Tensor, temperature: float, k: int = K) -> tuple[Tensor, Tensor, Tensor]:
    values, ids = teacher.topk(k, dim=1)
    rest = teacher.scatter(1, ids, -torch.inf)
    return ids, values, (rest / temperature).logsumexp(dim=1)


def bucketed(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of the kept classes and of all others together, `[N, k + 1]`."""
    probs = (logits / temperature).softmax(dim=1)
    kept = probs.gather(1, ids)
    others = probs.scatter(1, ids, 0).sum(dim=1, keepdim=True)
    return torch.cat([kept, others], dim=1).log()


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    student = (torch.randn(N, C, dtype=torch.float64) * 2).requires_grad_()
    return student, torch.randn(N, C, dtype=torch.float64) * 2


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_bucket_loss_is_the_cross_entropy_over_k_and_one(
    pair: tuple[Tensor, Tensor], temperature: float
) -> None:
    student, teacher = pair
    ids, values, tail = sparse(teacher, temperature)
    theirs = bucketed(teacher, ids, temperature)
    wanted = -(theirs.exp() * bucketed(student, ids, temperature)).sum(dim=1).mean()
    loss = bucket_loss(student, ids, values, tail, temperature)
    torch.testing.assert_close(loss, wanted)
    (got,) = torch.autograd.grad(loss, student)
    (right,) = torch.autograd.grad(wanted, student)
    torch.testing.assert_close(got, right)
    entropy = -(theirs.exp() * theirs).sum(dim=1).mean()
    torch.testing.assert_close(sparse_teacher_entropy(values, tail, temperature), entropy)
    whole = soft_loss(student, teacher, temperature) - soft_loss(teacher, teacher, temperature)
    assert float((loss - entropy).detach()) <= float(whole.detach()) + 1e-12


def test_a_shift_of_the_teachers_row_changes_nothing(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    ids, values, tail = sparse(teacher, 2.0)
    plain = bucket_loss(student, ids, values, tail, 2.0)
    torch.testing.assert_close(bucket_loss(student, ids, values + 6, tail + 3, 2.0), plain)


def test_an_empty_tail_leaves_loss_and_gradient_finite(pair: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair
    ids, values, _ = sparse(teacher, 1.0)
    tail = torch.full((N,), -torch.inf, dtype=torch.float64)
    loss = bucket_loss(student, ids, values, tail, 1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_a_small_tail_is_not_lost() -> None:
    student = torch.tensor([[20.0, 0.0, 0.0]])
    ids, values = torch.tensor([[0]]), torch.tensor([[0.0]])
    tail = torch.tensor([-20 + math.log(2)])
    loss = bucket_loss(student, ids, values, tail, 1.0)
    assert float(loss) == pytest.approx(float(sparse_teacher_entropy(values, tail, 1.0)), rel=1e-5)
