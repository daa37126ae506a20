"""The report's plots as Vega-Lite specifications: plain dicts, without colours of the page.

Names from data stand in values only, never in field names or expressions, so that no name can
change what a specification means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from softlabel.schemas.reports import EvaluateReport, TrainReport

Spec = dict[str, Any]
Row = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
# Okabe and Ito 2008, without black and yellow, which vanish on a dark or a light page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LOG_SCALE_RATIO = 10


def run_colours(runs: Sequence[str]) -> dict[str, str]:
    """A colour of the palette for each run, in order; from the seventh run on they come again."""
    return {run: COLOURS[index % len(COLOURS)] for index, run in enumerate(runs)}


def curve_rows(students: Iterable[TrainReport], metric: str) -> list[Row]:
    """Mean, lowest and highest `metric` of an EpochRecord over the seeds, per run and epoch.

    Epochs count from 1. Runs and epochs without the metric have no row.
    """
    values: dict[tuple[str, int], list[float]] = {}
    for student in students:
        for record in student.history:
            value = getattr(record, metric)
            if value is not None:
                values.setdefault((student.run, record.epoch + 1), []).append(value)
    return [
        {
            "run": run,
            "epoch": epoch,
            "mean": sum(found) / len(found),
            "low": min(found),
            "high": max(found),
            "seeds": len(found),
        }
        for (run, epoch), found in values.items()
    ]


def curve_spec(
    rows: Sequence[Row],
    colours: Mapping[str, str],
    what: str,
    number: str,
    description: str,
    scale: Spec | None = None,
) -> Spec:
    """Training curves: a line a run, a band over its seeds, what the pointer is next to.

    rows: as `curve_rows` gives them. number: the format of values, in d3's words. scale: scale and
    axis of the values, by default from these. The parameter `shown` holds the runs that are not
    faded.
    """
    runs = list(dict.fromkeys(row["run"] for row in rows))
    y: Spec = {"type": "quantitative", "title": None} | (scale or _value_scale(rows, number))
    return base_spec(description, rows) | {
        "height": 230,
        "params": [{"name": "shown", "value": runs}],
        "encoding": {
            "x": {
                "field": "epoch",
                "type": "quantitative",
                "title": "epoch",
                "scale": {"nice": False},
                "axis": {"format": "d", "tickMinStep": 1, "grid": False, "tickCount": 6},
            },
            "color": _run_colour(runs, colours),
        },
        "layer": [
            {
                "mark": {"type": "area", "line": False, "strokeWidth": 0},
                "encoding": {
                    "y": y | {"field": "low"},
                    "y2": {"field": "high"},
                    "opacity": _faded(0.22, 0.03),
                },
            },
            {
                "mark": {"type": "line", "strokeWidth": 2.2, "point": _one_epoch(rows)},
                "encoding": {
                    "y": y | {"field": "mean"},
                    "opacity": _faded(1, 0.12),
                    "strokeDash": _run_dash(runs, colours),
                },
            },
            _nearest_point(y, what, number),
        ],
    }


def seeds_spec(evaluation: EvaluateReport, colours: Mapping[str, str], description: str) -> Spec:
    """Accuracy of every student as a dot, each run's mean as a diamond with its standard error."""
    runs = [run.run for run in evaluation.runs]
    students = [
        {"run": student.run, "seed": student.seed, "accuracy": student.accuracy}
        for student in evaluation.students
    ]
    means = [
        {
            "run": run.run,
            "accuracy": run.accuracy.mean,
            "low": run.accuracy.mean - (run.accuracy.standard_error or 0),
            "high": run.accuracy.mean + (run.accuracy.standard_error or 0),
        }
        for run in evaluation.runs
    ]
    x: Spec = {
        "type": "quantitative",
        "title": "accuracy",
        "scale": {"zero": False, "padding": 16},
        "axis": {"format": ".1%", "tickCount": 6},
    }
    # A list as `sort` would become an expression, where Vega reads no name with a line separator.
    axis: Spec = {"labelLimit": 150, "ticks": False, "domain": False, "labelPadding": 10}
    y: Spec = {"field": "run", "type": "nominal", "title": None, "sort": None, "axis": axis}
    return base_spec(description, students) | {
        "height": 44 * len(runs),
        "encoding": {"y": y, "color": _run_colour(runs, colours)},
        "layer": [
            {
                "data": {"values": means},
                "mark": {"type": "rule", "strokeWidth": 2.5, "aria": False},
                "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "circle", "size": 70, "opacity": 0.45},
                "encoding": {
                    "x": x | {"field": "accuracy"},
                    "tooltip": [
                        {"field": "run", "title": "run"},
                        {"field": "seed", "title": "seed"},
                        {"field": "accuracy", "title": "accuracy", "format": ".2%"},
                    ],
                },
            },
            {
                "data": {"values": means},
                "mark": {"type": "point", "shape": "diamond", "filled": True, "size": 150},
                "encoding": {
                    "x": x | {"field": "accuracy"},
                    "tooltip": [
                        {"field": "run", "title": "run"},
                        {"field": "accuracy", "title": "mean accuracy", "format": ".2%"},
                    ],
                },
            },
        ],
    }


