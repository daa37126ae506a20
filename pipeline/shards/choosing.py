"""Some classes of a block of label rows: softmax over those alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from softlabel.pipeline.codecs.codec import Codec, encode_rows
from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.codecs.numerics import Floats
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.schemas.errors import DataError


def choose_classes(block: LabelBlock, classes: Sequence[int], codec: Codec) -> LabelBlock:
    """Softmax over some classes: their logits under a new maximum, with new log-sums and top-1.

    A hard label of a class that was left out becomes unknown. Raises DataError, naming the key,
    where all of a row's chosen classes are masked or the codec cannot hold a row.
    """
    chosen = np.asarray(classes)
    full = block.logits()
    features = None
    if isinstance(codec, Factored):
        features = block.payload["features"].astype(np.float32)
    with naming_the_key(block, "choose other classes, or take another codec"):
        rows = encode_rows(codec, np.ascontiguousarray(full[:, chosen]), features)
    return replace(
        block,
        labels=_renumbered(block.labels, chosen, full.shape[1]),
        top1=rows.top1,
        shift=shifted(block.shift, rows.shift),
        payload=rows.columns,
        codec=codec,
    )


@contextlib.contextmanager
def naming_the_key(block: LabelBlock, remedy: str = "take another codec") -> Iterator[None]:
    """Turn a codec's refusal of a position of `block` into a DataError that names its key."""
    try:
        yield
    except ValueError as error:
        if len(error.args) != 2:
            raise
        reason, position = error.args
        row = int(np.searchsorted(block.starts(), position, side="right")) - 1
        raise DataError(f"{reason} for key {block.keys[row].as_py()!r}; {remedy}") from error


def shifted(shift: Floats, more: Floats) -> Floats:
    """The raw logit of the new maximum; the very bits where it is the old one."""
    return np.where(more == 0, shift, shift + more)


def _renumbered(
    labels: pa.Int32Array, chosen: np.ndarray[tuple[int], np.dtype[np.int64]], classes: int
) -> pa.Int32Array:
    numbers = np.full(classes + 1, -1, np.int32)
    numbers[chosen] = np.arange(len(chosen), dtype=np.int32)
    # The last entry is that of an unknown label, -1.
    renumbered = numbers[labels.fill_null(-1).to_numpy(zero_copy_only=False)]
    return pa.array(renumbered, pa.int32(), mask=renumbered < 0)
