"""What all shards of one label set share: identity, layout and codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softlabel.pipeline.codec import Codec
from softlabel.pipeline.codecs import make_codec
from softlabel.pipeline.factored import Head, read_head
from softlabel.schemas.labelset import HEAD_FILE, Identity, Layout, Manifest, Plan


@dataclass(frozen=True, slots=True)
class Packing:
    """How rows of one label set are stored; `made_by` is the verb that would make it again."""

    identity: Identity
    layout: Layout
    codec: Codec
    made_by: str = "infer"


def make_packing(
    identity: Identity,
    layout: Layout = "packed",
    *,
    prior: Sequence[float] | None = None,
    head: Head | None = None,
    made_by: str = "infer",
) -> Packing:
    """The packing of a set with this identity."""
    codec = make_codec(
        identity.codec,
        len(identity.classes),
        identity.temperatures,
        k=identity.k,
        prior=prior,
        head=head,
    )
    return Packing(identity, layout, codec, made_by)


def folder_packing(folder: Path, described: Plan | Manifest) -> Packing:
    """The packing of the set in `folder`, by its plan or manifest; reads the head if it has one.

    Raises DataError where the head is missing or damaged.
    """
    identity = described.identity
    head = None
    if identity.codec == "factored":
        head = read_head(folder / HEAD_FILE, identity.head_sha256)
    return make_packing(
        identity,
        described.layout,
        prior=described.prior,
        head=head,
        made_by=described.making.verb,
    )


def payload_bytes(codec: Codec) -> int:
    """Bytes that the codec's columns take for one row."""
    return sum(column.dtype.itemsize * (column.width or 1) for column in codec.columns)
