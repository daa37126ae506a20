"""Plots of soft targets: histograms that follow the temperature, and the classes' similarity.

When the temperature moves, the page replaces the data named `bars` and `mean`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softlabel.pipeline.evaluation.soft_targets import highest_entropy
from softlabel.pipeline.reporting.plots import Row, Spec, base_spec
from softlabel.schemas.soft_targets import ClassSimilarity, SoftTargetProfile, TargetsAtTemperature

# Where the temperature's control stops: a twentieth to a tenth of T further each time.
STOPS = (
    *(step / 10 for step in range(5, 20)),
    *(step / 5 for step in range(10, 25)),
    *(step / 2 for step in range(10, 20)),
    *(float(step) for step in range(10, 21)),
)
START = 4.0
# Colours of the page, which differ by light, dark and print.
TEACHER, INK = "var(--accent)", "var(--ink)"
WORDS_IN_CELLS = 12
# The part of the range above which a number in a cell is light.
STRONG = 0.6
PAIRS_TOLD = 10


@dataclass(frozen=True, slots=True)
class AlikePair:
    """Samples of class `first` give `second` this share of their soft targets, and the reverse."""

    first: str
    second: str
    share: float
    reverse: float | None


def stops_of(profile: SoftTargetProfile) -> list[TargetsAtTemperature]:
    """The temperatures at which the control stops, in ascending order."""
    return [one for one in profile.temperatures if one.temperature in STOPS]


def histogram_spec(one: TargetsAtTemperature, name: str, classes: int, description: str) -> Spec:
    """The histogram of `entropy` or `top1`, which starts with those of `one`."""
    entropy = name == "entropy"
    highest = highest_entropy(classes) if entropy else 1.0
    rows = _bars(one.entropy_rows if entropy else one.top1_rows, highest)
    number = ".2f" if entropy else ".0%"
    axis: Spec = {"format": "~g", "tickCount": 6} if entropy else {"format": ".0%", "tickCount": 5}
    x: Spec = {
        "field": "low",
        "type": "quantitative",
        "scale": {"domain": [0, highest], "nice": False},
        "title": "entropy of a soft target, nats" if entropy else "probability of the top-1",
        "axis": axis | {"grid": False, "labelFlush": False, "labelOverlap": True},
    }
    share: Spec = {"field": "share", "type": "quantitative", "title": "samples"}
    share["axis"] = {"format": ".0%", "tickCount": 4, "minExtent": 38, "maxExtent": 38}
    tooltip = [
        {"field": "low", "title": "above", "format": number},
        {"field": "high", "title": "up to", "format": number},
        {"field": "share", "title": "samples", "format": ".1%"},
    ]
    return base_spec(description, []) | {
        "height": 190,
        "data": {"name": "bars", "values": rows},
        "layer": [
            {
                "mark": {"type": "bar", "binSpacing": 1, "color": TEACHER, "opacity": 0.8},
                "encoding": {
                    "x": x,
                    "x2": {"field": "high"},
                    "y": share,
                    "y2": {"datum": 0},
                    "tooltip": tooltip,
                },
            },
            {
                "data": {"name": "mean", "values": [{"low": getattr(one, name)}]},
                "mark": {"type": "rule", "color": INK, "strokeWidth": 1.6, "strokeDash": [5, 3]},
                "encoding": {"x": x},
            },
        ],
    }


def similarity_spec(similarity: ClassSimilarity, description: str) -> Spec:
    """A row a class, a column a class: how much its samples look like that one, as shade."""
    names = similarity.classes
    rows: list[Row] = []
    for index, (name, shares) in enumerate(zip(names, similarity.shares, strict=True)):
        for other, likeness in enumerate(names):
            share = None if shares is None or other == index else shares[other]
            rows.append({"class": name, "like": likeness, "share": share})
    axis: Spec = {"ticks": False, "domain": False, "labelLimit": 110, "title": None}
    size = max(15, min(38, 560 // len(names)))
    known = [row["share"] for row in rows if row["share"] is not None]
    lowest, highest = min(known, default=0.0), max(known, default=0.0)
    cells: Spec = {
        "x": {"field": "like", "type": "nominal", "sort": None, "scale": {"domain": list(names)}}
        | {"axis": axis | {"orient": "top", "labelAngle": 0 if _short(names) else -50}},
        "y": {"field": "class", "type": "nominal", "sort": None, "axis": axis}
        | {"scale": {"domain": list(names)}},
        "tooltip": [
            {"field": "class", "title": "samples of"},
            {"field": "like", "title": "look like"},
            {"field": "share", "title": "with", "format": ".2%"},
        ],
    }
    opacity: Spec = {"field": "share", "type": "quantitative", "legend": None}
    opacity["scale"] = {"domain": [lowest, highest], "range": [0.04, 1]}
    layers: list[Spec] = [
        {
            "transform": [{"filter": "datum.share !== null"}],
            "mark": {"type": "rect", "color": TEACHER},
            "encoding": cells | {"opacity": opacity},
        }
    ]
    if len(names) <= WORDS_IN_CELLS:
        layers.append(_numbers_in_cells(cells, lowest + STRONG * (highest - lowest)))
    return base_spec(description, rows) | {"height": size * len(names), "layer": layers}


def most_alike(similarity: ClassSimilarity) -> list[AlikePair]:
    """The pairs of classes shown with the largest shares, each once."""
    found: dict[frozenset[int], AlikePair] = {}
    names, table = similarity.classes, similarity.shares
    cells = [
        (-share, row, column)
        for row, shares in enumerate(table)
        for column, share in enumerate(shares or ())
        if row != column
    ]
    for share, row, column in sorted(cells):
        back = table[column]
        pair = AlikePair(names[row], names[column], -share, None if back is None else back[row])
        found.setdefault(frozenset((row, column)), pair)
        if len(found) == PAIRS_TOLD:
            break
    return list(found.values())


def _numbers_in_cells(cells: Spec, limit: float) -> Spec:
    strong = {"test": f"datum.share > {limit}", "value": "var(--on-accent)"}
    return {
        "transform": [
            {"filter": "datum.share !== null"},
            {"calculate": "format(100 * datum.share, '.1f')", "as": "text"},
        ],
        "mark": {"type": "text", "fontSize": 11, "aria": False},
        "encoding": {key: cells[key] for key in ("x", "y", "tooltip")}
        | {
            "text": {"field": "text", "type": "nominal"},
            "color": {"condition": strong, "value": INK},
        },
    }


def _bars(counts: Sequence[int], highest: float) -> list[Row]:
    total, bins = max(1, sum(counts)), len(counts)
    return [
        {
            "low": highest * index / bins,
            "high": highest * (index + 1) / bins,
            "share": count / total,
        }
        for index, count in enumerate(counts)
    ]


def _short(names: Sequence[str]) -> bool:
    return max(map(len, names), default=0) <= 4
