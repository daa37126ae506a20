"""Plots by class: how often students agree with the teacher, and three classes from the side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from softlabel.pipeline.reporting.plots import COLOURS, Row, Spec, base_spec
from softlabel.schemas.reports.figures import Projection
from softlabel.schemas.reports.seeing import RunMetrics

SHOWN_CLASSES = 24
# Of the three classes of a projection, with the signs that name them in the text.
SHAPES = ("circle", "square", "triangle-up")
SIGNS = ("●", "■", "▲")


def class_rows(runs: Sequence[RunMetrics], classes: Sequence[str]) -> list[Row]:
    """Each run's agreement with the label set by class, or its accuracy where none was compared.

    The classes with the lowest mean first, at most 24; classes without a sample have no row.
    """
    told = [(run, shares) for run in runs if (shares := _shares(run)) is not None]
    means: dict[int, float] = {}
    for index in range(len(classes)):
        values = [shares[index] for _, shares in told if shares[index] is not None]
        if values:
            means[index] = sum(value or 0.0 for value in values) / len(values)
    lowest = sorted(means, key=lambda index: (means[index], index))[:SHOWN_CLASSES]
    return [
        {"class": classes[index], "run": run.run, "share": shares[index]}
        for index in lowest
        for run, shares in told
        if shares[index] is not None
    ]


def class_spec(rows: Sequence[Row], colours: Mapping[str, str], what: str, told: str) -> Spec:
    """A line a class from its lowest run to its highest, and a dot a run."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    names = list(dict.fromkeys(row["class"] for row in rows))
    axis: Spec = {"labelLimit": 150, "ticks": False, "domain": False, "labelPadding": 10}
    y: Spec = {"field": "class", "type": "nominal", "title": None, "sort": None, "axis": axis}
    x: Spec = {"field": "share", "type": "quantitative", "title": what}
    x |= {"scale": {"zero": False, "padding": 10}, "axis": {"format": ".0%", "tickCount": 6}}
    colour: Spec = {"field": "run", "type": "nominal", "legend": None}
    colour["scale"] = {"domain": runs, "range": [colours[run] for run in runs]}
    tooltip = [
        {"field": "class", "title": "class"},
        {"field": "run", "title": "run"},
        {"field": "share", "title": what, "format": ".2%"},
    ]
    return base_spec(told, rows) | {
        "height": max(120, 22 * len(names)),
        "encoding": {"y": y},
        "layer": [
            {
                "mark": {"type": "rule", "color": "var(--line)", "strokeWidth": 2, "aria": False},
                "encoding": {
                    "x": x | {"aggregate": "min"},
                    "x2": {"field": "share", "aggregate": "max"},
                },
            },
            {
                "mark": {"type": "circle", "size": 90, "opacity": 0.85},
                "encoding": {"x": x, "color": colour, "tooltip": tooltip},
            },
        ],
    }


def projection_spec(projection: Projection, description: str) -> Spec:
    """The samples of three classes by colour and shape; one unit is as long both ways."""
    rows = [
        {"class": projection.classes[label], "x": x, "y": y, "label": label}
        for label, x, y in zip(projection.labels, projection.x, projection.y, strict=True)
    ]
    axis: Spec = {"labels": False, "ticks": False, "title": None, "tickCount": 5, "domain": False}
    sides = {}
    for side, domain in zip("xy", _square(projection.x, projection.y), strict=True):
        sides[side] = {"field": side, "type": "quantitative", "axis": axis}
        sides[side]["scale"] = {"domain": domain, "nice": False, "zero": False}
    three: Spec = {"field": "label", "type": "nominal", "legend": None}
    encoding: Spec = sides | {
        "color": three | {"scale": {"domain": [0, 1, 2], "range": list(COLOURS[:3])}},
        "shape": three | {"scale": {"domain": [0, 1, 2], "range": list(SHAPES)}},
        "tooltip": [{"field": "class", "title": "class"}],
    }
    mark: Spec = {"type": "point", "filled": True, "size": 42, "opacity": 0.6}
    return base_spec(description, rows) | {"height": 260, "mark": mark, "encoding": encoding}


def _shares(run: RunMetrics) -> tuple[float | None, ...] | None:
    if run.by_class is None:
        return None
    return run.by_class.agreement or run.by_class.accuracy


def _square(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Domains of equal length about the middles, a little longer than the longer side."""
    half = 0.54 * max(max(x) - min(x), max(y) - min(y), 1e-9)
    middles: list[Any] = [(max(side) + min(side)) / 2 for side in (x, y)]
    first, second = ([middle - half, middle + half] for middle in middles)
    return first, second
