"""What each stage returns and `--json` prints: one record a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from softlabel.schemas.augment import Augmentation
from softlabel.schemas.labelset import CodecName, Derivation, Ensemble, Layout, Making
from softlabel.schemas.model import Record
from softlabel.schemas.soft_targets import SmoothingSigns, SoftTargetProfile, TargetsAtTemperature
from softlabel.schemas.teacher import Framing, Interpolation


class PrepareReport(Record):
    """What 'prepare' wrote: rows a part, class names, and height, width, channels."""

    output: Path
    rows: dict[str, int]
    classes: tuple[str, ...]
    shape: tuple[int, int, int]


class ExportReport(Record):
    """What 'export' wrote, and how far ONNX Runtime is from PyTorch, per batch size.

    max_difference: the largest |difference| of two logits over all batch sizes checked.
    """

    output: Path
    bytes: int
    sha256: str
    parameters: int
    opset: int
    checked_batch_sizes: tuple[int, ...]
    checked_on: str
    max_difference: float
    allowed_difference: float


class InferReport(Record):
    """What 'infer' wrote, how fast, and what bounded it. Seconds are wall time.

    busy: seconds that each step worked; bound: the step that worked longest.
    teacher_accuracy: share of rows with a hard label whose top-1 equals it, null without any.
    limit: of how many samples a partial set is, null for a whole one. rejects: samples of the
    source that could not be used and were left out. views: label rows a sample, which all rows
    here are counted by. partition: which share of the shards was made, null for all.
    shards_missing: those of other shares that do not stand yet; where there are any, rows, shards,
    bytes and what was measured are those of this share.
    """

    output: Path
    identity_sha256: str
    limit: int | None = None
    views: int = 1
    rows: int
    rows_written: int
    rejects: int = 0
    partition: str | None = None
    shards_missing: int = 0
    shards: int
    shards_kept: int
    bytes: int
    provider: str
    device: str
    seconds: float
    samples_per_second: float
    busy: dict[str, float]
    bound: str
    teacher_accuracy: float | None
    kl_mean: dict[str, float]


class InferPreview(Record):
    """What 'infer' would do, of `--dry-run`: nothing was written, the teacher did not run.

    rows: label rows, `views` a sample.
    """

    output: Path
    identity_sha256: str
    codec: CodecName
    layout: Layout
    limit: int | None
    views: int = 1
    rows: int
    rows_to_write: int
    shards_to_write: int
    shards_kept: int
    provider: str
    device: str


class Loss(Record):
    """A loss over the sampled rows at one temperature: its mean and its 99th percentile."""

    mean: float
    p99: float


class CodecTrial(Record):
    """What one codec would make of a source, measured on a sample of it.

    bytes_per_sample: of a label row in a shard as written. bytes: of the whole label set. kl: to
    the teacher's float32 logits, in nats, and tv: total variation, by temperature. top1_agreement:
    share of rows whose arg-max is the teacher's. samples_per_second: encoded. seconds: of the whole
    run, reading, teacher, encoding and writing one after the other. fits: the mean KL is within
    max_kl at every temperature.
    """

    name: str
    codec: CodecName
    k: int | None
    tail: Literal["uniform", "prior"] | None
    bytes_per_sample: float
    bytes: int
    kl: dict[str, Loss]
    tv: dict[str, Loss]
    top1_agreement: float
    samples_per_second: float
    seconds: float
    fits: bool


class CodecPlanReport(Record):
    """What 'plan' measured. rows: of the label set, `views` a sample; sampled: those tried.

    recommended: name of the trial with the fewest bytes that fits, and command: the 'infer' that
    does it; null where none fits. notes: what else to know, a line each.
    """

    teacher: tuple[Path, ...]
    source: Path
    views: int = 1
    rows: int
    sampled: int
    classes: int
    temperatures: tuple[float, ...]
    max_kl: float
    provider: str
    device: str
    teacher_samples_per_second: float
    trials: tuple[CodecTrial, ...]
    recommended: str | None
    command: str | None
    notes: tuple[str, ...]


class EpochRecord(Record):
    """One epoch: means over its samples. Terms that the loss does not have are null.

    soft_kl is the soft term's cross-entropy less the teacher's entropy, in nats at temperature T.
    unseen: where the epoch's predictions were published, the samples that it did not see.
    """

    epoch: int
    learning_rate: float
    loss: float
    hard: float
    soft: float | None = None
    soft_kl: float | None = None
    hint: float | None = None
    train_accuracy: float
    validation_accuracy: float | None = None
    validation_nll: float | None = None
    unseen: int | None = None


class TrainReport(Record):
    """What 'train-student' wrote: the card's folder, the curves and the last epoch's figures.

    samples: of an epoch. rejects: those of the source that the label set leaves out.
    best_epoch: the one whose weights were published where patience chose it, else null.
    peers: what it wrote of the other members, where several taught each other. settings: those that
    were given, in the parameter file or as flags. labels_identity_sha256, labels_mean: as in
    `StudentCard`.
    """

    output: Path
    run: str
    seed: int
    loss: str
    parameters: int
    samples: int
    rejects: int = 0
    steps: int
    device: str
    seconds: float
    labels_identity_sha256: str | None
    labels_mean: Derivation | None = None
    settings: dict[str, object] = Field(default_factory=dict)
    best_epoch: int | None = None
    history: tuple[EpochRecord, ...]
    peers: tuple[TrainReport, ...] = ()


class StudentCard(Record):
    """student.json: all that is needed to build the student again and to feed it.

    label_bytes: bytes a row of the label set that it learned from, null without one.
    labels_mean: where that was the mean of several, which and how; labels_identity_sha256 is then
    what `merge --codec dense-f32` would give them.
    """

    format_version: int = 1
    run: str
    seed: int
    model: str
    model_args: dict[str, object]
    weights: str
    weights_sha256: str
    classes: tuple[str, ...]
    height: int
    width: int
    channels: int
    resize: int | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    parameters: int
    loss: str
    targets: str = "stored"
    temperature: float | None
    soft_weight: float | None
    label_smoothing: float
    labels_identity_sha256: str | None
    labels_mean: Derivation | None = None
    label_bytes: float | None = None

    @property
    def framing(self) -> Framing:
        """How encoded pictures come to the student's size."""
        return Framing.of(self)


