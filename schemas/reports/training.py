"""What 'train-student' returns, epoch by epoch, and the card beside the student."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from softlabel.schemas.labelset import Derivation
from softlabel.schemas.model import Record
from softlabel.schemas.teacher import Grid, Interpolation, NumberInput, Preprocess, check_fed


class EpochRecord(Record):
    """One epoch: means over its samples, of sequences over their positions.

    Terms that the loss does not have are null, and train_accuracy where nothing has a hard label.
    soft_kl is the soft term's cross-entropy less the teacher's entropy, in nats at temperature T.
    unseen: where the epoch's predictions were published, the samples that it did not see.
    mutual_information: in nats, between training samples and the difference of two logits; what it
    rests on stands in the report.
    """

    epoch: int
    learning_rate: float
    loss: float
    hard: float
    soft: float | None = None
    soft_kl: float | None = None
    hint: float | None = None
    train_accuracy: float | None = None
    validation_accuracy: float | None = None
    validation_nll: float | None = None
    mutual_information: float | None = None
    unseen: int | None = None


class InformationBasis(Record):
    """What mutual information was estimated on: the first training samples of two classes.

    samples: of both together. draws: moved versions of each, by up to `shift` pixels either way.
    """

    classes: tuple[str, str]
    samples: int
    draws: int
    shift: float


class TrainReport(Record):
    """What 'train-student' wrote: the card's folder, the curves and the last epoch's figures.

    samples: of an epoch. rejects: those of the source that the label set leaves out.
    best_epoch: the one whose weights were published where patience chose it, else null.
    peers: what it wrote of the other members, where several taught each other. settings: those that
    were given, in the parameter file or as flags. labels_identity_sha256, labels_mean: as in
    `StudentCard`. information: what the epochs' mutual information rests on, null where it was not
    estimated.
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
    information: InformationBasis | None = None
    history: tuple[EpochRecord, ...]
    peers: tuple[TrainReport, ...] = ()


_OF_PICTURES = ("height", "width", "channels", "resize", "interpolation", "mean", "std")


class StudentCard(Record):
    """student.json: all that is needed to build the student again and to feed it.

    height to std: of pictures. inputs: of a student of sequences the columns that it is fed, in
    their place. grid: of a student of pictures' positions their height and width, else null.
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
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    inputs: tuple[NumberInput, ...] | None = None
    grid: Grid | None = None
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
    def preprocess(self) -> Preprocess | None:
        """How the student sees pictures; None where it takes none."""
        if self.inputs is not None:
            return None
        seen = {name: getattr(self, name) for name in _OF_PICTURES}
        return Preprocess.model_validate({**seen, "layout": "NHWC", "in_graph": True})

    @property
    def positions(self) -> bool:
        """Whether it speaks of each position of a sequence, or of a picture."""
        return self.inputs is not None or self.grid is not None

    @model_validator(mode="after")
    def _is_fed(self) -> StudentCard:
        check_fed(self)
        return self
