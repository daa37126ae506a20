"""What stored labels cost and are worth: accuracy against the bytes of a label row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from softlabel.pipeline.reporting.plots import Row, Spec, base_spec
from softlabel.schemas.reports.seeing import RunMetrics
from softlabel.schemas.reports.training import StudentCard


def bytes_rows(runs: Sequence[RunMetrics], cards: Sequence[StudentCard]) -> list[Row]:
    """A row a run that learned from label sets of one size; none of fewer than two sizes."""
    sizes: dict[str, set[float]] = {}
    for card in cards:
        if card.label_bytes is not None:
            sizes.setdefault(card.run, set()).add(card.label_bytes)
    rows = [
        {
            "run": run.run,
            "bytes": min(sizes[run.run]),
            "accuracy": run.accuracy.mean,
            "low": run.accuracy.mean - (run.accuracy.standard_error or 0),
            "high": run.accuracy.mean + (run.accuracy.standard_error or 0),
        }
        for run in runs
        if len(sizes.get(run.run, ())) == 1
    ]
    return rows if len({row["bytes"] for row in rows}) > 1 else []


def bytes_spec(rows: Sequence[Row], colours: Mapping[str, str], described: str) -> Spec:
    """A diamond a run with its standard error; bytes on a logarithmic axis."""
    runs = [row["run"] for row in rows]
    x: Spec = {"field": "bytes", "type": "quantitative", "title": "bytes a sample of the label set"}
    x |= {"scale": {"type": "log", "padding": 24}, "axis": {"format": "~s", "tickCount": 5}}
    y: Spec = {"type": "quantitative", "title": "accuracy", "scale": {"zero": False, "padding": 12}}
    y["axis"] = {"format": ".1%", "tickCount": 5}
    colour: Spec = {"field": "run", "type": "nominal", "legend": None}
    colour["scale"] = {"domain": runs, "range": [colours[run] for run in runs]}
    tooltip = [
        {"field": "run", "title": "run"},
        {"field": "bytes", "title": "bytes a sample", "format": ",.1f"},
        {"field": "accuracy", "title": "mean accuracy", "format": ".2%"},
    ]
    diamond: Spec = {"type": "point", "shape": "diamond", "filled": True, "size": 150}
    return base_spec(described, rows) | {
        "height": 220,
        "encoding": {"x": x, "color": colour},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2.5, "aria": False},
                "encoding": {"y": y | {"field": "low"}, "y2": {"field": "high"}},
            },
            {
                "mark": diamond,
                "encoding": {"y": y | {"field": "accuracy"}, "tooltip": tooltip},
            },
        ],
    }
