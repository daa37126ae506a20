"""Agreement, KL and total variation of two models, by SciPy and by hand."""

import math

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from softlabel.pipeline.evaluation.pairs import PairMetrics


def test_figures_are_those_of_scipy() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(0, 2, (2, 60, 7)).astype(np.float32)
    pairs = PairMetrics()
    pairs.add(first[:25], second[:25])
    pairs.add(first[25:] + 100, second[25:] - 50)
    got = pairs.figures()
    p, q = softmax(first.astype(float), axis=1), softmax(second.astype(float), axis=1)
    assert got.kl == pytest.approx(rel_entr(p, q).sum(axis=1).mean(), rel=1e-4)
    assert got.total_variation == pytest.approx(np.abs(p - q).sum(axis=1).mean() / 2, rel=1e-4)
    assert got.agreement == pytest.approx((first.argmax(1) == second.argmax(1)).mean())


def test_worked() -> None:
    pairs = PairMetrics()
    pairs.add(np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]]))
    got = pairs.figures()
    assert got.kl == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2)
    assert got.total_variation == pytest.approx(0.125)
    assert got.agreement == 0.5


def test_what_the_first_masks_has_no_part() -> None:
    pairs = PairMetrics()
    pairs.add(np.array([[0, -np.inf, 0]]), np.zeros((1, 3)))
    assert pairs.figures().kl == pytest.approx(math.log(3 / 2))
