"""Outputs that are no logits: what they become, and when they are not what was said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from softlabel.pipeline.teachers.output_kind import as_logits, check_kind
from softlabel.schemas.errors import DataError
from softlabel.schemas.sample import Logits
from softlabel.schemas.teacher import PROBABILITY_FLOOR

PATH = Path("teacher.onnx")


def logits(rows: int = 16, classes: int = 5) -> Logits:
    values = np.random.default_rng(0).normal(0, 3, (rows, classes))
    return values.astype(np.float32)


def test_probabilities_become_logits_with_their_softmax() -> None:
    said = softmax(logits(), axis=1)
    assert softmax(as_logits(said, "probabilities"), axis=1) == pytest.approx(said, rel=1e-5)


def test_a_probability_of_zero_counts_as_the_floor() -> None:
    said = np.array([[1, 0, 2.0**-140]], np.float32)
    floor = np.log(np.float32(PROBABILITY_FLOOR))
    assert as_logits(said, "probabilities").tolist() == [[0, floor, floor]]


def test_a_negative_probability_is_no_number() -> None:
    said = np.array([[1.1, -0.1]], np.float32)
    assert np.isnan(as_logits(said, "probabilities")).tolist() == [[False, True]]


@pytest.mark.parametrize("kind", ["logits", "log-probabilities"])
def test_logarithms_stay_as_they_are(kind: str) -> None:
    said = log_softmax(logits(), axis=1)
    assert as_logits(said, kind) is said  # type: ignore[arg-type]


def test_each_kind_passes_for_itself() -> None:
    check_kind(logits(), "logits", PATH)
    check_kind(softmax(logits(), axis=1), "probabilities", PATH)
    check_kind(
        softmax(logits(), axis=1).astype(np.float16).astype(np.float32), "probabilities", PATH
    )
    check_kind(log_softmax(logits(), axis=1), "log-probabilities", PATH)
    check_kind(log_softmax(logits(), axis=1), "logits", PATH)


def test_a_masked_class_has_no_probability() -> None:
    said = logits()
    said[:, 2] = -np.inf
    check_kind(said, "logits", PATH)
    check_kind(log_softmax(said, axis=1), "log-probabilities", PATH)


def test_rows_without_a_number_are_left_to_who_names_their_keys() -> None:
    said = logits()
    said[3, 1] = np.nan
    check_kind(said, "logits", PATH)
    check_kind(said[3:4], "probabilities", PATH)


def test_probabilities_are_not_taken_for_logits() -> None:
    wanted = r"teacher\.onnx: gives probabilities .* pass --output-kind probabilities"
    with pytest.raises(DataError, match=wanted):
        check_kind(softmax(logits(), axis=1), "logits", PATH)


def test_logits_are_not_taken_for_probabilities() -> None:
    with pytest.raises(DataError, match=r"said to give probabilities and gives -\d"):
        check_kind(logits(), "probabilities", PATH)


@pytest.mark.parametrize("kind", ["probabilities", "log-probabilities"])
def test_sigmoids_are_refused_by_their_sums(kind: str) -> None:
    said = 1 / (1 + np.exp(-logits()))
    said = said if kind == "probabilities" else np.log(said)
    wanted = rf"said to give {kind}, and those of its rows sum to .*, not 1; .*sigmoid"
    with pytest.raises(DataError, match=wanted):
        check_kind(said, kind, PATH)  # type: ignore[arg-type]
