"""Reliability diagrams: what a model's confidence is worth, bin by bin, as Vega-Lite plots.

The styles `gap` and `diagonal` get their colours from the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softlabel.pipeline.reporting.plots import Row, Spec, base_spec
from softlabel.schemas.errors import DataError
from softlabel.schemas.reports.figures import Bin
from softlabel.schemas.reports.seeing import StudentMetrics

FEW_ROWS = 10

_FIFTHS = [0, 0.2, 0.4, 0.6, 0.8, 1]
_SAME_EDGE: Spec = {"minExtent": 38, "maxExtent": 38}
_WHOLE_LABELS: Spec = {"labelFlush": False, "labelOverlap": True}
_TOOLTIP: list[Spec] = [
    {"field": "low", "title": "confidence above", "format": ".0%"},
    {"field": "high", "title": "up to", "format": ".0%"},
    {"field": "rows", "title": "samples", "format": ","},
    {"field": "confidence", "title": "mean confidence", "format": ".1%"},
    {"field": "accuracy", "title": "accuracy", "format": ".1%"},
]


@dataclass(frozen=True, slots=True)
class Diagram:
    """A reliability diagram and the samples behind it. who: its `title` within a sentence."""

    id: str
    title: str
    who: str
    colour: str
    bins: Sequence[Bin]

    def specs(self, ece: str) -> dict[str, Spec]:
        """Its two plots, `id` and `id-rows`; ece: its calibration error in words."""
        described = f"Reliability diagram of {self.who}: expected calibration error {ece}"
        rows = f"Share of samples of {self.who} in each confidence bin"
        return {
            self.id: reliability_spec(self.bins, self.colour, described),
            f"{self.id}-rows": confidence_spec(self.bins, self.colour, rows),
        }


def pooled_bins(students: Sequence[StudentMetrics]) -> tuple[Bin, ...]:
    """The students' bins taken together: rows added, means weighted by rows.

    Raises DataError where the students have different bins, or there is no student.
    """
    edges = {tuple((one.low, one.high) for one in student.bins) for student in students}
    if len(edges) != 1:
        names = ", ".join(repr(student.name) for student in students)
        raise DataError(
            f"evaluation: students {names or '(none)'} do not share their bins; "
            "run 'softlabel evaluate' over all of them again"
        )
    columns = zip(*(student.bins for student in students), strict=True)
    return tuple(_pool(column) for column in columns)


def reliability_spec(bins: Sequence[Bin], colour: str, description: str) -> Spec:
    """Accuracy against confidence by bin and the gap to the diagonal; bins of few rows are pale."""
    values = [one.model_dump() | {"few": one.rows < FEW_ROWS} for one in bins if one.rows]
    bar: Spec = {"type": "bar", "binSpacing": 1}
    pale: Spec = {"condition": {"test": "datum.few", "value": 0.4}, "value": 0.9}
    return base_spec(description, values) | {
        "height": 230,
        "layer": [
            {
                "mark": bar | {"color": colour},
                "encoding": _bin_sides(None)
                | {"y": _accuracy(), "y2": {"datum": 0}, "opacity": pale},
            },
            {
                "mark": bar | {"style": "gap"},
                "encoding": _bin_sides(None) | {"y": _accuracy(), "y2": {"field": "confidence"}},
            },
            {
                "data": {"values": [{"low": 0, "accuracy": 0}, {"low": 1, "accuracy": 1}]},
                "mark": {"type": "line", "style": "diagonal"},
                "encoding": {"x": _confidence(None), "y": _accuracy()},
            },
        ],
    }


def confidence_spec(bins: Sequence[Bin], colour: str, description: str) -> Spec:
    """The share of samples in each confidence bin, aligned with the reliability diagram above."""
    total = max(1, sum(one.rows for one in bins))
    values: list[Row] = [one.model_dump() | {"share": one.rows / total} for one in bins]
    axis: Spec = {"format": ".0%", "tickCount": 2} | _SAME_EDGE
    share: Spec = {"field": "share", "type": "quantitative", "title": "samples", "axis": axis}
    return base_spec(description, values) | {
        "height": 74,
        "mark": {"type": "bar", "color": colour, "binSpacing": 1, "opacity": 0.6},
        "encoding": _bin_sides("confidence") | {"y": share, "y2": {"datum": 0}},
    }


def _bin_sides(title: str | None) -> Spec:
    return {"x": _confidence(title), "x2": {"field": "high"}, "tooltip": _TOOLTIP}


def _confidence(title: str | None) -> Spec:
    return {
        "field": "low",
        "type": "quantitative",
        "scale": {"domain": [0, 1]},
        "title": title,
        "axis": {"format": ".0%", "values": _FIFTHS, "grid": False} | _WHOLE_LABELS,
    }


def _accuracy() -> Spec:
    return {
        "field": "accuracy",
        "type": "quantitative",
        "scale": {"domain": [0, 1]},
        "title": "accuracy",
        "axis": {"format": ".0%", "values": _FIFTHS} | _SAME_EDGE,
    }


def _pool(column: Sequence[Bin]) -> Bin:
    rows = sum(one.rows for one in column)
    first = column[0]
    if rows == 0:
        return Bin(low=first.low, high=first.high, rows=0, confidence=None, accuracy=None)
    confidence = sum(one.rows * (one.confidence or 0) for one in column) / rows
    accuracy = sum(one.rows * (one.accuracy or 0) for one in column) / rows
    return Bin(low=first.low, high=first.high, rows=rows, confidence=confidence, accuracy=accuracy)
