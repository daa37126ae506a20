"""The plot of what logits tell of the pictures that were trained on, over the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from softlabel.pipeline.reporting.plots import Row, Spec, curve_rows, curve_spec
from softlabel.schemas.reports import TrainReport

METRIC = "mutual_information"
NAME = "Mutual information"


def information_section(
    trained: Sequence[TrainReport], colours: Mapping[str, str]
) -> tuple[dict[str, Spec], dict[str, Any]]:
    """A line a run as of all curves, with the level at which only the class is told.

    Only estimates on the same grounds are comparable: the first run's are taken, and runs with
    others are named.
    """
    basis = next((one.information for one in trained if one.information is not None), None)
    rows = curve_rows([one for one in trained if one.information == basis], METRIC)
    if basis is None or not rows:
        return {}, {"information": None}
    runs = list(dict.fromkeys(row["run"] for row in rows))
    others = {one.run for one in trained if one.information not in (None, basis)}
    table = [_table_row(run, [row for row in rows if row["run"] == run]) for run in runs]
    told = "; ".join(f"{row['run']} {row['last']:.2f}" for row in table)
    spec = curve_spec(rows, colours, NAME, ".2f", f"{NAME} in nats over the epochs: {told}", _SCALE)
    spec["layer"].append(_class_alone())
    shown = {
        "basis": basis,
        "most": math.log(basis.samples),
        "class_alone": math.log(2),
        "table": table,
        "others": sorted(others),
    }
    return {"information": spec}, {"information": shown}


_SCALE: Spec = {"scale": {"zero": True}, "axis": {"format": ".1f", "tickCount": 6}}


def _table_row(run: str, rows: Sequence[Row]) -> dict[str, Any]:
    highest = max(rows, key=lambda row: row["mean"])
    return {
        "run": run,
        "first": rows[0]["mean"],
        "highest": highest["mean"],
        "highest_epoch": highest["epoch"],
        "last": rows[-1]["mean"],
        "seeds": rows[-1]["seeds"],
    }


def _class_alone() -> Spec:
    """A line at log 2, across the plot, with its name over its right end."""
    level: Spec = {"field": "level", "type": "quantitative"}
    return {
        "data": {"values": [{"level": math.log(2), "what": "the class alone"}]},
        "encoding": {"y": level, "color": {"value": "var(--ink-soft)"}},
        "layer": [
            {
                "mark": {"type": "rule", "strokeDash": [5, 4], "aria": False},
                "encoding": {"x": {"value": 0}, "x2": {"value": "width"}},
            },
            {
                "mark": {"type": "text", "align": "right", "baseline": "bottom", "dy": -3},
                "encoding": {"x": {"value": "width"}, "text": {"field": "what"}},
            },
        ],
    }
