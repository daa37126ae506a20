import math

import numpy as np
import numpy.typing as npt
import pytest

from softlabel.pipeline.evaluation.metrics import ClassifierMetrics


def measured(
    logits: list[list[float]] | npt.NDArray[np.floating], labels: list[int], bins: int = 10
) -> ClassifierMetrics:
    metrics = ClassifierMetrics(bins)
    metrics.add(np.asarray(logits, np.float32), np.asarray(labels))
    return metrics


def confident(*confidences: float) -> list[list[float]]:
    """Two-class logits whose first class has these probabilities."""
    return [[math.log(value), math.log(1 - value)] for value in confidences]


def rows_of(metrics: ClassifierMetrics) -> list[int]:
    return [item.rows for item in metrics.bins()]


def test_accuracy_and_nll_worked() -> None:
    metrics = measured(confident(0.9, 0.6, 0.8, 0.7), [0, 1, 0, 1])
    assert metrics.rows == 4
    assert metrics.accuracy == 0.5
    wanted = -(math.log(0.9) + math.log(0.4) + math.log(0.8) + math.log(0.3)) / 4
    assert metrics.nll == pytest.approx(wanted, rel=1e-6)


def test_ece_worked() -> None:
    # Guo et al. 2017, eq. 3: 2/4 |1/2 - 0.85| + 2/4 |1 - 0.55|
    metrics = measured(confident(0.85, 0.85, 0.55, 0.55), [0, 1, 0, 0])
    assert metrics.ece == pytest.approx(0.5 * 0.35 + 0.5 * 0.45, abs=1e-7)
    assert rows_of(metrics) == [0, 0, 0, 0, 0, 2, 0, 0, 2, 0]
    high = metrics.bins()[8]
    assert (high.low, high.high, high.accuracy) == (0.8, 0.9, 0.5)
    assert high.confidence == pytest.approx(0.85)
    empty = metrics.bins()[0]
    assert (empty.confidence, empty.accuracy) == (None, None)


def test_errors_of_opposite_sign_in_one_bin_cancel_and_in_two_do_not() -> None:
    logits, labels = confident(0.9, 0.6), [1, 0]
    assert measured(logits, labels, bins=1).ece == pytest.approx(0.25, abs=1e-7)
    assert measured(logits, labels, bins=5).ece == pytest.approx((0.9 + 0.4) / 2, abs=1e-7)


@pytest.mark.parametrize(
    ("classes", "bins", "index"),
    [(2, 2, 0), (2, 4, 1), (2, 10, 4), (4, 4, 0), (4, 8, 1), (1, 10, 9)],
)
def test_a_confidence_on_an_edge_is_in_the_bin_below(classes: int, bins: int, index: int) -> None:
    metrics = measured(np.zeros((1, classes)), [0], bins)
    assert rows_of(metrics).index(1) == index


def test_an_even_guess_is_in_the_bin_that_ends_there() -> None:
    misplaced = [
        classes
        for classes in range(2, 40)
        if rows_of(measured(np.zeros((1, classes)), [0], bins=classes))[0] != 1
    ]
    assert misplaced == []


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    metrics = measured([[1e4, 0], [3e38, -3e38], [0, -math.inf]], [0, 0, 1])
    assert rows_of(metrics) == [0] * 9 + [3]
    assert metrics.bins()[9].confidence == 1
    assert metrics.nll == math.inf


def test_the_first_of_equal_classes_is_the_answer() -> None:
    assert measured([[2, 2, 1]], [0]).accuracy == 1
    assert measured([[2, 2, 1]], [1]).accuracy == 0


def test_half_precision_logits_are_summed_in_double() -> None:
    logits = np.tile(np.asarray([[0, 0.25]], np.float16), (100_000, 1))
    metrics = ClassifierMetrics(bins=15)
    metrics.add(logits, np.ones(100_000, np.int64))
    assert metrics.nll == pytest.approx(math.log(1 + math.exp(-0.25)), rel=1e-12)


def test_an_empty_batch_counts_nothing() -> None:
    metrics = measured(confident(0.9), [0])
    metrics.add(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    assert metrics.rows == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    metrics = measured(confident(0.9), [0])
    with pytest.raises(ValueError, match="NaN or infinity"):
        metrics.add(np.asarray([[0, 1], [0, bad]], np.float32), np.asarray([0, 0]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        metrics.add(np.full((1, 2), -np.inf, np.float32), np.asarray([0]))
    assert (metrics.rows, metrics.accuracy) == (1, 1)
