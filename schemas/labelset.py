"""The records of a label set: identity, execution record, plan, receipt and manifest."""

from __future__ import annotations

import hashlib
import json
from typing import Final, Literal

from pydantic import Field

from softlabel.schemas.model import Record
from softlabel.schemas.teacher import Preprocess

CodecName = Literal["dense-f32", "dense-f16", "dense-u8", "topk"]

FORMAT_VERSION: Final = 1
PLAN_FILE = "plan.json"
MANIFEST_FILE = "labelset.json"
SHARD_METADATA_KEY = b"softlabel"


def canonical_json(record: Record) -> bytes:
    """The record as deterministic UTF-8 JSON: sorted keys, two-space indent, final newline."""
    document = record.model_dump(mode="json")
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


class Identity(Record):
    """All that decides a label's value; two sets with equal identities hold equal labels.

    class_map: for each of `classes`, the teacher's output column; null when in order. k: classes
    kept a row by the codec `topk`, null for the others.
    """

    format_version: Literal[1] = FORMAT_VERSION
    teacher_sha256: tuple[str, ...]
    preprocess: Preprocess
    classes: tuple[str, ...]
    class_map: tuple[int, ...] | None
    output: str
    output_kind: Literal["logits"]
    source: tuple[SourceFile, ...]
    views: int = 1
    seed: int = 0
    temperatures: tuple[float, ...]
    codec: CodecName
    k: int | None = None

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of this identity."""
        return sha256_of(canonical_json(self))


class ExecutionRecord(Record):
    """What may move a label in its last bits: where and how the teacher ran."""

    provider: str
    device: str
    precision: str
    batch_size: int
    threads: int
    onnxruntime: str
    cuda: str | None = None


class Segment(Record):
    """A row range of one source shard."""

    source: str
    first: int = Field(ge=0)
    rows: int = Field(gt=0)


class ShardPlan(Record):
    """Which source rows go into one label shard, in order."""

    name: str
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        """Rows of the whole shard."""
        return sum(segment.rows for segment in self.segments)


class Plan(Record):
    """plan.json: published before the first batch; says what the set will be."""

    format_version: Literal[1] = FORMAT_VERSION
    identity: Identity
    execution: ExecutionRecord
    shards: tuple[ShardPlan, ...]


class SourceDigest(Record):
    """What a source shard was while its rows were read."""

    name: str
    bytes: int
    sha256: str


class Fidelity(Record):
    """KL of the stored labels to the float32 logits, summed over `rows` rows, per temperature."""

    rows: int
    kl_sum: tuple[float, ...]


class Statistics(Record):
    """Counts over one shard: rows with a hard label, and those where the teacher agrees with it."""

    labelled: int
    correct: int


class Receipt(Record):
    """part-NNNNN.json: says that its shard is whole. A shard without one does not count."""

    format_version: Literal[1] = FORMAT_VERSION
    shard: str
    identity_sha256: str
    rows: int
    bytes: int
    sha256: str
    source: tuple[SourceDigest, ...]
    statistics: Statistics
    fidelity: Fidelity


class ManifestShard(Record):
    """One line of the manifest: a shard, its receipt's digest and the rows it holds."""

    name: str
    rows: int
    bytes: int
    sha256: str
    receipt_sha256: str
    segments: tuple[Segment, ...]


class MeasuredFidelity(Record):
    """Mean KL to the float32 logits at one temperature, in nats, over `rows` rows."""

    temperature: float
    kl_mean: float
    rows: int


class Manifest(Record):
    """labelset.json: written last; the set is complete when it exists."""

    format_version: Literal[1] = FORMAT_VERSION
    identity_sha256: str
    identity: Identity
    layout: Literal["packed"] = "packed"
    aligned: bool = True
    rows: int
    statistics: Statistics
    fidelity: tuple[MeasuredFidelity, ...]
    shards: tuple[ManifestShard, ...]
