"""inspect: what a label set holds, in figures and as rows that people read."""

from __future__ import annotations

import numpy as np

from softlabel.pipeline.block import LabelBlock
from softlabel.pipeline.labelset import LabelSet, open_labelset
from softlabel.pipeline.numerics import softmax
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.schemas.params import InspectParams
from softlabel.schemas.reports import InspectReport, RowView

BATCH_ROWS = 4096


def run(params: InspectParams, progress: Progress | None = None) -> InspectReport:
    """Read the set once and describe it. Raises ParameterError, DataError."""
    progress = progress or Quiet()
    labels = open_labelset(params.labels)
    manifest = labels.manifest
    progress.start("inspect", len(labels), "rows")
    entropy = np.zeros(len(labels.temperatures))
    views: list[RowView] = []
    for block in labels.batches(BATCH_ROWS):
        for index, temperature in enumerate(labels.temperatures):
            entropy[index] += _entropies(block, temperature).sum(dtype=np.float64)
        wanted = min(params.rows - len(views), len(block))
        views += [_view(labels, block, row, params.top) for row in range(wanted)]
        progress.advance(len(block))
    size = sum(shard.bytes for shard in manifest.shards)
    counts = manifest.statistics
    return InspectReport(
        labels=params.labels,
        identity_sha256=labels.identity,
        teacher_sha256=manifest.identity.teacher_sha256,
        codec=_codec_name(labels),
        rows=len(labels),
        shards=len(manifest.shards),
        bytes=size,
        bytes_per_row=size / len(labels),
        classes=labels.classes,
        temperatures=labels.temperatures,
        kl_mean={str(item.temperature): item.kl_mean for item in manifest.fidelity},
        entropy={
            str(temperature): float(total) / len(labels)
            for temperature, total in zip(labels.temperatures, entropy, strict=True)
        },
        label_accuracy=counts.correct / counts.labelled if counts.labelled else None,
        row_views=tuple(views),
    )


def _codec_name(labels: LabelSet) -> str:
    identity = labels.manifest.identity
    return identity.codec if identity.k is None else f"{identity.codec} {identity.k}"


def _entropies(block: LabelBlock, temperature: float) -> np.ndarray:
    probs = block.probs(temperature)
    logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
    return np.asarray(-(probs * logs).sum(axis=1))


def _view(labels: LabelSet, block: LabelBlock, row: int, top: int) -> RowView:
    one = block.slice(row, 1)
    first = one.logits(max(1.0, *labels.temperatures))[0]
    likeliest = np.argsort(-first, kind="stable")[:top]
    label = one.labels[0].as_py()
    return RowView(
        key=one.keys[0].as_py(),
        label=None if label is None else labels.classes[label],
        likeliest=tuple(labels.classes[index] for index in likeliest),
        targets={
            str(T): tuple(softmax(one.logits(T), T)[0][likeliest].tolist())
            for T in labels.temperatures
        },
    )
