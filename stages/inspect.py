"""inspect: what a label set holds, in figures and as rows that people read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from softlabel.pipeline.codecs.codec import Columns
from softlabel.pipeline.codecs.numerics import Floats, softmax
from softlabel.pipeline.dvc_files import publish_metrics, publish_plot
from softlabel.pipeline.evaluation.smoothing import SmoothingSums, can_tell, told_apart
from softlabel.pipeline.evaluation.soft_targets import TargetSums
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.schemas.labelset import Manifest
from softlabel.schemas.params import InspectParams
from softlabel.schemas.reports import InspectReport
from softlabel.schemas.reports.label_sets import PositionView, RowView
from softlabel.schemas.soft_targets import SmoothingSigns, TargetsAtTemperature

BATCH_ROWS = 4096
# A row may be a sequence of thousands of positions.
BATCH_SEQUENCES = 64
# Logits decoded at a time: 16 MB.
CELLS = 2**22
SHOWN_POSITIONS = 3


def run(params: InspectParams, progress: Progress | None = None) -> InspectReport:
    """Read the set once, describe it, and write metrics where asked to.

    Raises ParameterError, DataError.
    """
    progress = progress or Quiet()
    labels = open_labelset(params.labels)
    if params.output is not None:
        labels.refuse_inside(params.output)
    progress.start("inspect", len(labels), "rows")
    seen = _seen(labels, params, progress)
    report = _report(params.labels, labels, seen)
    if params.output is not None:
        _publish_for_dvc(params.output, report)
    return report


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one pass over the labels found."""

    targets: tuple[TargetsAtTemperature, ...]
    signs: SmoothingSigns | None
    positions: int
    rows: tuple[RowView, ...]


def _seen(labels: LabelSet, params: InspectParams, progress: Progress) -> _Seen:
    sums = [TargetSums(T, labels.num_classes) for T in labels.temperatures]
    signs = SmoothingSums(labels.num_classes)
    positions = 0
    views: list[RowView] = []
    of_sequences = labels.manifest.identity.positions
    for block in labels.batches(BATCH_SEQUENCES if of_sequences else BATCH_ROWS):
        for one in sums:
            for _, logits in _decoded(block, labels.num_classes, one.temperature):
                one.add(logits)
        if can_tell(block.codec, labels.num_classes):
            for columns, logits in _decoded(block, labels.num_classes, 1.0):
                top1 = columns["top1"].astype(np.int64)
                signs.add(softmax(logits, 1.0), top1, told_apart(block.codec, columns))
        positions += len(block.top1)
        wanted = min(params.rows - len(views), len(block))
        views += [_row(labels, block.slice(row, 1), params.top) for row in range(wanted)]
        progress.advance(len(block))
    targets = tuple(one.record() for one in sums)
    return _Seen(targets, signs.signs(), positions, tuple(views))


def _report(folder: Path, labels: LabelSet, seen: _Seen) -> InspectReport:
    manifest = labels.manifest
    identity, counts = manifest.identity, manifest.statistics
    return InspectReport(
        labels=folder,
        identity_sha256=labels.identity,
        teacher_sha256=identity.teacher_sha256,
        ensemble=identity.ensemble,
        making=manifest.making,
        derived=identity.derived,
        codec=_codec_name(manifest),
        layout=manifest.layout,
        aligned=manifest.aligned,
        rows=len(labels),
        rejects=len(labels.rejects),
        views=identity.views,
        augment=identity.augment,
        seed=identity.seed,
        positions=seen.positions if identity.positions else None,
        grid=identity.grid,
        features=identity.features,
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        bytes_per_row=labels.bytes_per_row,
        classes=labels.classes,
        temperatures=labels.temperatures,
        reference=_reference(manifest),
        kl_mean={str(item.temperature): item.kl_mean for item in manifest.fidelity},
        entropy={str(one.temperature): one.entropy for one in seen.targets},
        targets=seen.targets,
        signs=seen.signs,
        labelled=counts.labelled,
        label_accuracy=counts.correct / counts.labelled if counts.labelled else None,
        row_views=seen.rows,
    )


def _publish_for_dvc(folder: Path, report: InspectReport) -> None:
    """Sizes, accuracy and signs as metrics; what changes with T as a plot too."""
    rows = [
        {
            "T": one.temperature,
            "entropy": one.entropy,
            "top1": one.top1,
            "kl": report.kl_mean[str(one.temperature)],
        }
        for one in report.targets
    ]
    figures: dict[str, object] = {
        name: value
        for name in ("rows", "bytes", "bytes_per_row", "label_accuracy")
        if (value := getattr(report, name)) is not None
    }
    if report.signs is not None:
        figures["signs"] = report.signs.model_dump(exclude_none=True)
    figures |= {f"T={row['T']:g}": {k: v for k, v in row.items() if k != "T"} for row in rows}
    publish_metrics(folder / "metrics.json", figures)
    publish_plot(folder / "plots" / "temperatures.json", rows)


def _codec_name(manifest: Manifest) -> str:
    identity = manifest.identity
    if identity.codec != "topk":
        return identity.codec
    return f"topk {identity.k} with tail {identity.tail or 'uniform'}"


def _reference(manifest: Manifest) -> str:
    """What the recorded KL is measured against, after 'KL to the'."""
    if manifest.reference == "float32 logits":
        return manifest.reference
    return f"{manifest.reference} labels it was converted from"


def _decoded(block: LabelBlock, classes: int, T: float) -> Iterator[tuple[Columns, Floats]]:
    """The columns of a block's positions and their logits, in pieces: rows may be many and wide."""
    columns = {**block.payload, "top1": block.top1}
    step = max(1, CELLS // classes)
    for first in range(0, len(block.top1), step):
        piece = {name: values[first : first + step] for name, values in columns.items()}
        yield piece, block.codec.logits(piece, T)


def _row(labels: LabelSet, one: LabelBlock, top: int) -> RowView:
    """A block of one row as people read it; of a sequence its first positions."""
    decoded = [one.logits(T) for T in labels.temperatures]
    shown = min(len(one.top1), SHOWN_POSITIONS)
    return RowView(
        key=one.keys[0].as_py(),
        view=None if one.views is None else int(one.views[0]),
        length=None if one.lengths is None else int(one.lengths[0]),
        positions=tuple(
            _position(labels, [logits[index] for logits in decoded], one.labels[index].as_py(), top)
            for index in range(shown)
        ),
    )


def _position(labels: LabelSet, decoded: list[Floats], label: int | None, top: int) -> PositionView:
    """One distribution; `decoded` holds its logits at each recorded temperature."""
    likeliest = np.argsort(-decoded[0], kind="stable")[:top]
    return PositionView(
        label=None if label is None else labels.classes[label],
        likeliest=tuple(labels.classes[index] for index in likeliest),
        targets={
            str(T): tuple(softmax(logits, T)[likeliest].tolist())
            for T, logits in zip(labels.temperatures, decoded, strict=True)
        },
    )
