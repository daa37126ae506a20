"""What 'calibrate', 'evaluate' and 'report' return."""

from __future__ import annotations

from pathlib import Path

from softlabel.schemas.location import GivenLocation
from softlabel.schemas.model import Record
from softlabel.schemas.reports.experiments import Experiment
from softlabel.schemas.reports.figures import (
    Bin,
    ClassifierFigures,
    ClassShares,
    PairFigures,
    Projection,
    Spread,
)
from softlabel.schemas.soft_targets import SoftTargetProfile


class StudentMetrics(ClassifierFigures):
    """One model on one source. against_labels: the label set is the first of the pair.

    mean_iou: mean intersection over union of a segmenter, over the classes that are met; else null.
    """

    name: str
    run: str
    seed: int
    rows: int
    parameters: int
    bins: tuple[Bin, ...]
    against_labels: PairFigures | None = None
    mean_iou: float | None = None


class LabelSetMetrics(ClassifierFigures):
    """What stored labels say of the source they were made from, at T = 1.

    outside_kept: share of the hard labels that a topk set did not keep; for these, NLL and
    calibration rest on how it spreads its tail. mean_iou: as in `StudentMetrics`.
    """

    folder: Path
    identity_sha256: str
    rows: int
    outside_kept: float
    bins: tuple[Bin, ...]
    mean_iou: float | None = None


class RunMetrics(Record):
    """One run's figures over its seeds; `ClassifierFigures` says what each is.

    churn: between two trainings that differ in nothing but the seed, a mean over all pairs; null
    for a single one. projection: of the first seed; null where its last layer is not linear, or
    there are fewer than three classes. mean_iou: as in `StudentMetrics`.
    """

    run: str
    seeds: tuple[int, ...]
    churn: PairFigures | None = None
    by_class: ClassShares | None = None
    projection: Projection | None = None
    mean_iou: Spread | None = None
    accuracy: Spread
    top5_accuracy: Spread
    nll: Spread
    brier: Spread
    ece: Spread
    mce: Spread
    classwise_ece: Spread
    adaptive_ece: Spread
    aurc: Spread
    excess_aurc: Spread
    entropy: Spread


class EvaluateReport(Record):
    """What 'evaluate' measured: every student, the runs over their seeds, and the label set.

    rejects: samples of the source that the label set leaves out, which nobody was measured on.
    """

    output: Path
    source: GivenLocation
    rows: int
    classes: tuple[str, ...]
    students: tuple[StudentMetrics, ...]
    runs: tuple[RunMetrics, ...]
    label_set: LabelSetMetrics | None = None
    rejects: int = 0


class CalibrateReport(Record):
    """What 'calibrate' found, and the content of calibration.json.

    temperature: divides the teacher's logits. fitted_rows, measured_rows: those with a hard label,
    of sequences positions. before, after: figures of the measured rows at T = 1 and at the fitted
    T, with their reliability diagrams. outside_kept: share of the labels that a topk set did not
    keep.
    """

    output: Path
    labels_identity_sha256: str
    teacher_sha256: tuple[str, ...]
    temperature: float
    fitted_rows: int
    measured_rows: int
    outside_kept: float
    before: ClassifierFigures
    after: ClassifierFigures
    bins_before: tuple[Bin, ...]
    bins_after: tuple[Bin, ...]


class PageReport(Record):
    """What 'report' wrote, and the figures on the page that it computed or was given by DVC.

    soft_targets: of the label set, null without one. projection: of the teacher, null without
    stored features. experiments: all that DVC listed, in its order.
    """

    output: Path
    bytes: int
    students: int
    samples: int
    soft_targets: SoftTargetProfile | None = None
    projection: Projection | None = None
    experiments: tuple[Experiment, ...] = ()