class Bin(Record):
    """One bin of a reliability diagram: confidences in (low, high]; means are null when empty."""

    low: float
    high: float
    rows: int
    confidence: float | None
    accuracy: float | None


class ClassifierFigures(Record):
    """How right and how well calibrated a classifier is.

    nll, entropy: means in nats; brier: mean over rows of the squared distance to the one-hot label
    (Brier 1950). ece, mce: expected and largest gap of accuracy and confidence over equal-width
    bins (Guo et al. 2017, eq. 3 and 5); classwise_ece: the mean over classes of the gap of each
    class's probability and frequency (Kull et al. 2019, section 2); adaptive_ece: over bins of
    equal mass (Nixon et al. 2019). aurc: area under the risk-coverage curve (Geifman & El-Yaniv
    2017); excess_aurc: less that of the best order (Geifman et al. 2019).
    """

    accuracy: float
    top5_accuracy: float
    nll: float
    brier: float
    ece: float
    mce: float
    classwise_ece: float
    adaptive_ece: float
    aurc: float
    excess_aurc: float
    entropy: float


class PairFigures(Record):
    """How far two models are apart at T = 1, means over the same rows.

    agreement: share of rows with the same top-1. kl: KL(first || second) in nats.
    total_variation: `sum |p - q| / 2`, the share of probability that changed its class.
    """

    agreement: float
    kl: float
    total_variation: float


class ClassShares(Record):
    """Shares by class of the hard label, all seeds together; null where a class has no sample.

    rows: samples of each, seeds counted one by one. agreement: with the label set's top-1, null
    without one.
    """

    rows: tuple[int, ...]
    accuracy: tuple[float | None, ...]
    agreement: tuple[float | None, ...] | None


