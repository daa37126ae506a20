"""What 'prepare', 'export', 'plan' and 'infer' return."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from softlabel.schemas.labelset import CodecName, Layout
from softlabel.schemas.location import GivenLocation
from softlabel.schemas.model import Record


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
    source: GivenLocation
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
