"""What 'train-student', 'calibrate', 'evaluate' and 'report' did, in a few lines."""

from __future__ import annotations

import math
from collections.abc import Sequence

from softlabel.display.words import counted, histogram, reject_lines
from softlabel.schemas.reports import CalibrateReport, EvaluateReport, PageReport, TrainReport
from softlabel.schemas.reports.figures import Spread
from softlabel.schemas.reports.seeing import LabelSetMetrics, StudentMetrics
from softlabel.schemas.reports.training import EpochRecord


def train(report: TrainReport) -> str:
    """Figures of the published epoch, of each student."""
    return "\n".join(_trained(member) for member in (report, *report.peers))


def _trained(report: TrainReport) -> str:
    best = report.best_epoch
    last = report.history[-1 if best is None else best]
    figures = [f"loss {last.loss:.4f}"]
    if last.train_accuracy is not None:
        figures.append(f"training accuracy {last.train_accuracy:.2%}")
    if last.validation_accuracy is not None:
        figures.append(f"validation accuracy {last.validation_accuracy:.2%}")
    which = "" if best is None else f" (epoch {best} of {len(report.history)}, counted from 0)"
    lines = [
        f"wrote {report.output}: {', '.join(figures)}{which}",
        f"{report.steps:,} steps over {report.samples:,} samples in {report.seconds:.1f} s "
        f"on {report.device}",
        *_information_lines(report, last),
        *reject_lines(report),
    ]
    return "\n".join(lines)


def _information_lines(report: TrainReport, epoch: EpochRecord) -> list[str]:
    basis = report.information
    if basis is None or epoch.mutual_information is None:
        return []
    return [
        f"mutual information of picture and logits {epoch.mutual_information:.2f} of at most "
        f"{math.log(basis.samples):.2f} nats ({basis.samples} samples of "
        f"{' and '.join(basis.classes)}; the classes alone are {math.log(2):.2f})"
    ]


def calibrate(report: CalibrateReport) -> str:
    """The temperature, and figures before and after."""
    lines = [
        f"wrote {report.output}: T = {report.temperature:.4f} fits {report.fitted_rows:,} rows",
        f"{'on ' + format(report.measured_rows, ',') + ' rows':<16} {'before':>10} {'after':>10}",
    ]
    for name, key in (("NLL", "nll"), ("ECE", "ece"), ("Brier score", "brier")):
        before, after = getattr(report.before, key), getattr(report.after, key)
        lines.append(f"{name:<16} {before:>10.4f} {after:>10.4f}")
    return "\n".join(lines)


def evaluate(report: EvaluateReport) -> str:
    """A line a run with its figures and confidences, and one of the label set."""
    lines = [
        f"wrote {report.output}: {report.rows:,} samples of {report.source}",
        f"{'run':<12} {'seeds':>5} {'accuracy':>16} {'NLL':>16} {'ECE':>16} {'churn':>8}"
        "  by confidence",
    ]
    for run in report.runs:
        figures = [_spread(run.accuracy, 100, "%"), _spread(run.nll), _spread(run.ece)]
        cells = " ".join(f"{figure:>16}" for figure in figures)
        churn = "-" if run.churn is None else f"{1 - run.churn.agreement:.2%}"
        bins = histogram(_pooled([one for one in report.students if one.run == run.run]))
        lines.append(f"{run.run:<12} {len(run.seeds):>5} {cells} {churn:>8}  {bins}")
        if run.mean_iou is not None:
            lines.append(f"{'':<12} mean IoU {_spread(run.mean_iou, 100, '%')}")
    if report.label_set is not None:
        labels = report.label_set
        figures = [f"{labels.accuracy:.2%}", f"{labels.nll:.4f}", f"{labels.ece:.4f}"]
        cells = " ".join(f"{figure:>16}" for figure in figures)
        bins = histogram(_pooled([labels]))
        lines.append(f"{'label set':<12} {'':>5} {cells} {'':>8}  {bins}")
        if labels.mean_iou is not None:
            lines.append(f"{'':<12} mean IoU {labels.mean_iou:.2%}")
        if labels.outside_kept:
            lines.append(f"{labels.outside_kept:.2%} of the hard labels are not among those kept")
    lines += reject_lines(report)
    return "\n".join(lines)


def _pooled(models: Sequence[StudentMetrics | LabelSetMetrics]) -> list[int]:
    """Rows in each confidence bin, of all models together."""
    return [
        sum(one.rows for one in column) for column in zip(*(m.bins for m in models), strict=True)
    ]


def _spread(spread: Spread, factor: float = 1, unit: str = "") -> str:
    digits = 2 if factor == 100 else 4
    mean = f"{spread.mean * factor:.{digits}f}"
    if spread.standard_error is None:
        return f"{mean}{unit}"
    return f"{mean} ± {spread.standard_error * factor:.{digits}f}{unit}"


def page(report: PageReport) -> str:
    """The page, its size and what it shows."""
    shown = (
        (report.students, "student"),
        (len(report.experiments), "experiment"),
        (report.samples, "sample"),
    )
    told = [counted(number, word) for number, word in shown if number]
    size = f"{report.bytes / 2**20:.1f} MiB"
    return f"wrote {report.output}: {', '.join([size, *told])}; open it in a browser"
