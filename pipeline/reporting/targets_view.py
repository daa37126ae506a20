"""The report's sections on soft targets: their histograms over T, similarity, and smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from softlabel.pipeline.evaluation.soft_targets import highest_entropy
from softlabel.pipeline.reporting.plots import Spec
from softlabel.pipeline.reporting.target_plots import (
    START,
    histogram_spec,
    most_alike,
    similarity_spec,
    stops_of,
)
from softlabel.schemas.soft_targets import SMOOTHED, SoftTargetProfile


def targets_view(
    profile: SoftTargetProfile, classes: int, temperatures: Sequence[float]
) -> tuple[dict[str, Spec], dict[str, Any]]:
    """Plots by name, and what the template shows; temperatures: those of the table."""
    stops = stops_of(profile)
    specs: dict[str, Spec] = {}
    shown: dict[str, Any] = {
        "rows": profile.rows,
        "of_rows": profile.of_rows,
        "highest": highest_entropy(classes),
        "table": [one for one in profile.temperatures if one.temperature in temperatures],
        "start": None,
        "signs": profile.signs,
        "warning": SMOOTHED if profile.signs is not None and profile.signs.smoothed else None,
        "similarity": profile.similarity,
        "pairs": [],
    }
    if stops and profile.rows:
        start = min(stops, key=lambda one: abs(one.temperature - START))
        shown |= {"start": start, "start_index": stops.index(start), "stops": len(stops)}
        for name, what in (("entropy", "Entropy"), ("top1", "Top-1 probability")):
            described = f"{what} of the soft targets at T = {start.temperature:g}, as a histogram"
            specs[f"targets-{name}"] = histogram_spec(start, name, classes, described)
    if profile.similarity is not None:
        shown["pairs"] = most_alike(profile.similarity)
        told = "; ".join(
            f"{pair.first} looks like {pair.second} with {100 * pair.share:.1f} %"
            for pair in shown["pairs"][:3]
        )
        described = f"Class similarity, strongest first: {told}"
        specs["similarity"] = similarity_spec(profile.similarity, described)
    return specs, shown
