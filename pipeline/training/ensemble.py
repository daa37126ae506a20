"""Several stored label sets read as one: the mean of what their teachers said, nowhere stored.

What it says is what `merge --codec dense-f32` of the same sets would, and it has that identity.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.codecs.codec import Columns, Decoder
from softlabel.pipeline.codecs.numerics import Floats
from softlabel.pipeline.deriving.derivation import merged_identity
from softlabel.pipeline.deriving.merging import check_members, class_order, mean_of
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.mean import Mean
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.training.agreement import check_hard_labels, check_joined
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Reject, Segment


class LabelEnsemble:
    """The mean of what label sets of the same samples say, taken where a batch is decoded.

    sets: label sets or their folders; the first one's classes are taken, the others' matched by
    name. weights: of each set, in their order; default: all alike. temperature: T of the
    probabilities that are averaged; default: logits are. Rows wait as each set stores them. Reads
    belong to one thread.

    Raises ParameterError, and DataError where the sets are not of the same samples, leave out
    others, or keep no full logits.
    """

    def __init__(
        self,
        sets: Sequence[LabelSet | str | Path],
        weights: Sequence[float] = (),
        temperature: float | None = None,
    ) -> None:
        _check_settings(len(sets), weights, temperature)
        opened = [one if isinstance(one, LabelSet) else open_labelset(one) for one in sets]
        check_members(opened)
        self._sets = tuple(opened)
        mean = Mean.of_members(len(opened), weights, temperature)
        # Read beside the source where any can be: the others follow its keys.
        self._leader = next((one for one in opened if one.manifest.aligned), opened[0])
        self._decoder = _MeanDecoder(
            mean,
            tuple(labels.codec for labels in opened),
            tuple(class_order(labels, opened[0]) for labels in opened),
            " and ".join(str(labels.folder) for labels in opened),
        )
        self.folder = self._leader.folder
        identity = merged_identity(opened, mean, "dense-f32")
        self.manifest = self._leader.manifest.model_copy(
            update={"identity": identity, "identity_sha256": identity.digest()}
        )

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides a label's value."""
        return self.manifest.identity_sha256

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.manifest.identity.classes

    @property
    def views(self) -> int:
        """Label rows a sample has."""
        return self.manifest.identity.views

    @property
    def rejects(self) -> tuple[Reject, ...]:
        """The samples of the source that all sets leave out."""
        return self._leader.rejects

    @property
    def bytes_per_row(self) -> float:
        """What is stored of a row in all sets."""
        return sum(labels.bytes_per_row for labels in self._sets)

    def reopen(self) -> LabelEnsemble:
        """A second reader of the same sets, for another thread or process."""
        again = copy.copy(self)
        again._sets = tuple(labels.reopen() for labels in self._sets)
        again._leader = again._sets[self._sets.index(self._leader)]
        return again

    def check_tars(self) -> None:
        """Read all shards that are tars, once for all copies; see `LabelSet.check_tars`."""
        for labels in self._sets:
            if labels.manifest.aligned:
                labels.check_tars()

    def check_temperature(self, T: float) -> None:
        """Raise ParameterError where the sets cannot give soft targets at `T`."""
        for labels in self._sets:
            labels.check_temperature(T)

    def read_source(self, segment: Segment) -> LabelBlock:
        """The labels of a row range of one source shard, in the source's order.

        Raises DataError as `LabelSet.read_source`, and where the sets do not say the same of a
        sample's key, view or hard label.
        """
        first = self._leader.read_source(segment)
        views = np.zeros(len(first), np.int64) if first.views is None else first.views
        return self._together(
            [
                first
                if labels is self._leader
                else labels.read_source(segment)
                if labels.manifest.aligned
                else labels.lookup(first.keys, views)
                for labels in self._sets
            ],
            views.astype(np.int64),
        )

    def lookup(self, keys: pa.StringArray, views: npt.NDArray[np.int64]) -> LabelBlock:
        """The labels of `keys`, each of its view; raises as `read_source` and `LabelSet.lookup`."""
        return self._together([labels.lookup(keys, views) for labels in self._sets], views)

    def _together(self, blocks: Sequence[LabelBlock], views: npt.NDArray[np.int64]) -> LabelBlock:
        """One block with the columns of all, those of set i named `i.NAME`."""
        first = blocks[0]
        payload: dict[str, npt.NDArray[Any]] = {}
        for number, (labels, block) in enumerate(zip(self._sets, blocks, strict=True)):
            check_joined(first.keys, block, views, labels)
            hard = _renumbered(block, self._decoder.orders[number])
            check_hard_labels(first.keys, first.labels, hard, labels)
            _check_lengths(first, block, labels)
            columns = {**block.payload, "top1": block.top1}
            payload |= {f"{number}.{name}": values for name, values in columns.items()}
        return replace(first, payload=payload, codec=self._decoder, features=None)


def _check_settings(sets: int, weights: Sequence[float], temperature: float | None) -> None:
    if not sets:
        raise ParameterError("LabelEnsemble: has no label sets; give one or more")
    if weights and (len(weights) != sets or min(weights) <= 0):
        raise ParameterError(
            f"LabelEnsemble: weights are {list(weights)} for {sets} label sets; give one above 0 "
            "each"
        )
    if temperature is not None and not temperature > 0:
        raise ParameterError(f"LabelEnsemble: temperature must be above 0, got {temperature!r}")


def _renumbered(block: LabelBlock, order: npt.NDArray[np.int64] | None) -> LabelBlock:
    """The block with its hard labels numbered as the first set has its classes."""
    if order is None:
        return block
    numbers = pa.array(np.argsort(order).astype(np.int32))
    return replace(block, labels=numbers.take(block.labels))


def _check_lengths(first: LabelBlock, block: LabelBlock, labels: LabelSet) -> None:
    if first.lengths is None or block.lengths is None:
        return
    if not np.array_equal(first.lengths, block.lengths):
        key = first.keys[int(np.flatnonzero(first.lengths != block.lengths)[0])]
        raise DataError(
            f"{labels.folder}: the sequence of {key.as_py()!r} has another length than in the "
            "other sets; label the same source with all teachers"
        )


# What samples are joined with.
Labels = LabelSet | LabelEnsemble


@dataclass(frozen=True, slots=True)
class _MeanDecoder:
    """Reads the mean of several sets' rows. orders: of their classes, None where the first's."""

    mean: Mean
    members: tuple[Decoder, ...]
    orders: tuple[npt.NDArray[np.int64] | None, ...]
    folders: str

    def logits(self, columns: Columns, T: float) -> Floats:
        """Float32 `[N, C]`, the largest of a row 0; the same for every T.

        Raises DataError where a row has no class left that all members allow.
        """
        said = []
        for number, (decoder, order) in enumerate(zip(self.members, self.orders, strict=True)):
            own = {
                name.removeprefix(f"{number}."): values
                for name, values in columns.items()
                if name.startswith(f"{number}.")
            }
            d = decoder.logits(own, T)
            said.append((d if order is None else d[:, order]).astype(np.float64))
        d, _ = mean_of(self.mean, [(logits, np.zeros(len(logits))) for logits in said])
        if np.isneginf(d.max(axis=1, initial=-np.inf)).any():
            raise DataError(
                f"{self.folders}: rule out every class of a sample between them, so the mean of "
                "their logits is nothing; average probabilities with --mean-of probs"
            )
        return d
