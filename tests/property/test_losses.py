"""Laws of the losses: no shift of a row's logits is seen, and the teacher is the best student."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from softlabel.pipeline.training.losses import LossTerms, kd_loss

TEMPERATURES = st.floats(0.25, 64)
WEIGHTS = st.floats(0, 1)


@st.composite
def rows(draw: st.DrawFn, classes: int = 4) -> Tensor:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 10.0, 50.0]))
    return torch.from_numpy(random.normal(0, 1, (3, classes)) * scale)


def terms(student: Tensor, teacher: Tensor, temperature: float, weight: float) -> LossTerms:
    return kd_loss(student, teacher, torch.tensor([0, 1, 3]), weight, temperature, 0.1)


@settings(max_examples=30)
@given(rows(), rows(), rows(classes=1), rows(classes=1), TEMPERATURES, WEIGHTS)
def test_a_rows_shift_changes_nothing(
    student: Tensor, teacher: Tensor, one: Tensor, two: Tensor, temperature: float, weight: float
) -> None:
    plain = terms(student, teacher, temperature, weight)
    shifted = terms(student + one, teacher + two, temperature, weight)
    for name in ("total", "hard", "soft", "soft_kl"):
        before, after = getattr(plain, name), getattr(shifted, name)
        torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)


@settings(max_examples=30)
@given(rows(), rows(), TEMPERATURES)
def test_divergence_is_never_negative_and_zero_for_the_teacher(
    student: Tensor, teacher: Tensor, temperature: float
) -> None:
    other = terms(student, teacher, temperature, 0.5).soft_kl
    own = terms(teacher.clone(), teacher, temperature, 0.5).soft_kl
    assert other is not None and own is not None
    assert float(other) >= -1e-9
    assert abs(float(own)) <= 1e-9


@settings(max_examples=30)
@given(rows(), rows(), TEMPERATURES)
def test_the_order_of_the_classes_does_not_matter(
    student: Tensor, teacher: Tensor, temperature: float
) -> None:
    turned = [2, 0, 3, 1]
    plain = terms(student, teacher, temperature, 1.0).total
    moved = terms(student[:, turned], teacher[:, turned], temperature, 1.0).total
    torch.testing.assert_close(plain, moved)
