"""What 'verify', 'inspect', 'convert' and 'merge' return."""

from __future__ import annotations

from pathlib import Path

from softlabel.schemas.augment import Augmentation
from softlabel.schemas.labelset import Derivation, Ensemble, Layout, Making
from softlabel.schemas.model import Record
from softlabel.schemas.soft_targets import SmoothingSigns, TargetsAtTemperature
from softlabel.schemas.teacher import Grid


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
    sequences or pictures' positions, else null; grid: height and width of those of a picture, else
    null. features: width of the stored inner output, null without one. reference:
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
    grid: Grid | None = None
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
