"""What a person sees of a stage: progress while it works, a few lines when it is done."""

from __future__ import annotations

import math
import textwrap
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

from softlabel.schemas.soft_targets import SMOOTHED

# Of the 100 columns that a table may take, a codec's name needs 17 and a temperature 19.
TEMPERATURES_A_LINE = 4
HEIGHTS = " ▁▂▃▄▅▆▇█"


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


def _plan(report: Any) -> str:
    lines = [
        f"tried on {report.sampled:,} of {report.rows:,} {_unit(report)}s of {report.source}"
        f"{_a_sample(report)}, {report.classes:,} classes",
        f"teacher {', '.join(map(str, report.teacher))} on {report.device}: "
        f"{report.teacher_samples_per_second:,.0f} {_unit(report)}s/s",
        "",
        f"{'codec':<17}{'bytes/' + _unit(report):>13}{'whole set':>12}{'same top-1':>12}"
        f"{'encoded/s':>12}{'whole run':>11}",
    ]
    for trial in report.trials:
        mark = "  recommended" if trial.name == report.recommended else ""
        lines.append(
            f"{trial.name:<17}{trial.bytes_per_sample:>13,.1f}{_size(trial.bytes):>12}"
            f"{trial.top1_agreement:>12.2%}{trial.samples_per_second:>12,.0f}"
            f"{_duration(trial.seconds):>11}{mark}"
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


def _losses(report: Any, what: str, title: str) -> list[str]:
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


def _unit(report: Any) -> str:
    """What a label row is of: a sample, or one of its views."""
    return "sample" if report.views == 1 else "view"


def _a_sample(report: Any) -> str:
    return "" if report.views == 1 else f" ({report.views} a sample)"


def _size(size: float) -> str:
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log(max(size, 1), 1024)))
    return f"{size / 1024**power:,.1f} {units[power]}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds >= 0.1 else "< 0.1 s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _infer(report: Any) -> str:
    lines = [
        f"wrote {report.output}: {report.rows:,} rows{_of_views(report)} in {report.shards} "
        f"shards, {report.bytes / 2**20:.2f} MiB, identity {report.identity_sha256[:12]}"
    ]
    if report.limit is not None:
        lines.append(f"a partial set: the first {report.limit:,} samples of the source")
    if report.shards_missing:
        lines = [
            f"share {report.partition} of {report.output} is whole: {report.rows:,} rows in "
            f"{_count(report.shards, 'shard')}, {report.bytes / 2**20:.2f} MiB",
            f"the set is unfinished: {_count(report.shards_missing, 'shard')} of other shares "
            "missing; the last to end completes it",
        ]
    lines += _rejects(report)
    if report.rows_written:
        share = report.busy["teacher"] / report.seconds
        lines.append(
            f"labelled {report.rows_written:,} rows in {report.seconds:.1f} s "
            f"({report.samples_per_second:,.0f} {_unit(report)}s/s), teacher busy {share:.0%} of "
            f"the time, bounded by: {report.bound}"
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


def _rejects(report: Any) -> list[str]:
    """What to say of samples that are left out, where there are any."""
    if not report.rejects:
        return []
    return [f"left out: {_count(report.rejects, 'sample')} that could not be used (rejects.jsonl)"]


def _infer_preview(report: Any) -> str:
    begun = f", {report.shards_kept} of them stand" if report.shards_kept else ""
    part = "" if report.limit is None else ", a partial set"
    lines = [
        f"{report.output} would hold {report.rows:,} rows{_of_views(report)}{part}, {report.codec} "
        f"{report.layout}, identity {report.identity_sha256[:12]}",
        f"to label: {report.rows_to_write:,} rows in {_count(report.shards_to_write, 'shard')}"
        f"{begun}, on {report.device} ({report.provider})",
        "nothing was written; leave --dry-run to do it, 'softlabel plan' tells sizes and times",
    ]
    return "\n".join(lines)


def _verify(report: Any) -> str:
    checks = ", ".join(report.checks)
    if not report.problems:
        verdict = f"{report.labels} is sound: {report.rows:,} rows in {report.shards} shards"
    else:
        verdict = f"{report.labels} is NOT sound: {len(report.problems)} problems"
    lines = [verdict, *_rejects(report), f"checked: {checks}"]
    lines += [f"  {problem.kind}: {problem.message}" for problem in report.problems]
    if report.replay is not None:
        replay = report.replay
        lines.append(
            f"replay of {replay.rows} samples: mean KL {replay.kl_mean:.1e} (passes up to "
            f"{replay.kl_limit:.1e}), largest difference of a probability "
            f"{replay.probability_difference:.1e}; shifted by one row: {replay.shifted_kl_mean:.1e}"
        )
    if report.replay is not None and report.replay.features_difference is not None:
        lines.append(
            f"their features differ by {replay.features_difference:.1e} of the largest one; "
            f"shifted by one row: {replay.shifted_features_difference:.1e}"
        )
    if report.not_replayed is not None:
        lines.append(report.not_replayed)
    if report.removed:
        names = ", ".join(report.removed)
        again = report.making.command
        lines.append(f"removed {names}; run '{again}' again: it redoes exactly these")
    return "\n".join(lines)


def _inspect(report: Any) -> str:
    lines = [
        f"{report.labels}: {_row_words(report)} of {len(report.classes):,} classes "
        f"in {_count(report.shards, 'shard')}",
        f"stored   {report.codec}, {report.layout}{_features_words(report)}, "
        f"{_size(report.bytes)} ({report.bytes_per_row:,.0f} bytes a row)",
        f"classes  {_class_words(report.classes)}",
        f"identity {report.identity_sha256}",
        f"teacher  {' '.join(report.teacher_sha256)}",
        *_ensemble_lines(report.ensemble),
        f"made by  {report.making.command}",
        *_view_lines(report),
        *_derivation_lines(report.derived),
    ]
    lines += _rejects(report)
    if not report.aligned:
        lines.append("order    its own, not that of the source: joined by key")
    lines += [
        f"{'T':>6} {'entropy':>10} {'KL':>10} {'top-1':>8}  rows by top-1, from 0 to 1",
    ]
    for targets in report.targets:
        kl = report.kl_mean[str(targets.temperature)]
        lines.append(
            f"{targets.temperature:>6g} {targets.entropy:>10.4f} {kl:>10.1e} {targets.top1:>8.1%}"
            f"  {_histogram(targets.top1_rows)}"
        )
    lines.append(f"entropy and KL in nats; KL to the {report.reference}")
    if report.label_accuracy is not None:
        lines.append(
            f"the top-1 equals the hard label for {report.label_accuracy:.2%} of "
            f"{report.labelled:,} {'rows' if report.positions is None else 'positions'}"
        )
    lines += _sign_lines(report.signs)
    for row in report.row_views:
        lines += _row_lines(row)
    return "\n".join(lines)


def _histogram(rows: Any) -> str:
    """A letter a bin, as high as its share of the largest; a bin with a row is never blank."""
    most = max(rows)
    steps = [math.ceil(count * (len(HEIGHTS) - 1) / most) if most else 0 for count in rows]
    return f"|{''.join(HEIGHTS[step] for step in steps)}|"


def _sign_lines(signs: Any) -> list[str]:
    if signs is None:
        return []
    line = (
        f"beside the top-1 at T=1: mass {signs.non_target_mass:.4f}, "
        f"steady {signs.steadiness:.2f}, even {signs.evenness:.2f}"
    )
    if signs.stability is not None:
        line += f"; stability in a class {signs.stability:.4f}"
    return [line, f"warning: {SMOOTHED}"] if signs.smoothed else [line]


def _row_words(report: Any) -> str:
    words = _count(report.rows, "row")
    if report.positions is not None:
        words = f"{_count(report.rows, 'sequence')} with {_count(report.positions, 'position')}"
    return words + _of_views(report)


def _of_views(report: Any) -> str:
    if report.views == 1:
        return ""
    samples = _count(report.rows // report.views, "sample")
    return f" ({samples}, {report.views} views each)"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def _features_words(report: Any) -> str:
    return "" if report.features is None else f" with {report.features:,} features"


def _class_words(classes: Any) -> str:
    shown = ", ".join(classes[:10])
    return shown if len(classes) <= 10 else f"{shown} and {len(classes) - 10:,} more"


def _view_lines(report: Any) -> list[str]:
    made = report.augment
    if made is None:
        return []
    steps = []
    for transform in made.transforms:
        arguments = transform.model_dump(exclude={"name"}, exclude_none=True)
        shown = ", ".join(f"{name}={_argument(value)}" for name, value in arguments.items())
        steps.append(f"{transform.name}({shown})")
    return [
        f"views    by seed {report.seed}: {', '.join(steps)}",
        f"         with torchvision {made.torchvision}, torch {made.torch}, Pillow {made.pillow}",
    ]


def _argument(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_argument(item) for item in value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _derivation_lines(derived: Any) -> list[str]:
    if derived is None:
        return []
    parents = ", ".join(parent[:12] for parent in derived.parents)
    parts = [f"{derived.verb} of {parents} (was {', then '.join(derived.codecs)})"]
    if derived.mean is not None:
        parts.append(_mean_words(derived))
    if derived.class_ids is not None:
        parts.append(f"{len(derived.class_ids):,} of its classes")
    if derived.keys_sha256 is not None:
        parts.append(f"the keys {derived.keys_sha256[:12]} only")
    return [f"from     {'; '.join(parts)}"]


def _ensemble_lines(ensemble: Any) -> list[str]:
    if ensemble is None:
        return []
    return [f"ensemble of {len(ensemble.members)} teachers: {_mean_words(ensemble)}"]


def _mean_words(mean: Any) -> str:
    weights = " : ".join(f"{weight:g}" for weight in mean.weights)
    at = "" if mean.temperature is None else f" at T={mean.temperature:g}"
    return f"mean of {mean.mean}{at}, weights {weights}"


def _row_lines(row: Any) -> list[str]:
    name = row.key if row.view is None else f"{row.key} view {row.view}"
    if row.length is None:
        (only,) = row.positions
        return [f"{name}: hard {only.label or 'unknown'}", *_target_lines(only, "  ")]
    lines = [f"{name}: {_count(row.length, 'position')}"]
    for index, position in enumerate(row.positions):
        lines.append(f"  position {index}: hard {position.label or 'unknown'}")
        lines += _target_lines(position, "    ")
    if row.length > len(row.positions):
        lines.append(f"  and {row.length - len(row.positions):,} more")
    return lines


def _target_lines(position: Any, indent: str) -> list[str]:
    lines = []
    for temperature, targets in position.targets.items():
        pairs = zip(position.likeliest, targets, strict=True)
        shown = ", ".join(f"{name} {target:.3f}" for name, target in pairs)
        lines.append(f"{indent}T={float(temperature):<4g} {shown}")
    return lines


def _convert(report: Any) -> str:
    lines = [
        f"wrote {report.output}: {report.rows:,} rows in {report.shards} shards, {report.codec} "
        f"{report.layout}, identity {report.identity_sha256[:12]}",
        f"{_rewritten(report)}; {report.bytes_before / 2**20:.2f} MiB became "
        f"{report.bytes / 2**20:.2f} MiB",
    ]
    if report.kl_mean is not None:
        lines.append(f"KL to the {_reference(report)}: {_kl(report)}")
    return "\n".join(lines)


def _merge(report: Any) -> str:
    weights = ", ".join(f"{weight:.3g}" for weight in report.weights)
    return (
        f"wrote {report.output}: {report.rows:,} rows in {report.shards} shards, {report.codec}, "
        f"{report.bytes / 2**20:.2f} MiB, identity {report.identity_sha256[:12]}\n"
        f"{_rewritten(report)}; the mean of {report.members} sets with weights {weights}\n"
        f"KL of the stored labels to the mean: {_kl(report)}"
    )


def _rewritten(report: Any) -> str:
    if not report.rows_written:
        return "nothing to do: every shard stood already"
    kept = f", kept {report.shards_kept} finished shards" if report.shards_kept else ""
    speed = report.rows_written / max(report.seconds, 1e-9)
    return f"{report.rows_written:,} rows in {report.seconds:.1f} s ({speed:,.0f} rows/s){kept}"


def _reference(report: Any) -> str:
    known = report.reference == "float32 logits"
    return report.reference if known else f"{report.reference} labels it was converted from"


def _kl(report: Any) -> str:
    return ", ".join(f"{value:.1e} at T={float(T):g}" for T, value in report.kl_mean.items())


def _train(report: Any) -> str:
    return "\n".join(_trained(member) for member in (report, *report.peers))


def _trained(report: Any) -> str:
    best = report.best_epoch
    last = report.history[-1 if best is None else best]
    figures = [f"loss {last.loss:.4f}", f"training accuracy {last.train_accuracy:.2%}"]
    if last.validation_accuracy is not None:
        figures.append(f"validation accuracy {last.validation_accuracy:.2%}")
    which = "" if best is None else f" (epoch {best} of {len(report.history)}, counted from 0)"
    lines = [
        f"wrote {report.output}: {', '.join(figures)}{which}",
        f"{report.steps:,} steps over {report.samples:,} samples in {report.seconds:.1f} s "
        f"on {report.device}",
        *_rejects(report),
    ]
    return "\n".join(lines)


def _calibrate(report: Any) -> str:
    lines = [
        f"wrote {report.output}: T = {report.temperature:.4f} fits {report.fitted_rows:,} rows",
        f"{'on ' + format(report.measured_rows, ',') + ' rows':<16} {'before':>10} {'after':>10}",
    ]
    for name, key in (("NLL", "nll"), ("ECE", "ece"), ("Brier score", "brier")):
        before, after = getattr(report.before, key), getattr(report.after, key)
        lines.append(f"{name:<16} {before:>10.4f} {after:>10.4f}")
    return "\n".join(lines)


def _evaluate(report: Any) -> str:
    lines = [
        f"wrote {report.output}: {report.rows:,} samples of {report.source}",
        f"{'run':<12} {'seeds':>5} {'accuracy':>16} {'NLL':>16} {'ECE':>16} {'churn':>8}"
        "  by confidence",
    ]
    for run in report.runs:
        figures = [_spread(run.accuracy, 100, "%"), _spread(run.nll), _spread(run.ece)]
        cells = " ".join(f"{figure:>16}" for figure in figures)
        churn = "-" if run.churn is None else f"{1 - run.churn.agreement:.2%}"
        bins = _histogram(_pooled([one for one in report.students if one.run == run.run]))
        lines.append(f"{run.run:<12} {len(run.seeds):>5} {cells} {churn:>8}  {bins}")
    if report.label_set is not None:
        labels = report.label_set
        figures = [f"{labels.accuracy:.2%}", f"{labels.nll:.4f}", f"{labels.ece:.4f}"]
        cells = " ".join(f"{figure:>16}" for figure in figures)
        bins = _histogram(_pooled([labels]))
        lines.append(f"{'label set':<12} {'':>5} {cells} {'':>8}  {bins}")
        if labels.outside_kept:
            lines.append(f"{labels.outside_kept:.2%} of the hard labels are not among those kept")
    return "\n".join(lines)


def _pooled(models: Any) -> list[int]:
    """Rows in each confidence bin, of all models together."""
    return [
        sum(one.rows for one in column) for column in zip(*(m.bins for m in models), strict=True)
    ]


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
    "CodecPlanReport": _plan,
    "InferReport": _infer,
    "InferPreview": _infer_preview,
    "VerifyReport": _verify,
    "InspectReport": _inspect,
    "ConvertReport": _convert,
    "MergeReport": _merge,
    "TrainReport": _train,
    "CalibrateReport": _calibrate,
    "EvaluateReport": _evaluate,
    "PageReport": _page,
}
