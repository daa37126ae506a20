"""Plots by class: which classes are shown, and that a projection keeps its proportions."""

import pytest

from softlabel.pipeline.reporting.class_plots import class_rows, projection_spec
from softlabel.schemas.reports.figures import ClassifierFigures, ClassShares, Projection, Spread
from softlabel.schemas.reports.seeing import RunMetrics


def run_of(name: str, *agreement: float | None, accuracy: float = 0.5) -> RunMetrics:
    spread = Spread(mean=0.9, standard_error=None)
    shares = ClassShares(
        rows=(1,) * len(agreement),
        accuracy=(accuracy,) * len(agreement),
        agreement=None if set(agreement) == {None} else agreement,
    )
    figures = dict.fromkeys(ClassifierFigures.model_fields, spread)
    return RunMetrics(run=name, seeds=(0,), by_class=shares, **figures)


def test_the_lowest_classes_come_first_and_empty_ones_not_at_all() -> None:
    rows = class_rows([run_of("one", 0.9, 0.5, None), run_of("two", 0.7, 0.6, None)], "abc")
    assert [(row["class"], row["run"], row["share"]) for row in rows] == [
        ("b", "one", 0.5),
        ("b", "two", 0.6),
        ("a", "one", 0.9),
        ("a", "two", 0.7),
    ]


def test_without_labels_to_compare_with_accuracy_is_shown() -> None:
    rows = class_rows([run_of("one", None, None, accuracy=0.25)], "ab")
    assert {row["share"] for row in rows} == {0.25}


def test_of_many_classes_few_are_shown() -> None:
    shares = [1 - index / 1000 for index in range(1000)]
    rows = class_rows([run_of("one", *shares)], [f"c{index}" for index in range(1000)])
    assert len(rows) == 24
    assert rows[0]["class"] == "c999"


def test_a_unit_is_as_long_both_ways() -> None:
    projection = Projection(
        classes=("a", "b", "c"), labels=(0, 1, 2), x=(0, 10, 5), y=(1, 2, 3), spread=None
    )
    encoding = projection_spec(projection, "told")["encoding"]
    (left, right), (low, high) = (encoding[side]["scale"]["domain"] for side in "xy")
    assert right - left == pytest.approx(high - low)
    assert (left < 0, right > 10, low + high) == (True, True, pytest.approx(4))
