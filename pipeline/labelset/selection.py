"""Some keys or classes of a label set, read where they lie; `convert` writes such a set anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.codecs.make import make_codec
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.choosing import choose_classes
from softlabel.schemas.errors import DataError, ParameterError

if TYPE_CHECKING:
    from softlabel.pipeline.labelset.labelset import LabelSet

CHECKED_ROWS = 4096
ARROW_ROWS = 4096


class LabelSelection:
    """What `LabelSet.select` gives; made there.

    keys: those chosen, in their order, or None for all of the set, in its own. classes: names in
    the order of the logits; where they are not all of the set's, rows are float32 logits of
    these, shifted by their own maximum, and a hard label of another class is unknown.
    """

    def __init__(
        self, labels: LabelSet, keys: pa.StringArray | None, classes: Sequence[int] | None
    ) -> None:
        self.keys = keys
        self.classes = (
            labels.classes
            if classes is None
            else tuple(labels.classes[number] for number in classes)
        )
        self._labels = labels
        self._numbers = classes
        self._codec = make_codec("dense-f32", len(self.classes), labels.temperatures)
        self._known = None if keys is None else set(keys.to_pylist())

    @property
    def num_classes(self) -> int:
        """The width of a row's logits."""
        return len(self.classes)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures whose log-sums are recorded."""
        return self._labels.temperatures

    def __len__(self) -> int:
        if self.keys is None:
            return len(self._labels)
        return len(self.keys) * self._labels.views

    def batches(self, rows: int) -> Iterator[LabelBlock]:
        """All chosen rows, `rows` at a time; a sample's views stand together."""
        if self.keys is None:
            yield from map(self._chosen, self._labels.batches(rows))
            return
        views = self._labels.views
        for first in range(0, len(self), rows):
            numbers = np.arange(first, min(first + rows, len(self)))
            keys = self.keys.take(pa.array(numbers // views))
            yield self._chosen(self._labels.lookup(keys, numbers % views))

    def lookup(
        self, keys: Sequence[str] | pa.Array, view: int | npt.NDArray[np.integer] = 0
    ) -> LabelBlock:
        """The labels of `keys` in that order, as `LabelSet.lookup`.

        Raises DataError for a key that was not chosen.
        """
        block = self._labels.lookup(keys, view)
        if self._known is not None:
            for key in block.keys.to_pylist():
                if key not in self._known:
                    raise DataError(
                        f"{self._labels.folder}: key {key!r} is not among the {len(self._known):,} "
                        "keys of this selection; select it too"
                    )
        return self._chosen(block)

    def to_arrow(self) -> pa.Table:
        """All chosen rows as one table with real list columns; holds all of them in memory."""
        return pa.concat_tables([block.to_arrow() for block in self.batches(ARROW_ROWS)])

    def _chosen(self, block: LabelBlock) -> LabelBlock:
        if self._numbers is None:
            return block
        return choose_classes(block, self._numbers, self._codec)


def select(
    labels: LabelSet, keys: Sequence[str] | None, classes: Sequence[str] | None
) -> LabelSelection:
    """See `LabelSet.select`."""
    return LabelSelection(labels, _known_keys(labels, keys), _class_numbers(labels, classes))


def _known_keys(labels: LabelSet, keys: Sequence[str] | None) -> pa.StringArray | None:
    if keys is None:
        return None
    # Each lookup raises for a key that the set does not have.
    parts = [
        labels.lookup(keys[first : first + CHECKED_ROWS]).keys
        for first in range(0, len(keys), CHECKED_ROWS)
    ]
    if not parts:
        raise ParameterError("select: keys is empty; name one at least, or leave keys out for all")
    found = pa.concat_arrays(parts)
    if len(found.unique()) < len(found):
        counts = found.value_counts()
        twice = next(entry["values"] for entry in counts if entry["counts"].as_py() > 1)
        raise ParameterError(f"select: key {twice.as_py()!r} stands twice among keys")
    return found


def _class_numbers(labels: LabelSet, classes: Sequence[str] | None) -> list[int] | None:
    if classes is None:
        return None
    if labels.manifest.identity.codec == "topk":
        raise ParameterError(
            f"select: {labels.folder} is a topk label set, which keeps {labels.manifest.identity.k}"
            " classes a row and not those; label again with --codec dense-f16 to choose classes"
        )
    numbers = {name: number for number, name in enumerate(labels.classes)}
    for name in classes:
        if name not in numbers:
            raise ParameterError(
                f"select: {name!r} is no class of {labels.folder}; see its classes"
            )
    if len(set(classes)) < len(classes) or len(classes) < 2:
        raise ParameterError("select: classes must be two or more different names")
    return [numbers[name] for name in classes]
