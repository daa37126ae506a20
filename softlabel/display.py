"""What a person sees of a stage: progress while it works, a few lines when it is done."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Terminal:
    """The progress of a stage on stderr: a live bar on a terminal, plain lines otherwise."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def start(self, what: str, total: int, unit: str) -> None:
        """Show a bar for `total` units of work, where somebody watches."""
        if self._quiet or not self._console.is_terminal:
            return
        if self._live is None:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _RateColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._live.start()
        self._task = self._live.add_task(what, total=total, unit=unit)

    def advance(self, amount: int) -> None:
        """Move the bar."""
        if self._live is not None and self._task is not None:
            self._live.advance(self._task, amount)

    def say(self, message: str) -> None:
        """Print one line, unless the result alone was asked for."""
        if not self._quiet:
            self._console.print(message, markup=False, highlight=False, soft_wrap=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields["unit"]
        return Text(f"{speed:,.0f} {unit}/s" if speed else f"- {unit}/s")


def summary(report: Any) -> str:
    """The closing lines of a stage, from its report."""
    return _SUMMARIES[type(report).__name__](report)


def _prepare(report: Any) -> str:
    parts = ", ".join(f"{name} {rows:,}" for name, rows in report.rows.items())
    height, width, channels = report.shape
    return (
        f"wrote {report.output}: {parts} samples of {height}x{width}x{channels}, "
        f"{len(report.classes)} classes"
    )


def _export(report: Any) -> str:
    sizes = ", ".join(str(size) for size in report.checked_batch_sizes)
    return (
        f"wrote {report.output}: {report.bytes / 2**20:.2f} MiB, {report.parameters:,} parameters, "
        f"opset {report.opset}\n"
        f"ONNX Runtime and PyTorch differ by {report.max_difference:.2g} at most (allowed "
        f"{report.allowed_difference:.2g}) on {report.checked_on}, batches of {sizes}"
    )


def _infer(report: Any) -> str:
    lines = [
        f"wrote {report.output}: {report.rows:,} rows in {report.shards} shards, "
        f"{report.bytes / 2**20:.2f} MiB, identity {report.identity_sha256[:12]}"
    ]
    if report.rows_written:
        share = report.busy["teacher"] / report.seconds
        lines.append(
            f"labelled {report.rows_written:,} rows in {report.seconds:.1f} s "
            f"({report.samples_per_second:,.0f} samples/s), teacher busy {share:.0%} of the time, "
            f"bounded by: {report.bound}"
        )
    else:
        lines.append("nothing to do: every shard stood already")
    if report.shards_kept and report.rows_written:
        lines.append(f"kept {report.shards_kept} finished shards of an earlier run")
    if report.teacher_accuracy is not None:
        lines.append(f"the teacher's top-1 equals the hard label for {report.teacher_accuracy:.2%}")
    kl = ", ".join(f"{value:.1e} at T={float(T):g}" for T, value in report.kl_mean.items())
    lines.append(f"KL of the stored labels to the float32 logits: {kl}")
    return "\n".join(lines)


def _verify(report: Any) -> str:
    checks = ", ".join(report.checks)
    if not report.problems:
        verdict = f"{report.labels} is sound: {report.rows:,} rows in {report.shards} shards"
    else:
        verdict = f"{report.labels} is NOT sound: {len(report.problems)} problems"
    lines = [verdict, f"checked: {checks}"]
    lines += [f"  {problem.kind}: {problem.message}" for problem in report.problems]
    if report.replay is not None:
        replay = report.replay
        lines.append(
            f"replay of {replay.rows} samples: mean KL {replay.kl_mean:.1e} (passes up to "
            f"{replay.kl_limit:.1e}), largest difference of a probability "
            f"{replay.probability_difference:.1e}; shifted by one row: {replay.shifted_kl_mean:.1e}"
        )
    if report.removed:
        names = ", ".join(report.removed)
        lines.append(f"removed {names}; run 'softlabel infer' again: it redoes exactly these")
    return "\n".join(lines)


def _inspect(report: Any) -> str:
    lines = [
        f"{report.labels}: {report.rows:,} rows of {len(report.classes):,} classes in "
        f"{report.shards} shards, {report.codec}, {report.bytes / 2**20:.2f} MiB "
        f"({report.bytes_per_row:.0f} bytes a row)",
        f"identity {report.identity_sha256}",
        f"teacher  {' '.join(report.teacher_sha256)}",
        f"{'T':>6} {'entropy':>10} {'KL to float32':>14}",
    ]
    for temperature, entropy in report.entropy.items():
        kl = report.kl_mean[temperature]
        lines.append(f"{float(temperature):>6g} {entropy:>10.4f} {kl:>14.1e}")
    if report.label_accuracy is not None:
        lines.append(f"the top-1 equals the hard label for {report.label_accuracy:.2%}")
    for row in report.row_views:
        lines.append(f"{row.key}: hard {row.label or 'unknown'}")
        for temperature, targets in row.targets.items():
            shown = ", ".join(
                f"{name} {target:.3f}" for name, target in zip(row.likeliest, targets, strict=True)
            )
            lines.append(f"  T={float(temperature):<4g} {shown}")
    return "\n".join(lines)


def _train(report: Any) -> str:
    last = report.history[-1]
    figures = [f"loss {last.loss:.4f}", f"training accuracy {last.train_accuracy:.2%}"]
    if last.validation_accuracy is not None:
        figures.append(f"validation accuracy {last.validation_accuracy:.2%}")
    return (
        f"wrote {report.output}: {', '.join(figures)}\n"
        f"{report.steps:,} steps over {report.samples:,} samples in {report.seconds:.1f} s "
        f"on {report.device}"
    )


def _evaluate(report: Any) -> str:
    lines = [
        f"wrote {report.output}: {report.rows:,} samples of {report.source}",
        f"{'run':<12} {'seeds':>5} {'accuracy':>18} {'NLL':>18} {'ECE':>18}",
    ]
    for run in report.runs:
        figures = [_spread(run.accuracy, 100, "%"), _spread(run.nll), _spread(run.ece)]
        cells = " ".join(f"{figure:>18}" for figure in figures)
        lines.append(f"{run.run:<12} {len(run.seeds):>5} {cells}")
    return "\n".join(lines)


def _spread(spread: Any, factor: float = 1, unit: str = "") -> str:
    digits = 2 if factor == 100 else 4
    mean = f"{spread.mean * factor:.{digits}f}"
    if spread.standard_error is None:
        return f"{mean}{unit}"
    return f"{mean} ± {spread.standard_error * factor:.{digits}f}{unit}"


def _page(report: Any) -> str:
    return (
        f"wrote {report.output}: {report.bytes / 2**20:.1f} MiB, {report.students} students, "
        f"{report.samples} samples; open it in a browser"
    )


_SUMMARIES = {
    "PrepareReport": _prepare,
    "ExportReport": _export,
    "InferReport": _infer,
    "VerifyReport": _verify,
    "InspectReport": _inspect,
    "TrainReport": _train,
    "EvaluateReport": _evaluate,
    "PageReport": _page,
}
