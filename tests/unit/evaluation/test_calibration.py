"""The fitted temperature is the one that SciPy finds, on dense and on topk labels."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from softlabel.pipeline.codecs.codec import shift_rows
from softlabel.pipeline.codecs.make import make_codec
from softlabel.pipeline.codecs.topk import TopK
from softlabel.pipeline.evaluation.calibration import descend, fit_temperature
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import CodecName

TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0)
ROWS, CLASSES = 400, 12

Logits = npt.NDArray[np.float32]


def sample(sharpness: float) -> tuple[Logits, npt.NDArray[np.int32]]:
    """Logits that are `sharpness` times too sure of labels drawn from their softmax."""
    random = np.random.default_rng(5)
    honest = random.normal(0, 2, (ROWS, CLASSES)).astype(np.float32)
    labels = (honest + random.gumbel(size=honest.shape)).argmax(axis=1).astype(np.int32)
    return honest * np.float32(sharpness), labels


def block(
    logits: Logits, labels: npt.NDArray[np.int32], codec_name: CodecName, k: int | None = None
) -> LabelBlock:
    codec = make_codec(codec_name, logits.shape[1], TEMPERATURES, k=k)
    rows = shift_rows(logits)
    keys = pa.array([str(row) for row in range(len(labels))])
    return LabelBlock(keys, pa.array(labels), rows.top1, rows.shift, codec.encode(rows), codec)


def fit(labels: LabelBlock, lowest: float = 1 / 64) -> float:
    return fit_temperature(partial(descend, [labels.slice(0, 150), labels.slice(150, 250)]), lowest)


def minimum(nll: Callable[[float], float], low: float) -> float:
    found = minimize_scalar(nll, bounds=(low, 60), method="bounded", options={"xatol": 1e-9})
    return float(found.x)


def wanted(stored: LabelBlock, labels: npt.NDArray[np.int32]) -> float:
    def nll(T: float) -> float:
        logs = log_softmax(stored.logits(T).astype(np.float64) / T, axis=1)
        return float(-logs[np.arange(ROWS), labels].mean())

    return minimum(nll, 0.02)


def wanted_of_topk(stored: LabelBlock, labels: npt.NDArray[np.int32]) -> float:
    """Kept classes and the tail as the format defines them; the tail is even."""
    codec = stored.codec
    assert isinstance(codec, TopK)

    def nll(T: float) -> float:
        tail = codec.tail_lse(stored.payload, T)
        level = np.repeat((tail - np.log(CLASSES - codec.k))[:, None], CLASSES, axis=1)
        kept = stored.payload["logits"].astype(np.float64) / T
        np.put_along_axis(level, stored.payload["ids"].astype(np.int64), kept, axis=1)
        return float(-log_softmax(level, axis=1)[np.arange(ROWS), labels].mean())

    return minimum(nll, 0.5)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("codec", ["dense-f32", "dense-f16", "dense-u8"])
def test_dense_labels(sharpness: float, codec: CodecName) -> None:
    logits, labels = sample(sharpness)
    stored = block(logits, labels, codec)
    assert fit(stored) == pytest.approx(wanted(stored, labels), rel=1e-6)


@pytest.mark.parametrize("sharpness", [1.3, 3.0])
def test_topk_labels(sharpness: float) -> None:
    logits, labels = sample(sharpness)
    stored = block(logits, labels, "topk", 9)
    assert fit(stored, 0.5) == pytest.approx(wanted_of_topk(stored, labels), rel=1e-6)


@pytest.mark.parametrize("lowest", [0.45, 0.9, 1.8, 3.6, 7.2])
def test_the_lowest_recorded_temperature_may_be_any(lowest: float) -> None:
    logits, labels = sample(12.0)
    codec = make_codec("topk", CLASSES, (lowest, 16.0), k=9)
    stored = replace(block(logits, labels, "topk", 9), codec=codec)
    rows = shift_rows(logits)
    stored = replace(stored, payload=codec.encode(rows))
    assert lowest <= fit(stored, lowest) < 64
    assert descend([stored], 1 / lowest).rows == ROWS


def test_the_sums_are_those_of_the_formula() -> None:
    logits, labels = sample(2.0)
    stored = block(logits, labels, "dense-f32")
    here, near = descend([stored], 0.7), descend([stored], 0.7 + 1e-6)
    logs = log_softmax(0.7 * logits.astype(np.float64), axis=1)
    assert here.nll == pytest.approx(-logs[np.arange(ROWS), labels].sum())
    assert here.slope == pytest.approx((near.nll - here.nll) / 1e-6, rel=1e-3)
    assert here.curvature == pytest.approx((near.slope - here.slope) / 1e-6, rel=1e-3)


def test_labels_that_were_not_kept_are_counted() -> None:
    logits, labels = sample(1.0)
    stored = block(logits, labels, "topk", 2)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :2]
    outside = int((order != labels[:, None]).all(axis=1).sum())
    assert descend([stored], 1.0).outside == outside > 0


def test_a_masked_class_has_no_part() -> None:
    logits, labels = sample(2.0)
    masked = np.concatenate([logits, np.full((ROWS, 1), -np.inf, np.float32)], axis=1)
    plain = fit(block(logits, labels, "dense-f32"))
    assert fit(block(masked, labels, "dense-f32")) == pytest.approx(plain, rel=1e-9)


def test_a_label_that_is_masked_is_refused() -> None:
    masked = np.array([[0, -np.inf, 1]], np.float32)
    with pytest.raises(DataError, match=r"key '0' is labelled with a class .* masks"):
        descend([block(masked, np.array([1], np.int32), "dense-f32")], 1.0)


@pytest.mark.parametrize(("wrong", "what"), [(False, "the lower T is"), (True, "the higher T is")])
def test_what_no_temperature_fits_is_refused(wrong: bool, what: str) -> None:
    logits, _ = sample(1.0)
    labels = (logits.argmin(axis=1) if wrong else logits.argmax(axis=1)).astype(np.int32)
    with pytest.raises(DataError, match=what):
        fit(block(logits, labels, "dense-f32"))
