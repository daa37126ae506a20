"""Every figure of a classifier against other libraries, or numbers worked by hand."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from softlabel.pipeline.evaluation.metrics import ClassifierMetrics
from softlabel.pipeline.evaluation.ranking import Ranking
from softlabel.schemas.reports.figures import ClassifierFigures

ROWS, CLASSES, BINS = 700, 8, 15


@pytest.fixture
def rows() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    random = np.random.default_rng(3)
    logits = random.normal(0, 2, (ROWS, CLASSES)).astype(np.float32)
    guess = logits + random.normal(0, 2, logits.shape)
    return logits, guess.argmax(axis=1)


def figures(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], pieces: int = 3
) -> ClassifierFigures:
    metrics = ClassifierMetrics(BINS)
    for part in np.array_split(np.arange(len(labels)), pieces):
        metrics.add(logits[part], labels[part])
    return metrics.figures()


def test_other_libraries_say_the_same(
    rows: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
) -> None:
    logits, labels = rows
    got = figures(logits, labels)
    probs = softmax(logits.astype(np.float64), axis=1)
    assert got.nll == pytest.approx(log_loss(labels, probs), abs=1e-9)
    assert got.top5_accuracy == pytest.approx(top_k_accuracy_score(labels, probs, k=5))
    wanted = brier_score_loss(labels, probs, scale_by_half=False)
    assert got.brier == pytest.approx(wanted, abs=1e-9)
    assert got.entropy == pytest.approx(float(entropy(probs, axis=1).mean()), abs=1e-9)
    given = (torch.from_numpy(probs), torch.from_numpy(labels), CLASSES, BINS)
    theirs = multiclass_calibration_error(*given, norm="l1")
    assert got.ece == pytest.approx(float(theirs), abs=1e-6)
    theirs = multiclass_calibration_error(*given, norm="max")
    assert got.mce == pytest.approx(float(theirs), abs=1e-6)


def test_netcal_says_the_same(
    rows: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
) -> None:
    # It takes seconds to import.
    from netcal.metrics import ECE, MCE

    logits, labels = rows
    got = figures(logits, labels)
    probs = softmax(logits.astype(np.float64), axis=1)
    own = [ECE(BINS).measure(probs[:, one], (labels == one).astype(int)) for one in range(CLASSES)]
    assert got.ece == pytest.approx(ECE(BINS).measure(probs, labels), abs=1e-12)
    assert got.mce == pytest.approx(MCE(BINS).measure(probs, labels), abs=1e-12)
    assert got.classwise_ece == pytest.approx(np.mean(own), abs=1e-12)
    wanted = ECE(BINS, equal_intervals=False).measure(probs, labels)
    assert got.adaptive_ece == pytest.approx(wanted, abs=1e-12)


def test_classwise_ece_is_the_mean_over_classes(
    rows: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
) -> None:
    logits, labels = rows
    probs = softmax(logits.astype(np.float64), axis=1)
    errors = []
    for label in range(CLASSES):
        index = np.minimum(np.ceil(probs[:, label] * BINS).astype(int) - 1, BINS - 1)
        gaps = [
            abs((labels[index == b] == label).sum() - probs[index == b, label].sum())
            for b in range(BINS)
        ]
        errors.append(sum(gaps) / ROWS)
    assert figures(logits, labels).classwise_ece == pytest.approx(np.mean(errors), abs=1e-9)


def ranked(confidence: list[float], hit: list[bool]) -> Ranking:
    ranking = Ranking()
    for one, right in zip(confidence, hit, strict=True):
        ranking.add(np.array([one]), np.array([right]))
    return ranking


def test_aurc_worked() -> None:
    # Risks at coverage 1/4 .. 4/4: 0, 1/2, 1/3, 2/4; of the best order 0, 0, 1/3, 2/4.
    ranking = ranked([0.6, 0.9, 0.8, 0.7], [False, True, False, True])
    assert ranking.aurc() == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert ranking.excess_aurc() == pytest.approx(1 / 8)


def test_rows_of_equal_confidence_share_their_errors() -> None:
    # Each of the three has two thirds of an error, whatever the order they came in.
    one = ranked([0.5, 0.5, 0.5, 0.4], [True, False, False, True])
    two = ranked([0.5, 0.4, 0.5, 0.5], [False, True, False, True])
    assert one.aurc() == pytest.approx((2 / 3 * 3 + 2 / 4) / 4)
    assert two.aurc() == pytest.approx(one.aurc())


@pytest.mark.parametrize(("hit", "value"), [(True, 0.0), (False, 1.0)])
def test_all_right_and_all_wrong(hit: bool, value: float) -> None:
    ranking = ranked([0.5, 0.9, 0.5], [hit] * 3)
    assert ranking.aurc() == value
    assert ranking.excess_aurc() == 0


def test_adaptive_ece_worked() -> None:
    # Two bins of two rows: |1/2 - 0.85| and |1 - 0.65|, each of half the rows.
    ranking = ranked([0.9, 0.7, 0.8, 0.6], [True, True, False, True])
    assert ranking.adaptive_ece(2) == pytest.approx((0.35 + 0.35) / 2)
    assert ranking.adaptive_ece(99) == pytest.approx((0.1 + 0.3 + 0.8 + 0.4) / 4)


def test_five_classes_before_the_label_put_it_outside() -> None:
    logits = np.zeros((2, 7), np.float32)
    got = figures(logits, np.array([4, 5]), pieces=1)
    assert got.top5_accuracy == 0.5


def test_a_masked_class_has_no_part() -> None:
    masked = np.array([[0, -np.inf, 0]], np.float32)
    got = figures(masked, np.array([0]), pieces=1)
    assert got.entropy == pytest.approx(math.log(2))
    assert got.brier == pytest.approx(0.5)
    assert got.nll == pytest.approx(math.log(2))
