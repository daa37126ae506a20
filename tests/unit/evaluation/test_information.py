"""The mutual information agrees with hand-worked numbers, its bounds and an integral."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from softlabel.pipeline.evaluation.information import mutual_information


def test_worked_by_hand() -> None:
    # Means 1 and 4, but for its own mean each version has the other one, 2 away: the variance is 4.
    measured = mutual_information(np.array([[0.0, 2.0], [3.0, 5.0]]))
    distances = {"own": (4, 4, 4, 4), "other": (16, 4, 4, 16)}
    terms = [
        -own / 8 - math.log(math.exp(-own / 8) + math.exp(-other / 8))
        for own, other in zip(distances["own"], distances["other"], strict=True)
    ]
    assert measured == pytest.approx(math.log(2) + sum(terms) / 4, rel=1e-12)


@pytest.mark.parametrize("apart", [0.5, 1.0, 2.0, 4.0])
def test_two_pictures_are_a_channel_of_two_inputs(apart: float) -> None:
    random = np.random.default_rng(0)
    draws = random.normal([[apart / 2], [-apart / 2]], 1.0, (2, 20_000))

    def integrand(y: float) -> float:
        ways = norm.pdf(y, apart / 2), norm.pdf(y, -apart / 2)
        return float(ways[0] * math.log(2 * ways[0] / sum(ways)))

    wanted = quad(integrand, -12, 12)[0]
    assert mutual_information(draws) == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize(
    ("means", "wanted"),
    [(np.zeros(8), 0.0), (np.arange(8) % 2, math.log(2)), (np.arange(8), math.log(8))],
    ids=["all alike", "two groups", "all apart"],
)
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_groups_of_pictures(means: np.ndarray, wanted: float, noise: float) -> None:
    draws = means[:, None] + np.random.default_rng(1).normal(0, noise, (8, 300))
    assert mutual_information(draws) == pytest.approx(wanted, abs=1e-9 if noise == 0 else 1e-3)


def test_scale_and_offset_do_not_matter() -> None:
    draws = np.random.default_rng(2).normal(np.arange(5)[:, None], 1.0, (5, 10))
    assert mutual_information(1e3 * draws - 7) == pytest.approx(mutual_information(draws))


def test_pictures_that_say_nothing_have_almost_none() -> None:
    random = np.random.default_rng(3)
    measured = [mutual_information(random.normal(size=(50, 20))) for _ in range(100)]
    assert np.mean(measured) == pytest.approx(-1 / 40, abs=0.003)


@pytest.mark.parametrize("shape", [(0, 3), (3, 1)])
def test_too_few(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 in 2 are needed"):
        mutual_information(np.zeros(shape))


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="the logits are not finite"):
        mutual_information(np.array([[0.0, np.nan]]))
