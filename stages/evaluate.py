"""evaluate: how right and how well calibrated students are, over their seeds, and their teacher."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from lightning_fabric import Fabric
from torch import nn

from softlabel.pipeline.classes import class_map
from softlabel.pipeline.dvc_files import publish_metrics, publish_plot
from softlabel.pipeline.evaluation.by_class import ClassCounts
from softlabel.pipeline.evaluation.metrics import ClassifierMetrics
from softlabel.pipeline.evaluation.overlap import Overlap
from softlabel.pipeline.evaluation.pairs import PairMetrics
from softlabel.pipeline.evaluation.projection import PlaneOfThree, Three, choose_three
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.publish import make_folder, publish_bytes
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.training.agreement import check_positions, positions_of
from softlabel.pipeline.training.cards import find_cards, read_card
from softlabel.pipeline.training.fabric import make_fabric
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.penultimate import Penultimate
from softlabel.pipeline.training.student import load_student
from softlabel.pipeline.training.validation import batch_rows, predict
from softlabel.schemas.errors import DataError
from softlabel.schemas.model import report_json
from softlabel.schemas.params import EvaluateParams
from softlabel.schemas.reports import EvaluateReport
from softlabel.schemas.reports.figures import ClassifierFigures, Spread
from softlabel.schemas.reports.seeing import LabelSetMetrics, RunMetrics, StudentMetrics
from softlabel.schemas.reports.training import StudentCard

METRICS = tuple(ClassifierFigures.model_fields)

Logits = npt.NDArray[np.float32]
Features = npt.NDArray[np.float32]


class _Student(NamedTuple):
    path: Path
    card: StudentCard
    model: nn.Module
    order: tuple[int, ...] | None
    source: Source
    last_layer: Penultimate

    @property
    def templates(self) -> Features | None:
        """The last layer's row of each of the source's classes."""
        rows = self.last_layer.templates
        return rows if rows is None or self.order is None else rows[np.asarray(self.order)]


class _Said(NamedTuple):
    """Logits, hard labels (-1 where unknown), and what the last layer got."""

    logits: Logits
    hard: npt.NDArray[np.int64]
    features: Features | None


def run(params: EvaluateParams, progress: Progress | None = None) -> EvaluateReport:
    """Measure every student and write `evaluate.json`, and `metrics.json` and `plots/` for DVC.

    The seeds of a run are in memory together, so that their churn is measured on the way. Raises
    ParameterError, DataError, EnvironmentFault.
    """
    progress = progress or Quiet()
    source = open_source(params.source)
    labels = open_labelset(params.labels) if params.labels is not None else None
    if labels is not None:
        source = source.naming(labels.classes)
    cards = find_cards(params.models)
    source = source.naming(read_card(cards[0]).classes)
    fabric = make_fabric(params.device, "32-true")
    progress.start("evaluate", len(cards), "students")
    students: list[StudentMetrics] = []
    runs: list[RunMetrics] = []
    loaded = [_load(path, source) for path in cards]
    _check_positions(loaded, labels)
    templates = loaded[0].templates
    three = None if templates is None else choose_three(templates)
    for members in _by_run(loaded):
        measured, over_seeds = _measure(members, source, labels, fabric, params, three)
        students += measured
        runs.append(over_seeds)
        progress.advance(len(members))
    report = EvaluateReport(
        output=params.output,
        source=params.source,
        rows=students[0].rows,
        classes=source.classes,
        students=tuple(students),
        runs=tuple(runs),
        label_set=None if labels is None else _measure_labels(labels, source, params),
        rejects=0 if labels is None else len(labels.rejects),
    )
    make_folder(params.output)
    publish_bytes(params.output / "evaluate.json", report_json(report))
    _publish_for_dvc(report)
    return report


def _load(path: Path, source: Source) -> _Student:
    card, model = load_student(path)
    source = source.fed(card, f"student {path}").naming(source.classes)
    order = class_map(card.classes, source.classes, (f"student {path}", f"source {source.path}"))
    return _Student(path, card, model, order, source, Penultimate(model, len(card.classes)))


def _check_positions(students: Sequence[_Student], labels: LabelSet | None) -> None:
    """Raise DataError where they do not speak of the same positions of a picture."""
    first = students[0]
    for other in students:
        if other.card.grid != first.card.grid:
            raise DataError(
                f"{other.path}: speaks of {positions_of(other.card.grid)}, {first.path} of "
                f"{positions_of(first.card.grid)}; measure them one by one"
            )
        if labels is not None:
            check_positions(other.source, labels, f"student {other.path}")


def _by_run(students: Sequence[_Student]) -> list[list[_Student]]:
    runs = dict.fromkeys(student.card.run for student in students)
    return [[student for student in students if student.card.run == run] for run in runs]


def _measure(
    members: Sequence[_Student],
    source: Source,
    labels: LabelSet | None,
    fabric: Fabric,
    params: EvaluateParams,
    three: Three | None,
) -> tuple[list[StudentMetrics], RunMetrics]:
    """The figures of a run's members, and those of the run."""
    metrics = [ClassifierMetrics(params.bins) for _ in members]
    to_labels = [PairMetrics() for _ in members]
    churn, by_class = PairMetrics(), ClassCounts(len(source.classes))
    overlaps = [_overlap(member.source) for member in members]
    plane = None if three is None else _plane(members[0], three)
    # What it says of views is asked for these pictures alone.
    beside = labels if labels is not None and labels.manifest.identity.augment is None else None
    stored = _stored(beside, source, batch_rows(members[0].source, params.batch_size))
    said = zip(*(_said(member, labels, fabric, params) for member in members), strict=True)
    for batch, teacher in zip(said, stored, strict=beside is not None):
        taught = None if teacher is None else teacher.argmax(axis=1)
        for index, (logits, hard, features) in enumerate(batch):
            known = hard >= 0
            try:
                metrics[index].add(logits[known], hard[known])
            except ValueError as error:
                raise DataError(
                    f"{members[index].path}: {error} on {source.path}; train it again"
                ) from error
            said_best = logits.argmax(axis=1)[known]
            by_class.add(hard[known], said_best, None if taught is None else taught[known])
            if (overlap := overlaps[index]) is not None:
                overlap.add(hard[known], said_best)
            if teacher is not None:
                to_labels[index].add(teacher, logits)
            if index == 0 and plane is not None:
                plane = _onto(plane, features, hard)
        for (first, *_), (second, *_) in itertools.combinations(batch, 2):
            churn.add(first, second)
    if metrics[0].rows == 0:
        raise DataError(f"{source.path}: has no hard labels to measure on")
    if labels is not None and beside is None:
        to_labels = [_on_views(member, labels, fabric, params) for member in members]
    students = [
        _student_metrics(*parts)
        for parts in zip(members, metrics, to_labels, overlaps, strict=True)
    ]
    run = _over_seeds(students).model_copy(
        update={
            "churn": churn.figures() if churn.rows else None,
            "by_class": by_class.shares(),
            "projection": None if plane is None else plane.projection(source.classes),
        }
    )
    return students, run


