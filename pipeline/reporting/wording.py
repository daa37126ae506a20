"""Figures and results in words, as a report says them: never more than the numbers carry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.schemas.reports import EvaluateReport
from softlabel.schemas.reports.figures import Spread
from softlabel.schemas.reports.seeing import RunMetrics
from softlabel.schemas.reports.training import StudentCard
from softlabel.schemas.soft_targets import SoftTargetProfile

CLEAR = 2.0
# Where soft targets show what they hold.
TOLD_TEMPERATURE = 4.0
# What a run is called that was trained without a name.
UNNAMED = "unnamed"


def percent(spread: Spread, digits: int = 1) -> str:
    """`97.9 ± 0.1 %`, or `97.9 %` of a single seed; an error too small for that gets digits."""
    error = spread.standard_error
    if error is None:
        return f"{100 * spread.mean:.{digits}f}\u00a0%"
    while 0 < 100 * error < 0.5 * 10**-digits and digits < 4:
        digits += 1
    return f"{100 * spread.mean:.{digits}f} ± {100 * error:.{digits}f}\u00a0%"


def plain(spread: Spread, digits: int = 3) -> str:
    """`0.083 ± 0.004`, or `0.083` of a single seed."""
    if spread.standard_error is None:
        return f"{spread.mean:.{digits}f}"
    return f"{spread.mean:.{digits}f} ± {spread.standard_error:.{digits}f}"


def count(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`, `1,797 samples`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def file_size(size: int) -> str:
    """Bytes as people read them: `812 bytes`, `25.4 kB`, `1.3 GB`."""
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def how_trained(card: StudentCard) -> str:
    """What a run learned from: `soft labels at T = 4, weight 0.9` or `hard labels alone`."""
    smoothed = f"label smoothing {card.label_smoothing:g}"
    if card.loss == "hard":
        return smoothed if card.label_smoothing else "hard labels alone"
    smooth = f", {smoothed}" if card.label_smoothing else ""
    details = [] if card.loss == "kd" else [card.loss]
    details += [f"T = {card.temperature:g}"] if card.temperature is not None else []
    details += [f"weight {card.soft_weight:g}"] if card.soft_weight is not None else []
    return f"soft labels ({', '.join(details)}{smooth})"


def result(evaluation: EvaluateReport, cards: Mapping[str, StudentCard]) -> tuple[str, str]:
    """What was reached, and what the differences to training without a teacher are worth.

    cards: one of each run that is known. Runs with soft labels are compared with the runs of the
    same model on hard labels, alone and smoothed; of several the most accurate one speaks.
    """
    soft = [run for run in evaluation.runs if run.run in cards and _is_soft(cards[run.run])]
    where = f"on {_samples(evaluation)}"
    if not soft:
        best = max(evaluation.runs, key=_accuracy)
        reached = f"{_run(best, evaluation.runs)} reached {percent(best.accuracy)} {where}."
        return reached[0].upper() + reached[1:], "No run among them is known to use soft labels."
    best = max(soft, key=_accuracy)
    reached = (
        f"Students trained on stored soft labels reached {percent(best.accuracy)} {where}"
        f"{_best_of(best, soft)}"
    )
    hard = [
        run
        for run in evaluation.runs
        if run.run in cards and _is_baseline(cards[run.run], cards[best.run])
    ]
    if not hard:
        return f"{reached}.", "No run of the same model with hard labels alone stands beside them."
    named, worth = [], []
    for smoothed in (False, True):
        group = [run for run in hard if bool(cards[run.run].label_smoothing) == smoothed]
        if group:
            base = max(group, key=_accuracy)
            way = how_trained(cards[base.run])
            named.append(f"{way}: {percent(base.accuracy)}{_best_of(base, group)}")
            worth.append(verdict(best.accuracy, base.accuracy, way))
    return f"{reached}; {'; '.join(named)}.", " ".join(worth)


def labels_alone(labels: LabelSet, profile: SoftTargetProfile) -> tuple[str, str]:
    """What a label set holds, and how right and how open its teacher is, where no student is."""
    manifest = labels.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    holds = (
        f"{count(manifest.rows, 'soft label')} of {labels.num_classes:,} classes in "
        f"{file_size(size)}: {size / max(manifest.rows, 1):,.0f} bytes each "
        f"({manifest.identity.codec})."
    )
    said = []
    counts = manifest.statistics
    if counts.labelled:
        right = 100 * counts.correct / counts.labelled
        said.append(
            f"The teacher's first choice is the hard label for {right:.1f}\u00a0% of "
            f"{count(counts.labelled, 'row')}."
        )
    for at in profile.temperatures:
        if at.temperature == TOLD_TEMPERATURE:
            said.append(
                f"At T\u00a0=\u00a0{at.temperature:g} its soft targets have {at.entropy:.2f} of "
                f"at most {math.log(labels.num_classes):.2f} nats of entropy."
            )
    return holds, " ".join(said)


def verdict(soft: Spread, hard: Spread, way: str) -> str:
    """What the difference to training by `way` is worth, measured by its standard error."""
    points = 100 * (soft.mean - hard.mean)
    if soft.standard_error is None or hard.standard_error is None:
        return (
            f"The difference to {way} is {points:+.1f} points; with a single seed there is no "
            "standard error, so it may be chance."
        )
    error = 100 * math.hypot(soft.standard_error, hard.standard_error)
    if abs(points) <= error:
        return (
            f"The difference to {way}, {points:+.1f} points, lies within its standard error of "
            f"{error:.1f}: these runs do not tell the two apart."
        )
    side = f"{abs(points):.1f} points {'ahead of' if points > 0 else 'behind'} {way}"
    times = _times(abs(points), error)
    if abs(points) <= CLEAR * error:
        return f"Soft labels are {side}, {times} the standard error: a hint, no more."
    return f"Soft labels are {side}, {times} the standard error of the difference."


def sampling_error(evaluation: EvaluateReport) -> float:
    """The standard error of the best run's accuracy that the number of samples alone gives."""
    best = max(run.accuracy.mean for run in evaluation.runs)
    return math.sqrt(max(0.0, best * (1 - best)) / evaluation.rows)


def _times(points: float, error: float) -> str:
    ratio = points / error if error else math.inf
    return f"{ratio:.1f} times" if ratio < 10 else "more than 10 times"


def _samples(evaluation: EvaluateReport) -> str:
    name = evaluation.source.name
    if name in ("test", "validation", "train"):
        return count(evaluation.rows, f"{name} sample")
    return f"{count(evaluation.rows, 'sample')} of “{name}”"


def _is_soft(card: StudentCard) -> bool:
    return card.loss != "hard"


def _is_baseline(card: StudentCard, soft: StudentCard) -> bool:
    same_model = (card.model, card.model_args) == (soft.model, soft.model_args)
    return same_model and not _is_soft(card)


def _accuracy(run: RunMetrics) -> float:
    return run.accuracy.mean


def _run(best: RunMetrics, runs: Sequence[RunMetrics]) -> str:
    return f"run “{best.run}”" if len(runs) == 1 else f"the best of {len(runs)} runs, “{best.run}”,"


def _best_of(best: RunMetrics, runs: Sequence[RunMetrics]) -> str:
    return f" (“{best.run}”, the best of {len(runs)} runs)" if len(runs) > 1 else ""
