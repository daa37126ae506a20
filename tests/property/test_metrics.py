"""The streaming metrics agree with scikit-learn, and with themselves however rows are batched."""

import math

import numpy as np
import numpy.typing as npt
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss

from softlabel.pipeline.evaluation.metrics import ClassifierMetrics

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Logits, Labels]:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, classes = draw(st.integers(1, 40)), draw(st.integers(2, 6))
    scale = draw(st.sampled_from([0.1, 1.0, 4.0]))
    logits = random.normal(0, scale, (rows, classes)) + random.normal(0, 100, (rows, 1))
    return logits.astype(np.float32), random.integers(0, classes, rows)


def probabilities(logits: Logits) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def measured(logits: Logits, labels: Labels, bins: int) -> ClassifierMetrics:
    metrics = ClassifierMetrics(bins)
    metrics.add(logits, labels)
    return metrics


@given(predictions())
def test_accuracy_is_scikit_learns(drawn: tuple[Logits, Labels]) -> None:
    logits, labels = drawn
    assert measured(logits, labels, 1).accuracy == accuracy_score(labels, logits.argmax(axis=1))


@given(predictions())
def test_nll_is_scikit_learns(drawn: tuple[Logits, Labels]) -> None:
    logits, labels = drawn
    probs = probabilities(logits)
    assume(probs.min() > 1e-15)  # below it clips
    wanted = log_loss(labels, probs, labels=range(logits.shape[1]))
    assert math.isclose(measured(logits, labels, 1).nll, wanted, rel_tol=1e-9)


@given(predictions(), st.integers(1, 20))
def test_ece_is_that_of_the_definition(drawn: tuple[Logits, Labels], bins: int) -> None:
    logits, labels = drawn
    probs = probabilities(logits)
    confidence, hit = probs.max(axis=1), probs.argmax(axis=1) == labels
    wanted = 0.0
    for index in range(bins):
        members = (confidence > index / bins) & (confidence <= (index + 1) / bins)
        if members.any():
            gap = abs(hit[members].mean() - confidence[members].mean())
            wanted += members.mean() * gap
    assert math.isclose(measured(logits, labels, bins).ece, wanted, rel_tol=1e-9, abs_tol=1e-12)


@given(predictions(), st.data())
def test_batches_add_up_to_one(drawn: tuple[Logits, Labels], data: st.DataObject) -> None:
    logits, labels = drawn
    whole = measured(logits, labels, 7)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(labels)), max_size=4)))
    streamed = ClassifierMetrics(7)
    for first, end in zip([0, *cuts], [*cuts, len(labels)], strict=True):
        streamed.add(logits[first:end], labels[first:end])
    assert (streamed.rows, streamed.accuracy) == (whole.rows, whole.accuracy)
    assert math.isclose(streamed.nll, whole.nll, rel_tol=1e-12)
    assert math.isclose(streamed.ece, whole.ece, rel_tol=1e-12, abs_tol=1e-15)
    assert [b.rows for b in streamed.bins()] == [b.rows for b in whole.bins()]
