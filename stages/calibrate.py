"""calibrate: the temperature at which a label set's soft targets are as sure as they are right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import xxhash

from softlabel.pipeline.dvc_files import publish_metrics, publish_plot
from softlabel.pipeline.evaluation.calibration import LOWEST_T, Descent, descend, fit_temperature
from softlabel.pipeline.evaluation.metrics import ClassifierMetrics
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.labelset.portions import RowReader
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.publish import make_folder, publish_bytes, refuse_folder
from softlabel.pipeline.shards.block import LabelBlock, in_pieces, piece_rows
from softlabel.schemas.errors import DataError
from softlabel.schemas.model import report_json
from softlabel.schemas.params import CalibrateParams
from softlabel.schemas.reports import CalibrateReport

MOST_OUTSIDE = 0.01
TYPICAL_PASSES = 12


def run(params: CalibrateParams, progress: Progress | None = None) -> CalibrateReport:
    """Fit T on a share of the rows, measure on the others, and write calibration.json.

    Raises ParameterError, and DataError where no temperature fits, nothing has a hard label, or
    more than 1 % of the labels are outside the classes that a topk set keeps.
    """
    progress = progress or Quiet()
    refuse_folder(params.output)
    labels = open_labelset(params.labels)
    labels.refuse_inside(params.output)
    progress.start("calibrate", TYPICAL_PASSES, "passes")

    def pass_at(b: float) -> Descent:
        progress.advance(1)
        return descend(_known(labels, params, fitting=True), b)

    topk = labels.manifest.identity.codec == "topk"
    _refuse_unfit(labels, pass_at(1 / max(1.0, min(labels.temperatures))))
    temperature = fit_temperature(pass_at, min(labels.temperatures) if topk else LOWEST_T)
    fitted = pass_at(1 / temperature)
    before = _measure(labels, params, max(1.0, min(labels.temperatures)) if topk else 1.0)
    after = _measure(labels, params, temperature)
    report = CalibrateReport(
        output=params.output,
        labels_identity_sha256=labels.identity,
        teacher_sha256=labels.manifest.identity.teacher_sha256,
        temperature=temperature,
        fitted_rows=fitted.rows,
        measured_rows=before.rows,
        outside_kept=fitted.outside / fitted.rows,
        before=before.figures(),
        after=after.figures(),
        bins_before=before.bins(),
        bins_after=after.bins(),
    )
    make_folder(params.output.parent)
    publish_bytes(params.output, report_json(report))
    _publish_for_dvc(report)
    return report


def _publish_for_dvc(report: CalibrateReport) -> None:
    """Beside calibration.json: `calibration-metrics.json` and `calibration-plot.json`."""
    parts = (
        ("before", report.before, report.bins_before),
        ("after", report.after, report.bins_after),
    )
    figures: dict[str, object] = {"temperature": report.temperature}
    figures |= {part: measured.model_dump() for part, measured, _ in parts}
    rows = [
        {"part": part, **one.model_dump()} for part, _, bins in parts for one in bins if one.rows
    ]
    stem = report.output.with_suffix("")
    publish_metrics(stem.with_name(f"{stem.name}-metrics.json"), figures)
    publish_plot(stem.with_name(f"{stem.name}-plot.json"), rows)


def _known(labels: LabelSet, params: CalibrateParams, *, fitting: bool) -> Iterator[LabelBlock]:
    """The rows with a hard label, of sequences positions: those to fit on, or to measure on."""
    for block in _blocks(labels):
        wanted = block.labels.is_valid().to_numpy(zero_copy_only=False)
        if params.fit_share < 1:
            chosen = _chosen(block.keys, params) == fitting
            wanted = wanted & np.repeat(chosen, np.diff(block.starts()))
        if wanted.any():
            # A sequence alone may be too long to be decoded whole.
            yield from in_pieces([block.take_positions(np.flatnonzero(wanted))], labels.num_classes)


def _blocks(labels: LabelSet) -> Iterator[LabelBlock]:
    if labels.manifest.identity.positions:
        return RowReader(labels).read(0, len(labels))
    return labels.batches(piece_rows(labels.num_classes))


def _chosen(keys: pa.StringArray, params: CalibrateParams) -> np.ndarray:
    """Whether T is fitted on each key: a share of them by hash, whatever their order."""
    hashes = [xxhash.xxh3_64_intdigest(key.encode(), params.seed) for key in keys.to_pylist()]
    return np.array(hashes, np.uint64) < np.uint64(int(params.fit_share * 2**64))


def _measure(labels: LabelSet, params: CalibrateParams, T: float) -> ClassifierMetrics:
    metrics = ClassifierMetrics(params.bins)
    for block in _known(labels, params, fitting=False):
        metrics.add(block.logits(T) / np.float32(T), block.labels.to_numpy(zero_copy_only=False))
    if not metrics.rows:
        raise DataError(f"{labels.folder}: no rows are left to measure on; lower --fit-share")
    return metrics


def _refuse_unfit(labels: LabelSet, first: Descent) -> None:
    if not first.rows:
        raise DataError(
            f"{labels.folder}: has no hard labels to fit on; label a source that has them"
        )
    if first.outside > MOST_OUTSIDE * first.rows:
        raise DataError(
            f"{labels.folder}: {first.outside / first.rows:.1%} of the hard labels are outside the "
            "classes that were kept, more than 1 %; label again with a larger --k or a dense codec"
        )