def _plane(student: _Student, three: Three) -> PlaneOfThree | None:
    templates = student.templates
    return None if templates is None else PlaneOfThree(templates, three)


def _onto(
    plane: PlaneOfThree, features: Features | None, hard: npt.NDArray[np.int64]
) -> PlaneOfThree | None:
    """The plane with these samples on it; None for a model whose last layer says no logits."""
    if features is None:
        return None
    if not plane.full:
        plane.add(features, hard)
    return plane


def _student_metrics(
    student: _Student,
    metrics: ClassifierMetrics,
    to_labels: PairMetrics,
    overlap: Overlap | None,
) -> StudentMetrics:
    return StudentMetrics(
        name=student.path.parent.name,
        run=student.card.run,
        seed=student.card.seed,
        rows=metrics.rows,
        parameters=student.card.parameters,
        bins=metrics.bins(),
        against_labels=to_labels.figures() if to_labels.rows else None,
        mean_iou=None if overlap is None else overlap.mean(),
        **metrics.figures().model_dump(),
    )


def _said(
    student: _Student, labels: LabelSet | None, fabric: Fabric, params: EvaluateParams
) -> Iterator[_Said]:
    """What a student says of every sample, batch by batch, in the order of the source's classes.

    Samples that the label set leaves out are not read.
    """
    model = fabric.setup(student.model)
    own, rejects = student.source.reopen(), () if labels is None else labels.rejects
    rows = batch_rows(own, params.batch_size)
    for logits, batch in predict(model, fabric, own, rows, rejects):
        values = logits.numpy()
        features = student.last_layer.features(logits)
        yield _Said(
            values if student.order is None else values[:, np.asarray(student.order)],
            batch.labels,
            features,
        )


