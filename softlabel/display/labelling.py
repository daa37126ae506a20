"""What 'prepare', 'export', 'plan' and 'infer' did, in a few lines."""

from __future__ import annotations

import textwrap

from softlabel.display.words import (
    counted,
    duration_words,
    kl_words,
    reject_lines,
    row_unit,
    size_words,
    view_words,
)
from softlabel.schemas.reports import (
    CodecPlanReport,
    ExportReport,
    InferPreview,
    InferReport,
    PrepareReport,
)

# Of the 100 columns that a table may take, a codec's name needs 17 and a temperature 19.
TEMPERATURES_A_LINE = 4


def prepare(report: PrepareReport) -> str:
    """The parts with their rows, and what a sample is."""
    parts = ", ".join(f"{name} {rows:,}" for name, rows in report.rows.items())
    height, width, channels = report.shape
    return (
        f"wrote {report.output}: {parts} samples of {height}x{width}x{channels}, "
        f"{len(report.classes)} classes"
    )


def export(report: ExportReport) -> str:
    """The file, and how far ONNX Runtime is from PyTorch."""
    sizes = ", ".join(str(size) for size in report.checked_batch_sizes)
    return (
        f"wrote {report.output}: {report.bytes / 2**20:.2f} MiB, {report.parameters:,} parameters, "
        f"opset {report.opset}\n"
        f"ONNX Runtime and PyTorch differ by {report.max_difference:.2g} at most (allowed "
        f"{report.allowed_difference:.2g}) on {report.checked_on}, batches of {sizes}"
    )


def plan(report: CodecPlanReport) -> str:
    """A line a codec, its losses by temperature, and the command for the one recommended."""
    lines = [
        f"tried on {report.sampled:,} of {report.rows:,} {row_unit(report)}s of {report.source}"
        f"{_a_sample(report)}, {report.classes:,} classes",
        f"teacher {', '.join(map(str, report.teacher))} on {report.device}: "
        f"{report.teacher_samples_per_second:,.0f} {row_unit(report)}s/s",
        "",
        f"{'codec':<17}{'bytes/' + row_unit(report):>13}{'whole set':>12}{'same top-1':>12}"
        f"{'encoded/s':>12}{'whole run':>11}",
    ]
    for trial in report.trials:
        mark = "  recommended" if trial.name == report.recommended else ""
        lines.append(
            f"{trial.name:<17}{trial.bytes_per_sample:>13,.1f}{size_words(trial.bytes):>12}"
            f"{trial.top1_agreement:>12.2%}{trial.samples_per_second:>12,.0f}"
            f"{duration_words(trial.seconds):>11}{mark}"
        )
    lines += _losses(report, "kl", "KL to the float32 logits in nats, mean / 99th percentile")
    lines += _losses(report, "tv", "total variation, mean / 99th percentile")
    lines += ["", *(textwrap.fill(note, 100, break_on_hyphens=False) for note in report.notes)]
    if report.command is None:
        lines.append(
            f"no codec keeps the mean KL within {report.max_kl:g} at every temperature;\n"
            "  pass a larger --max-kl, or only the --temperatures that you will train at"
        )
    else:
        lines.append(
            f"{report.recommended} is the smallest with a mean KL within {report.max_kl:g} at "
            f"every temperature:\n  {report.command}"
        )
    return "\n".join(lines)


def _losses(report: CodecPlanReport, what: str, title: str) -> list[str]:
    """A table of one loss, a row a codec and a column a temperature, as many as a line takes."""
    lines = []
    for first in range(0, len(report.temperatures), TEMPERATURES_A_LINE):
        shown = report.temperatures[first : first + TEMPERATURES_A_LINE]
        heads = "".join(f"{f'T={T:g}':>19}" for T in shown)
        lines += ["", title, f"{'codec':<17}{heads}"]
        for trial in report.trials:
            losses = [getattr(trial, what)[str(T)] for T in shown]
            cells = "".join(f"{f'{loss.mean:.1e} / {loss.p99:.1e}':>19}" for loss in losses)
            lines.append(f"{trial.name:<17}{cells}")
    return lines


def _a_sample(report: CodecPlanReport) -> str:
    return "" if report.views == 1 else f" ({report.views} a sample)"


def infer(report: InferReport) -> str:
    """What was written, how fast and what bounded it, and how near the stored labels are."""
    lines = [
        f"wrote {report.output}: {report.rows:,} rows{view_words(report)} in {report.shards} "
        f"shards, {report.bytes / 2**20:.2f} MiB, identity {report.identity_sha256[:12]}"
    ]
    if report.limit is not None:
        lines.append(f"a partial set: the first {report.limit:,} samples of the source")
    if report.shards_missing:
        lines = [
            f"share {report.partition} of {report.output} is whole: {report.rows:,} rows in "
            f"{counted(report.shards, 'shard')}, {report.bytes / 2**20:.2f} MiB",
            f"the set is unfinished: {counted(report.shards_missing, 'shard')} of other shares "
            "missing; the last to end completes it",
        ]
    lines += reject_lines(report)
    if report.rows_written:
        share = report.busy["teacher"] / report.seconds
        lines.append(
            f"labelled {report.rows_written:,} rows in {report.seconds:.1f} s "
            f"({report.samples_per_second:,.0f} {row_unit(report)}s/s), teacher busy {share:.0%} "
            f"of the time, bounded by: {report.bound}"
        )
    else:
        lines.append("nothing to do: every shard stood already")
    if report.shards_kept and report.rows_written:
        lines.append(f"kept {report.shards_kept} finished shards of an earlier run")
    if report.teacher_accuracy is not None:
        lines.append(f"the teacher's top-1 equals the hard label for {report.teacher_accuracy:.2%}")
    lines.append(f"KL of the stored labels to the float32 logits: {kl_words(report.kl_mean)}")
    return "\n".join(lines)


def infer_preview(report: InferPreview) -> str:
    """What would be written."""
    begun = f", {report.shards_kept} of them stand" if report.shards_kept else ""
    part = "" if report.limit is None else ", a partial set"
    lines = [
        f"{report.output} would hold {report.rows:,} rows{view_words(report)}{part}, "
        f"{report.codec} {report.layout}, identity {report.identity_sha256[:12]}",
        f"to label: {report.rows_to_write:,} rows in {counted(report.shards_to_write, 'shard')}"
        f"{begun}, on {report.device} ({report.provider})",
        "nothing was written; leave --dry-run to do it, 'softlabel plan' tells sizes and times",
    ]
    return "\n".join(lines)
