"""The records of a label set: identity, execution record, plan, receipt and manifest."""

from __future__ import annotations

import hashlib
import json
from typing import Final, Literal

from pydantic import Field, model_validator

from softlabel.schemas.augment import Augmentation
from softlabel.schemas.model import Record
from softlabel.schemas.teacher import Grid, NumberInput, OutputKind, Preprocess, check_fed

CodecName = Literal["dense-f32", "dense-f16", "dense-u8", "topk", "factored"]
Tail = Literal["uniform", "prior"]
# Parquet with packed or list columns; WebDataset tars of labels alone or with the source's members.
Layout = Literal["packed", "lists", "sidecar", "merged"]
# What stored labels are compared with.
Reference = Literal["float32 logits"] | CodecName

FORMAT_VERSION: Final = 1
PLAN_FILE = "plan.json"
MANIFEST_FILE = "labelset.json"
HEAD_FILE = "head.safetensors"
REJECTS_FILE = "rejects.jsonl"
FLOAT32: Final = "float32 logits"
SHARD_METADATA_KEY = b"softlabel"


def shard_file(name: str, layout: Layout) -> str:
    """The file of the shard `name` in a label set's folder."""
    return f"{name}.parquet" if layout in ("packed", "lists") else f"{name}.tar"


def canonical_json(record: Record) -> bytes:
    """The record as deterministic UTF-8 JSON: sorted keys, two-space indent, final newline.

    What is null is left out, so that a field added later changes no digest of a set without it.
    """
    document = record.model_dump(mode="json", exclude_none=True)
    return (json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def sha256_of(data: bytes) -> str:
    """SHA-256 of `data` in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class SourceFile(Record):
    """The fingerprint of one source shard, known before the run.

    digest: SHA-256 of the shard's rows where the shard states it in its own metadata.
    """

    name: str
    rows: int
    bytes: int
    digest: str | None = None


class Derivation(Record):
    """How labels came out of other labels, where that changed what they say or for which keys.

    parents: identities of the sets they came from. codecs: what the labels were packed with
    before, oldest first. keys_sha256: of the list of keys that a subset keeps, a key a line.
    class_ids: the parent's classes that were kept. weights, mean and temperature: of `merge`;
    temperature only where probabilities were averaged.
    """

    verb: Literal["convert", "merge"]
    parents: tuple[str, ...]
    codecs: tuple[CodecName, ...]
    keys_sha256: str | None = None
    class_ids: tuple[int, ...] | None = None
    weights: tuple[float, ...] = ()
    mean: Literal["logits", "probs"] | None = None
    temperature: float | None = None


class Member(Record):
    """One teacher of an ensemble; fields as in `Identity`.

    class_map: for each class of the first member, this one's output column; null when in order.
    """

    teacher_sha256: tuple[str, ...]
    preprocess: Preprocess | None = None
    inputs: tuple[NumberInput, ...] | None = None
    class_map: tuple[int, ...] | None = None
    output: str
    output_kind: OutputKind
    probability_floor: float | None = None


class Ensemble(Record):
    """Teachers whose mean was stored; weights sum to 1.

    temperature: of the probabilities, where these were averaged, else null.
    """

    members: tuple[Member, ...]
    weights: tuple[float, ...]
    mean: Literal["logits", "probs"]
    temperature: float | None = None


class Identity(Record):
    """All that decides a label's value; two sets with equal identities hold equal labels.

    teacher_sha256: of the teacher's file and of each with its external data; of all teachers of an
    ensemble, whose first one's are preprocess, output, output_kind and probability_floor, and whose
    outputs class_map numbers. ensemble: null for a single teacher. inputs: the named numbers that
    teachers of tables take, in place of `preprocess`. Of a label memory, teacher_sha256 is of the
    training's settings.
    probability_floor: what smaller probabilities were taken for, where the teacher gave those.
    class_map: for each of `classes`, the teacher's output column; null when in order. views: label
    rows a sample. seed, augment: what the views are drawn by; null without augmentation. k: classes
    kept a row by the codec `topk`, null for the others. tail: how `topk` spreads the mass of the
    classes it left out. head_sha256: of the head that `factored` multiplies by. features: width
    of the stored inner output, null without one; features_output: its name in the teacher's graph.
    positions: a row is a sequence of positions. grid: height and width of those of a picture, which
    stand row by row; null where samples are none.
    epoch: of a label memory, the epoch from 0 at whose end it was published; with span, from 0, the
    one before whose span it was said.
    """

    format_version: Literal[1] = FORMAT_VERSION
    teacher_sha256: tuple[str, ...]
    preprocess: Preprocess | None = None
    inputs: tuple[NumberInput, ...] | None = None
    classes: tuple[str, ...]
    class_map: tuple[int, ...] | None = None
    output: str
    output_kind: OutputKind
    probability_floor: float | None = None
    ensemble: Ensemble | None = None
    source: tuple[SourceFile, ...]
    views: int = 1
    seed: int = 0
    augment: Augmentation | None = None
    temperatures: tuple[float, ...]
    codec: CodecName
    k: int | None = None
    tail: Tail | None = None
    head_sha256: str | None = None
    features: int | None = None
    features_output: str | None = None
    positions: bool = False
    grid: Grid | None = None
    epoch: int | None = None
    span: int | None = None
    derived: Derivation | None = None

    @model_validator(mode="after")
    def _is_fed(self) -> Identity:
        check_fed(self)
        return self

    @model_validator(mode="after")
    def _features_stand_once(self) -> Identity:
        if self.codec == "factored" and self.features is not None:
            raise ValueError("codec factored stores features already; features must be null")
        return self

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of this identity."""
        return sha256_of(canonical_json(self))


class ExecutionRecord(Record):
    """What may move a label in its last bits: where and how the teacher ran.

    options: of the provider, where they were told. packing: who packed the labels on the device,
    null where the host did. pillow: the version that decoded the pictures, null where they were
    stored as arrays.
    """

    provider: str
    device: str
    precision: str
    batch_size: int
    threads: int
    onnxruntime: str
    cuda: str | None = None
    tensorrt: str | None = None
    options: dict[str, str] | None = None
    packing: str | None = None
    pillow: str | None = None


class Segment(Record):
    """A row range of one source shard."""

    source: str
    first: int = Field(ge=0)
    rows: int = Field(gt=0)


class ShardPlan(Record):
    """What goes into one label shard, in order.

    segments: rows of the source where the set is aligned with it, else empty. rows: label rows,
    which are `views` times as many as those of the segments.
    """

    name: str
    rows: int
    segments: tuple[Segment, ...]


class Making(Record):
    """Which command made a set, and how to type it again; paths stay out of it."""

    verb: Literal["infer", "convert", "merge", "train-student"]
    command: str


INFERRED = Making(verb="infer", command="softlabel infer")


class Plan(Record):
    """plan.json: published before the first batch; says what the set will be.

    execution: null where no teacher ran. prior, limit: see the manifest.
    """

    format_version: Literal[1] = FORMAT_VERSION
    identity: Identity
    making: Making = INFERRED
    execution: ExecutionRecord | None = None
    layout: Layout = "packed"
    aligned: bool = True
    limit: int | None = None
    prior: tuple[float, ...] | None = None
    shards: tuple[ShardPlan, ...]


class SourceDigest(Record):
    """What a source shard was while its rows were read."""

    name: str
    bytes: int
    sha256: str


class Fidelity(Record):
    """KL of the stored labels to the reference, summed over `rows` rows, per temperature."""

    rows: int
    kl_sum: tuple[float, ...]


class Statistics(Record):
    """Counts over one shard: rows with a hard label, and those where the teacher agrees with it.

    Of a sequence every position counts.
    """

    labelled: int
    correct: int


class Reject(Record):
    """A sample that was left out: its key, its row in a source shard, and why."""

    key: str
    source: str
    row: int = Field(ge=0)
    reason: str


class Receipt(Record):
    """part-NNNNN.json: says that its shard is whole. A shard without one does not count.

    rejects: samples of the shard's source rows that were left out, null where there are none.
    """

    format_version: Literal[1] = FORMAT_VERSION
    shard: str
    identity_sha256: str
    rows: int
    bytes: int
    sha256: str
    source: tuple[SourceDigest, ...]
    statistics: Statistics
    fidelity: Fidelity
    rejects: tuple[Reject, ...] | None = None


class Rejects(Record):
    """How many samples rejects.jsonl lists, and the SHA-256 of its bytes."""

    samples: int = Field(gt=0)
    sha256: str


class ManifestShard(Record):
    """One line of the manifest: a shard, its receipt's digest and the rows it holds.

    segments: the source rows it labels, empty where the set is not aligned with its source.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    receipt_sha256: str
    segments: tuple[Segment, ...]


class MeasuredFidelity(Record):
    """Mean KL to the reference at one temperature, in nats, over `rows` rows."""

    temperature: float
    kl_mean: float
    rows: int


class Manifest(Record):
    """labelset.json: written last; the set is complete when it exists.

    limit: the set is of the first so many samples of its source; null where it is of all. prior:
    for `topk` with the tail `prior`, a logit a class; the tail is spread by their softmax over the
    classes left out. reference: what fidelity is measured against: the teacher's float32 logits, or
    the labels in another codec that these were converted from. rejects: samples of the source that
    were left out, and stand in no shard's segments; null where there are none.
    """

    format_version: Literal[1] = FORMAT_VERSION
    identity_sha256: str
    identity: Identity
    making: Making = INFERRED
    layout: Layout = "packed"
    aligned: bool = True
    limit: int | None = None
    prior: tuple[float, ...] | None = None
    rows: int
    rejects: Rejects | None = None
    statistics: Statistics
    reference: Reference = FLOAT32
    fidelity: tuple[MeasuredFidelity, ...]
    shards: tuple[ManifestShard, ...]
