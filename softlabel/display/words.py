"""Words that the closing lines of several stages share: sizes, times, counts, histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from softlabel.schemas.labelset import Derivation, Ensemble
from softlabel.schemas.reports import (
    CodecPlanReport,
    EvaluateReport,
    InferPreview,
    InferReport,
    InspectReport,
    TrainReport,
    VerifyReport,
)

HEIGHTS = " ▁▂▃▄▅▆▇█"


def row_unit(report: CodecPlanReport | InferReport) -> str:
    """What a label row is of: a sample, or one of its views."""
    return "sample" if report.views == 1 else "view"


def size_words(size: float) -> str:
    """`1.5 MiB`: bytes in the unit that suits them."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log(max(size, 1), 1024)))
    return f"{size / 1024**power:,.1f} {units[power]}"


def duration_words(seconds: float) -> str:
    """`45.0 s`, `12 min` or `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds >= 0.1 else "< 0.1 s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def counted(number: int, word: str) -> str:
    """`1 shard`, `1,200 shards`."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def histogram(rows: Sequence[int]) -> str:
    """A letter a bin, as high as its share of the largest; a bin with a row is never blank."""
    most = max(rows)
    steps = [math.ceil(count * (len(HEIGHTS) - 1) / most) if most else 0 for count in rows]
    return f"|{''.join(HEIGHTS[step] for step in steps)}|"


def view_words(report: InferReport | InferPreview | InspectReport) -> str:
    """How many samples the rows are views of, where there are several each."""
    if report.views == 1:
        return ""
    samples = counted(report.rows // report.views, "sample")
    return f" ({samples}, {report.views} views each)"


def reject_lines(
    report: InferReport | VerifyReport | InspectReport | TrainReport | EvaluateReport,
) -> list[str]:
    """What to say of samples that are left out, where there are any."""
    if not report.rejects:
        return []
    return [f"left out: {counted(report.rejects, 'sample')} that could not be used (rejects.jsonl)"]


def mean_words(mean: Ensemble | Derivation) -> str:
    """How several teachers or sets were averaged."""
    weights = " : ".join(f"{weight:g}" for weight in mean.weights)
    at = "" if mean.temperature is None else f" at T={mean.temperature:g}"
    return f"mean of {mean.mean}{at}, weights {weights}"


def kl_words(kl_mean: Mapping[str, float]) -> str:
    """A mean KL by temperature, in nats."""
    return ", ".join(f"{value:.1e} at T={float(T):g}" for T, value in kl_mean.items())
