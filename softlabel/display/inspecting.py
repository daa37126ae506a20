"""What 'inspect' found in a label set, as tables and rows that people read."""

from __future__ import annotations

from collections.abc import Sequence

from softlabel.display.words import (
    counted,
    histogram,
    mean_words,
    reject_lines,
    size_words,
    view_words,
)
from softlabel.schemas.labelset import Derivation, Ensemble
from softlabel.schemas.reports import InspectReport
from softlabel.schemas.reports.label_sets import PositionView, RowView
from softlabel.schemas.soft_targets import SMOOTHED, SmoothingSigns


def inspect(report: InspectReport) -> str:
    """What is stored, the soft targets by temperature, signs of smoothing, the rows asked for."""
    lines = [
        f"{report.labels}: {_row_words(report)} of {len(report.classes):,} classes "
        f"in {counted(report.shards, 'shard')}",
        f"stored   {report.codec}, {report.layout}{_features_words(report)}, "
        f"{size_words(report.bytes)} ({report.bytes_per_row:,.0f} bytes a row)",
        f"classes  {_class_words(report.classes)}",
        f"identity {report.identity_sha256}",
        f"teacher  {' '.join(report.teacher_sha256)}",
        *_ensemble_lines(report.ensemble),
        f"made by  {report.making.command}",
        *_view_lines(report),
        *_derivation_lines(report.derived),
    ]
    lines += reject_lines(report)
    if not report.aligned:
        lines.append("order    its own, not that of the source: joined by key")
    lines += [
        f"{'T':>6} {'entropy':>10} {'KL':>10} {'top-1':>8}  rows by top-1, from 0 to 1",
    ]
    for targets in report.targets:
        kl = report.kl_mean[str(targets.temperature)]
        lines.append(
            f"{targets.temperature:>6g} {targets.entropy:>10.4f} {kl:>10.1e} {targets.top1:>8.1%}"
            f"  {histogram(targets.top1_rows)}"
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


def _sign_lines(signs: SmoothingSigns | None) -> list[str]:
    if signs is None:
        return []
    line = (
        f"beside the top-1 at T=1: mass {signs.non_target_mass:.4f}, "
        f"steady {signs.steadiness:.2f}, even {signs.evenness:.2f}"
    )
    if signs.stability is not None:
        line += f"; stability in a class {signs.stability:.4f}"
    return [line, f"warning: {SMOOTHED}"] if signs.smoothed else [line]


def _row_words(report: InspectReport) -> str:
    words = counted(report.rows, "row")
    if report.grid is not None:
        height, width = report.grid
        words = f"{counted(report.rows, 'picture')} with {height}x{width} positions each"
    elif report.positions is not None:
        words = f"{counted(report.rows, 'sequence')} with {counted(report.positions, 'position')}"
    return words + view_words(report)


def _features_words(report: InspectReport) -> str:
    return "" if report.features is None else f" with {report.features:,} features"


def _class_words(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:10])
    return shown if len(classes) <= 10 else f"{shown} and {len(classes) - 10:,} more"


def _view_lines(report: InspectReport) -> list[str]:
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


def _argument(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_argument(item) for item in value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _derivation_lines(derived: Derivation | None) -> list[str]:
    if derived is None:
        return []
    parents = ", ".join(parent[:12] for parent in derived.parents)
    parts = [f"{derived.verb} of {parents} (was {', then '.join(derived.codecs)})"]
    if derived.mean is not None:
        parts.append(mean_words(derived))
    if derived.class_ids is not None:
        parts.append(f"{len(derived.class_ids):,} of its classes")
    if derived.keys_sha256 is not None:
        parts.append(f"the keys {derived.keys_sha256[:12]} only")
    return [f"from     {'; '.join(parts)}"]


def _ensemble_lines(ensemble: Ensemble | None) -> list[str]:
    if ensemble is None:
        return []
    return [f"ensemble of {len(ensemble.members)} teachers: {mean_words(ensemble)}"]


def _row_lines(row: RowView) -> list[str]:
    name = row.key if row.view is None else f"{row.key} view {row.view}"
    if row.length is None:
        (only,) = row.positions
        return [f"{name}: hard {only.label or 'unknown'}", *_target_lines(only, "  ")]
    lines = [f"{name}: {counted(row.length, 'position')}"]
    for index, position in enumerate(row.positions):
        lines.append(f"  position {index}: hard {position.label or 'unknown'}")
        lines += _target_lines(position, "    ")
    if row.length > len(row.positions):
        lines.append(f"  and {row.length - len(row.positions):,} more")
    return lines


def _target_lines(position: PositionView, indent: str) -> list[str]:
    lines = []
    for temperature, targets in position.targets.items():
        pairs = zip(position.likeliest, targets, strict=True)
        shown = ", ".join(f"{name} {target:.3f}" for name, target in pairs)
        lines.append(f"{indent}T={float(temperature):<4g} {shown}")
    return lines
