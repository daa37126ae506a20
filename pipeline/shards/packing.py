"""What all shards of one label set share: identity, layout and codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from softlabel.pipeline.codecs.codec import Codec
from softlabel.pipeline.codecs.factored import Head, read_head
from softlabel.pipeline.codecs.make import make_codec
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import HEAD_FILE, Identity, Layout, Manifest, Plan


@dataclass(frozen=True)
class Packing:
    """How rows of one label set are stored; `made_by` is the verb that would make it again."""

    identity: Identity
    layout: Layout
    codec: Codec
    made_by: str = "infer"

    @cached_property
    def identity_sha256(self) -> str:
        """The identity's digest, made once: it takes long where the source has many shards."""
        return self.identity.digest()


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

    Raises DataError where the head or the class prior is missing or damaged.
    """
    identity = described.identity
    if identity.tail == "prior" and len(described.prior or ()) != len(identity.classes):
        raise DataError(
            f"{folder}: its class prior is missing or damaged; remove the folder and run "
            f"'{described.making.command}' again"
        )
    head = None
    if identity.codec == "factored":
        head = read_head(folder / HEAD_FILE, identity.head_sha256, described.making.verb)
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
