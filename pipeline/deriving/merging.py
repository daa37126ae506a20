"""The mean of several label sets of one source: blocks of each, row by row, into one distribution.

Members are label sets in the order given; N rows or positions, C classes in the first member's
order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.classes import class_map
from softlabel.pipeline.codecs.codec import Codec, encode_rows
from softlabel.pipeline.codecs.numerics import Floats
from softlabel.pipeline.labelset.keys import few
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.labelset.portions import RowReader
from softlabel.pipeline.mean import Doubles, Mean, narrowed
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.shards.choosing import naming_the_key
from softlabel.schemas.errors import DataError

Values = npt.NDArray[Any]
# Enough for what tells one set of labels from another: same samples, same rows of each.
ALIKE = ("source", "views", "seed", "augment", "positions", "grid", "temperatures")


def mean_of(mean: Mean, members: Sequence[tuple[Doubles, Doubles]]) -> tuple[Floats, Floats]:
    """Shifted logits `[N, C]` and shift `[N]` of each member to those of their mean.

    A row in which nothing is left has only -inf.
    """
    d = mean.logits([logits for logits, _ in members])
    if mean.temperature is None:
        shift = mean.sum([shift for _, shift in members])
    else:
        shift = np.zeros(len(d))
    highest = d.max(axis=1)
    highest[np.isneginf(highest)] = 0
    return narrowed(d - highest[:, None]), (shift + highest).astype(np.float32)


class Members:
    """Label sets of the same samples, read side by side in the first one's order.

    Raises DataError where they are of different sources, classes or shapes, or keep no full logits.
    """

    def __init__(self, sets: Sequence[LabelSet]) -> None:
        check_members(sets)
        first, *others = sets
        self.sets = tuple(sets)
        self._first = RowReader(first)
        self._others = [_Follower(first, other) for other in others]

    def read(self, start: int, stop: int) -> Iterator[list[LabelBlock]]:
        """Rows `start` to `stop` of the first member, with the same keys' rows of each other."""
        for block in self._first.read(start, stop):
            yield [block, *(other.rows_of(block, start) for other in self._others)]
            start += len(block)

    def logits(self, blocks: Sequence[LabelBlock]) -> list[tuple[Doubles, Doubles]]:
        """Shifted logits in the first member's class order, and shift, of each block."""
        orders = [None, *(other.order for other in self._others)]
        return [
            (_ordered(block.logits(), order).astype(np.float64), block.shift.astype(np.float64))
            for block, order in zip(blocks, orders, strict=True)
        ]


def check_members(sets: Sequence[LabelSet]) -> None:
    """Raise DataError where the sets are no labels of the same samples, or lack full logits."""
    first, *others = sets
    for labels in sets:
        _check_full_logits(labels)
    for other in others:
        _check_alike(first, other)


def class_order(labels: LabelSet, first: LabelSet) -> npt.NDArray[np.int64] | None:
    """Where the classes of `first` stand in `labels`, `[C]`; None where the orders agree.

    Raises DataError where the classes differ.
    """
    names = (f"label set {labels.folder}", f"label set {first.folder}")
    order = class_map(labels.classes, first.classes, names)
    return None if order is None else np.asarray(order)


def merge_blocks(block: LabelBlock, d: Floats, shift: Floats, codec: Codec) -> LabelBlock:
    """The first member's rows with the mean's logits d `[N, C]` and shift `[N]`, in `codec`.

    Raises DataError, naming the key, for a row without any class left, or that `codec` refuses.
    """
    with naming_the_key(block, "take another codec or mean"):
        rows = encode_rows(codec, d)
    return replace(
        block, top1=rows.top1, shift=shift, payload=rows.columns, codec=codec, features=None
    )


class _Follower:
    """A member read by the keys of the first: in its own order for as long as that is the same."""

    def __init__(self, first: LabelSet, labels: LabelSet) -> None:
        self._labels = labels
        self._reader: RowReader | None = RowReader(labels)
        self.order = class_order(labels, first)

    def rows_of(self, block: LabelBlock, start: int) -> LabelBlock:
        """The rows of the keys of `block`, which begins at row `start` of the first member."""
        if self._reader is not None:
            own = concat_blocks(list(self._reader.read(start, start + len(block))))
            if _same_rows(own, block):
                return own
            self._reader = None
        view = 0 if block.views is None else block.views
        found = self._labels.lookup(block.keys, view)
        if not _same_rows(found, block):
            raise DataError(
                f"{self._labels.folder}: has sequences of other lengths than the first member; "
                "label the same source with both teachers"
            )
        return found


def _same_rows(one: LabelBlock, other: LabelBlock) -> bool:
    if not one.keys.equals(other.keys):
        return False
    if one.views is not None and not np.array_equal(one.views, cast("Values", other.views)):
        return False
    return one.lengths is None or np.array_equal(one.lengths, cast("Values", other.lengths))


def _check_full_logits(labels: LabelSet) -> None:
    identity = labels.manifest.identity
    if identity.codec == "topk":
        raise DataError(
            f"{labels.folder}: topk kept {identity.k} of {len(identity.classes)} classes a row, a "
            "mean needs all of them; infer again with --codec dense-f16"
        )


def _check_alike(first: LabelSet, other: LabelSet) -> None:
    one, two = first.manifest.identity, other.manifest.identity
    different = [name for name in ALIKE if getattr(one, name) != getattr(two, name)]
    if different:
        raise DataError(
            f"{other.folder}: differs from {first.folder} in {', '.join(different)}; only labels "
            "of the same samples can be averaged, label one source with each teacher"
        )
    subset = any(item.derived and item.derived.keys_sha256 for item in (one, two))
    gone = [{reject.key for reject in labels.rejects} for labels in (first, other)]
    odd = sorted(gone[0] ^ gone[1])
    if odd and not subset:
        raise DataError(
            f"{other.folder}: leaves out other samples than {first.folder} ({few(odd)} in one of "
            "them only); bring the larger one to the keys of the other with 'softlabel convert "
            "--keys'"
        )
    if len(first) != len(other):
        raise DataError(
            f"{other.folder}: has {len(other)} rows, {first.folder} has {len(first)}; bring the "
            "larger one to the keys of the other with 'softlabel convert --keys'"
        )


def _ordered(logits: Floats, order: npt.NDArray[np.int64] | None) -> Floats:
    return logits if order is None else logits[:, order]