def _stored(labels: LabelSet | None, source: Source, batch_size: int) -> Iterator[Logits | None]:
    """The stored logits of the same batches; endless Nones where there is no label set."""
    if labels is None:
        yield from itertools.repeat(None)
        return
    for _, block in _labelled(labels, source).in_order(batch_size):
        yield block.logits()


def _on_views(
    student: _Student, labels: LabelSet, fabric: Fabric, params: EvaluateParams
) -> PairMetrics:
    """The student beside the label set, both of the augmented pictures that were labelled."""
    pairs = PairMetrics()
    joined = JoinedSamples(student.source.reopen(), labels)
    said = _said(student._replace(source=joined.source), labels, fabric, params)
    stored = joined.in_order(params.batch_size)
    for (logits, *_), (_, block) in zip(said, stored, strict=True):
        pairs.add(block.logits(), logits)
    return pairs


def _labelled(labels: LabelSet, source: Source) -> JoinedSamples:
    """The source as the teacher saw it, with what it said."""
    own = source.reopen().fed(labels.manifest.identity, f"the teacher of {labels.folder}")
    return JoinedSamples(own.naming(source.classes), labels)


def _measure_labels(labels: LabelSet, source: Source, params: EvaluateParams) -> LabelSetMetrics:
    metrics = ClassifierMetrics(params.bins)
    outside = 0
    joined = _labelled(labels, source)
    overlap = _overlap(joined.source)
    for samples, block in joined.in_order(batch_rows(joined.source, params.batch_size)):
        hard = samples.hard_labels().astype(np.int64)
        known = np.flatnonzero(hard >= 0)
        logits = block.logits()[known]
        metrics.add(logits, hard[known])
        if overlap is not None:
            overlap.add(hard[known], logits.argmax(axis=1))
        if "ids" in block.payload:
            kept = block.payload["ids"][known] == hard[known][:, None]
            outside += int((~kept.any(axis=1)).sum())
    if not math.isfinite(metrics.nll):
        raise DataError(f"{labels.folder}: masks (-inf) a class that is the hard label of a sample")
    return LabelSetMetrics(
        folder=labels.folder,
        identity_sha256=labels.identity,
        rows=metrics.rows,
        outside_kept=outside / metrics.rows,
        bins=metrics.bins(),
        mean_iou=None if overlap is None else overlap.mean(),
        **metrics.figures().model_dump(),
    )


def _overlap(source: Source) -> Overlap | None:
    """For what is said of pictures' positions; None for all else."""
    return None if source.grid is None else Overlap(len(source.classes))


def _over_seeds(members: Sequence[StudentMetrics]) -> RunMetrics:
    spreads = {
        metric: _spread([getattr(member, metric) for member in members]) for metric in METRICS
    }
    seeds = tuple(member.seed for member in members)
    overlaps = [member.mean_iou for member in members if member.mean_iou is not None]
    over_union = _spread(overlaps) if overlaps else None
    return RunMetrics(run=members[0].run, seeds=seeds, mean_iou=over_union, **spreads)


def _spread(values: Sequence[float]) -> Spread:
    if len(values) == 1:
        return Spread(mean=values[0], standard_error=None)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Spread(mean=float(np.mean(values)), standard_error=error)


def _publish_for_dvc(report: EvaluateReport) -> None:
    """The runs' means by metric, their reliability diagrams, and their shares by class."""
    figures = {
        run.run: {metric: getattr(run, metric).mean for metric in METRICS}
        | ({} if run.mean_iou is None else {"mean_iou": run.mean_iou.mean})
        for run in report.runs
    }
    if report.label_set is not None:
        label_set = report.label_set
        figures["label set"] = {metric: getattr(label_set, metric) for metric in METRICS}
    publish_metrics(report.output / "metrics.json", figures)
    bins = [
        {"run": student.run, "seed": student.seed, **one.model_dump()}
        for student in report.students
        for one in student.bins
        if one.rows
    ]
    publish_plot(report.output / "plots" / "reliability.json", bins)
    publish_plot(report.output / "plots" / "classes.json", list(_class_rows(report)))


def _class_rows(report: EvaluateReport) -> Iterator[dict[str, object]]:
    for run in report.runs:
        for index, name in enumerate(report.classes):
            if run.by_class is None or not run.by_class.rows[index]:
                continue
            row: dict[str, object] = {"run": run.run, "class": name}
            row["accuracy"] = run.by_class.accuracy[index]
            if run.by_class.agreement is not None:
                row["agreement"] = run.by_class.agreement[index]
            yield row
