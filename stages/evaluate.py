"""evaluate: accuracy, NLL and calibration of students on a source, and of runs over their seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning_fabric import Fabric

from softlabel.pipeline.cards import find_cards
from softlabel.pipeline.classes import class_map
from softlabel.pipeline.metrics import ClassifierMetrics
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.publish import make_folder, publish_bytes
from softlabel.pipeline.sources.parquet import ParquetSource
from softlabel.pipeline.student import load_student
from softlabel.pipeline.training import make_fabric, predict
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import canonical_json
from softlabel.schemas.params import EvaluateParams
from softlabel.schemas.reports import (
    ClassifierFigures,
    EvaluateReport,
    RunMetrics,
    Spread,
    StudentMetrics,
)

METRICS = tuple(ClassifierFigures.model_fields)


def run(params: EvaluateParams, progress: Progress | None = None) -> EvaluateReport:
    """Measure every student and write `evaluate.json`, and the runs' means as `metrics.json`.

    Raises ParameterError, DataError, EnvironmentFault.
    """
    progress = progress or Quiet()
    source = ParquetSource(params.source)
    cards = find_cards(params.models)
    fabric = make_fabric(params.device, "32-true")
    progress.start("evaluate", len(cards), "students")
    students = []
    for card in cards:
        students.append(_measure(card, source, fabric, params))
        progress.advance(1)
    report = EvaluateReport(
        output=params.output,
        source=params.source,
        rows=students[0].rows,
        classes=source.classes,
        students=tuple(students),
        runs=_over_seeds(students),
    )
    make_folder(params.output)
    publish_bytes(params.output / "evaluate.json", canonical_json(report))
    publish_bytes(params.output / "metrics.json", _dvc_metrics(report))
    return report


def _measure(
    path: Path, source: ParquetSource, fabric: Fabric, params: EvaluateParams
) -> StudentMetrics:
    card, model = load_student(path)
    if (card.height, card.width, card.channels) != source.shape:
        raise DataError(
            f"{path}: takes pictures of shape {[card.height, card.width, card.channels]}, "
            f"{source.path} has {list(source.shape)}; evaluate on a source of that shape"
        )
    order = class_map(card.classes, source.classes, (f"student {path}", f"source {source.path}"))
    metrics = ClassifierMetrics(params.bins)
    for logits, batch in predict(fabric.setup(model), fabric, source, params.batch_size):
        known = batch.labels >= 0
        values = logits.numpy() if order is None else logits.numpy()[:, np.asarray(order)]
        try:
            metrics.add(values[known], batch.labels[known])
        except ValueError as error:
            raise DataError(f"{path}: {error} on {source.path}; train it again") from error
    if metrics.rows == 0:
        raise DataError(f"{source.path}: has no hard labels to measure on")
    return StudentMetrics(
        name=path.parent.name,
        run=card.run,
        seed=card.seed,
        rows=metrics.rows,
        parameters=card.parameters,
        bins=metrics.bins(),
        **metrics.figures().model_dump(),
    )


def _over_seeds(students: Sequence[StudentMetrics]) -> tuple[RunMetrics, ...]:
    runs = dict.fromkeys(student.run for student in students)
    result = []
    for run_name in runs:
        members = [student for student in students if student.run == run_name]
        spreads = {
            metric: _spread([getattr(member, metric) for member in members]) for metric in METRICS
        }
        seeds = tuple(member.seed for member in members)
        result.append(RunMetrics(run=run_name, seeds=seeds, **spreads))
    return tuple(result)


def _spread(values: Sequence[float]) -> Spread:
    if len(values) == 1:
        return Spread(mean=values[0], standard_error=None)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Spread(mean=float(np.mean(values)), standard_error=error)


def _dvc_metrics(report: EvaluateReport) -> bytes:
    """The runs' figures as `dvc metrics show` reads them: numbers by run and metric."""
    document = {
        run.run: {metric: getattr(run, metric).mean for metric in METRICS} for run in report.runs
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