class Projection(Record):
    """Samples of three classes on the plane through these classes' templates (Müller et al. 2019).

    labels: which of the three each sample is of, 0 to 2. spread: the root mean square distance of a
    sample to its class's centre over the mean distance of the centres; null where not all three
    have samples.
    """

    classes: tuple[str, str, str]
    labels: tuple[int, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: float | None


class StudentMetrics(ClassifierFigures):
    """One model on one source. against_labels: the label set is the first of the pair."""

    name: str
    run: str
    seed: int
    rows: int
    parameters: int
    bins: tuple[Bin, ...]
    against_labels: PairFigures | None = None


class LabelSetMetrics(ClassifierFigures):
    """What stored labels say of the source they were made from, at T = 1.

    outside_kept: share of the hard labels that a topk set did not keep; for these, NLL and
    calibration rest on how it spreads its tail.
    """

    folder: Path
    identity_sha256: str
    rows: int
    outside_kept: float
    bins: tuple[Bin, ...]


class Problem(Record):
    """One thing that is wrong with a label set; shard is null where no single one is at fault."""

    kind: str
    shard: str | None
    message: str


class Replay(Record):
    """Samples run through the teacher again and compared with their stored labels.

    kl_mean: mean KL at T = 1 of the stored labels to the teacher, in nats; kl_limit: the largest
    that passes; probability_difference: the largest of any class of any row. shifted_kl_mean: the
    same with the labels shifted by one row, the negative control, which must not pass. Of stored
    features, null without any: the largest difference as a part of the largest feature, the same
    shifted by one row.
    """

    rows: int
    kl_mean: float
    kl_limit: float
    probability_difference: float
    shifted_kl_mean: float
    features_difference: float | None = None
    shifted_features_difference: float | None = None


class VerifyReport(Record):
    """What 'verify' found; `problems` is empty where the label set is sound.

    making: which command makes the set, and redoes what was removed. not_replayed: why the given
    teacher was not run. rejects: samples of the source that are left out, and may be missing.
    """

    labels: Path
    making: Making
    shards: int
    rows: int
    rejects: int = 0
    checks: tuple[str, ...]
    problems: tuple[Problem, ...]
    replay: Replay | None
    not_replayed: str | None
    removed: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """1 where anything is wrong."""
        return 1 if self.problems else 0


class PositionView(Record):
    """One distribution as people read it: the likeliest classes, their soft targets at each T."""

    label: str | None
    likeliest: tuple[str, ...]
    targets: dict[str, tuple[float, ...]]


class RowView(Record):
    """One label row as people read it.

    view: where samples have several, else null. length: of a sequence, else null. positions: the
    row's distribution; of a sequence the first ones.
    """

    key: str
    view: int | None
    length: int | None
    positions: tuple[PositionView, ...]


class InspectReport(Record):
    """What a label set holds. entropy: mean entropy of the soft targets in nats, by temperature.

    ensemble: how several teachers made it in one pass, else null. making: the command that made
    it. derived: from which sets it came, null where teachers made it. augment: what made its views,
    null where it is of plain pictures; seed: of these. positions: those of all rows where rows are
    sequences, else null. features: width of the stored inner output, null without one. reference:
    what kl_mean is the KL to. labelled: rows (positions) with a hard label. label_accuracy: share
    of these whose top-1 equals it, null without any. targets: the soft targets at each recorded
    temperature. signs: of teachers trained with label smoothing, null where the set cannot tell.
    rejects: samples of the source that are left out.
    """

    labels: Path
    identity_sha256: str
    teacher_sha256: tuple[str, ...]
    ensemble: Ensemble | None
    making: Making
    derived: Derivation | None
    codec: str
    layout: Layout
    aligned: bool
    rows: int
    rejects: int = 0
    views: int
    augment: Augmentation | None
    seed: int
    positions: int | None
    features: int | None
    shards: int
    bytes: int
    bytes_per_row: float
    classes: tuple[str, ...]
    temperatures: tuple[float, ...]
    reference: str
    kl_mean: dict[str, float]
    entropy: dict[str, float]
    targets: tuple[TargetsAtTemperature, ...]
    signs: SmoothingSigns | None
    labelled: int
    label_accuracy: float | None
    row_views: tuple[RowView, ...]


class ConvertReport(Record):
    """What 'convert' wrote. Seconds are wall time; bytes are those of the shards.

    kl_mean: mean KL to `reference` by temperature, null where nothing was packed again.
    """

    output: Path
    identity_sha256: str
    codec: str
    layout: str
    rows: int
    rows_written: int
    shards: int
    shards_kept: int
    bytes_before: int
    bytes: int
    seconds: float
    reference: str
    kl_mean: dict[str, float] | None


class MergeReport(Record):
    """What 'merge' wrote; the weights are those after normalising. Seconds are wall time.

    kl_mean: mean KL of what is stored to the exact mean, by temperature.
    """

    output: Path
    identity_sha256: str
    codec: str
    rows: int
    rows_written: int
    shards: int
    shards_kept: int
    members: int
    weights: tuple[float, ...]
    bytes: int
    seconds: float
    kl_mean: dict[str, float]


class CalibrateReport(Record):
    """What 'calibrate' found, and the content of calibration.json.

    temperature: divides the teacher's logits. before, after: figures of the measured rows at T = 1
    and at the fitted T, with their reliability diagrams. outside_kept: share of the labels that a
    topk set did not keep.
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


class Spread(Record):
    """Mean over seeds and its standard error; the error is null for a single seed."""

    mean: float
    standard_error: float | None


class RunMetrics(Record):
    """One run's figures over its seeds; `ClassifierFigures` says what each is.

    churn: between two trainings that differ in nothing but the seed, a mean over all pairs; null
    for a single one. projection: of the first seed; null where its last layer is not linear, or
    there are fewer than three classes.
    """

    run: str
    seeds: tuple[int, ...]
    churn: PairFigures | None = None
    by_class: ClassShares | None = None
    projection: Projection | None = None
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
    """What 'evaluate' measured: every student, the runs over their seeds, and the label set."""

    output: Path
    source: Path
    rows: int
    classes: tuple[str, ...]
    students: tuple[StudentMetrics, ...]
    runs: tuple[RunMetrics, ...]
    label_set: LabelSetMetrics | None = None


class PageReport(Record):
    """What 'report' wrote, and the figures on the page that it computed itself.

    soft_targets: of the label set, null without one. projection: of the teacher, null without a
    factored set.
    """

    output: Path
    bytes: int
    students: int
    samples: int
    soft_targets: SoftTargetProfile | None = None
    projection: Projection | None = None