def base_spec(description: str, rows: Sequence[Row]) -> Spec:
    """What all plots share: as wide as their container, and `description` for who cannot see it."""
    return {
        "$schema": SCHEMA,
        "description": description,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": list(rows)},
    }


def _value_scale(rows: Sequence[Row], number: str) -> Spec:
    """Linear, or logarithmic where the values span more than a decade."""
    lowest, highest = min(row["low"] for row in rows), max(row["high"] for row in rows)
    if lowest > 0 and highest / lowest > LOG_SCALE_RATIO:
        ticks = {"format": number, "values": _log_ticks(lowest, highest)}
        return {"scale": {"type": "log", "nice": False}, "axis": ticks}
    return {"scale": {"zero": False}, "axis": {"format": number, "tickCount": 6}}


def _log_ticks(lowest: float, highest: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in the range, or the powers alone where it is wide."""
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    steps = (1, 2, 5) if len(powers) < 5 else (1,)
    return [step * 10.0**power for power in powers for step in steps]


def _run_colour(runs: Sequence[str], colours: Mapping[str, str]) -> Spec:
    scale = {"domain": list(runs), "range": [colours[run] for run in runs]}
    return {"field": "run", "type": "nominal", "scale": scale, "legend": None}


def _run_dash(runs: Sequence[str], colours: Mapping[str, str]) -> Spec:
    """Solid lines; dashed ones for runs whose colour an earlier run has."""
    order = list(colours)
    dashes = [[1, 0] if order.index(run) < len(COLOURS) else [6, 3] for run in runs]
    scale = {"domain": list(runs), "range": dashes}
    return {"field": "run", "type": "nominal", "scale": scale, "legend": None}


def _faded(shown: float, hidden: float) -> Spec:
    test = "indexof(shown, datum.run) >= 0"
    return {"condition": {"test": test, "value": shown}, "value": hidden}


def _one_epoch(rows: Sequence[Row]) -> bool:
    return len({row["epoch"] for row in rows}) == 1


def _nearest_point(y: Spec, what: str, number: str) -> Spec:
    select = {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"}
    return {
        "mark": {"type": "point", "filled": True, "size": 70},
        "params": [{"name": "near", "select": select}],
        "encoding": {
            "y": y | {"field": "mean"},
            "opacity": {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0},
            "tooltip": [
                {"field": "run", "title": "run"},
                {"field": "epoch", "title": "epoch"},
                {"field": "mean", "title": what, "format": number},
                {"field": "low", "title": "lowest seed", "format": number},
                {"field": "high", "title": "highest seed", "format": number},
                {"field": "seeds", "title": "seeds"},
            ],
        },
    }
