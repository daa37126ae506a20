"""Pooling of bins, and the reliability diagram's specifications."""

import pytest
import vl_convert

from softlabel.pipeline.reporting import reliability
from softlabel.schemas.errors import DataError
from softlabel.schemas.reports.figures import Bin, ClassifierFigures
from softlabel.schemas.reports.seeing import StudentMetrics


def student(*bins: tuple[int, float | None, float | None]) -> StudentMetrics:
    width = 1 / len(bins)
    return StudentMetrics(
        name="one",
        run="kd",
        seed=0,
        rows=sum(rows for rows, _, _ in bins),
        parameters=5,
        **dict.fromkeys(ClassifierFigures.model_fields, 0.1),
        bins=tuple(
            Bin(low=i * width, high=(i + 1) * width, rows=n, confidence=c, accuracy=a)
            for i, (n, c, a) in enumerate(bins)
        ),
    )


def test_pooling_adds_rows_and_weights_means() -> None:
    empty, full = reliability.pooled_bins(
        [
            student((0, None, None), (30, 0.9, 1.0)),
            student((0, None, None), (10, 0.7, 0.6)),
        ]
    )
    assert (empty.rows, empty.confidence, empty.accuracy) == (0, None, None)
    assert full.rows == 40
    assert full.confidence == pytest.approx(0.85)
    assert full.accuracy == pytest.approx(0.9)


def test_a_bin_that_one_student_lacks_is_the_other_s() -> None:
    (pooled,) = reliability.pooled_bins([student((0, None, None)), student((4, 0.5, 0.25))])
    assert pooled == student((4, 0.5, 0.25)).bins[0]


def test_different_bins_are_refused() -> None:
    with pytest.raises(DataError, match="do not share their bins"):
        reliability.pooled_bins([student((1, 0.5, 1.0)), student((1, 0.2, 1), (1, 0.8, 1))])


def test_no_student_is_refused() -> None:
    with pytest.raises(DataError, match=r"\(none\)"):
        reliability.pooled_bins([])


def test_specs_compile_and_hold_the_numbers() -> None:
    bins = student((0, None, None), (5, 0.6, 0.5), (95, 0.9, 0.8)).bins
    diagram = reliability.reliability_spec(bins, "#0072B2", "text")
    histogram = reliability.confidence_spec(bins, "#0072B2", "text")
    assert [(row["accuracy"], row["few"]) for row in diagram["data"]["values"]] == [
        (0.5, True),
        (0.8, False),
    ]
    assert [row["share"] for row in histogram["data"]["values"]] == [0, 0.05, 0.95]
    for spec in (diagram, histogram):
        assert "svg" in vl_convert.vegalite_to_svg(spec)
