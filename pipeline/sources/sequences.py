"""Rows that are sequences: lists of numbers of any length, and which of their positions there are.

What is padding is never labelled: a row's positions are those that are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location
from softlabel.schemas.sample import POSITIONS, Array
from softlabel.schemas.teacher import NumberInput

if TYPE_CHECKING:
    from softlabel.pipeline.sources.shard import Number

IDS, DECODER = "input_ids", "decoder_"
# The column that is 0 where the other one's lists are padded.
MASKS = {DECODER + IDS: DECODER + "attention_mask", IDS: "attention_mask"}
LENGTH = "length"
# What numbers of a kind, as NumPy names it, are to a PyTorch model.
TAKEN = {"i": "int64", "u": "int64", "f": "float32", "b": "bool"}


@dataclass(frozen=True, slots=True)
class Sequences:
    """What is read of rows that are sequences.

    inputs: what is asked for. ids: the column whose positions have labels. masks: the inputs that
    are no columns, each with the column whose lists it masks. mask: the column that is 0 where
    `ids` is padded; length: the column that says how many positions of `ids` come before its
    padding; None where there is no such column.
    """

    inputs: tuple[NumberInput, ...]
    ids: str
    masks: Mapping[str, str]
    mask: str | None
    length: str | None

    @property
    def columns(self) -> list[NumberInput]:
        """The inputs that are columns."""
        return [one for one in self.inputs if one.name not in self.masks]

    @property
    def names(self) -> list[str]:
        """The columns that are read, but for key and label."""
        told = (name for name in (self.mask, self.length) if name is not None)
        return list(dict.fromkeys([*(one.name for one in self.columns), *told]))

    def leader(self, name: str) -> str:
        """The column that this one is as long as, row by row."""
        encoded = self.ids.startswith(DECODER) and not name.startswith(DECODER)
        return IDS if encoded else self.ids


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """N rows as they are stored. lists: a field of lists for each column, and one `POSITIONS`."""

    lists: pa.StructArray
    sequences: Sequences

    def __len__(self) -> int:
        return len(self.lists)

    def take(self, rows: npt.NDArray[np.int64]) -> SequenceRows:
        """The rows of these numbers, in this order."""
        return SequenceRows(self.lists.take(pa.array(rows)), self.sequences)

    def padded(self) -> Array:
        """The inputs, and `POSITIONS`, in fields `[N, L]`, padded with zeros to the longest row.

        To the length that an input insists on, where it does.
        """
        lists = {name: self.lists.field(name) for name in self.lists.type.names}
        lengths = {name: list_lengths(values) for name, values in lists.items()}
        inputs = [*self.sequences.inputs, self._positions()]
        values = np.zeros(
            len(self), [(one.name, one.dtype, self._shape(one, lengths)) for one in inputs]
        )
        for one in inputs:
            field = values[one.name]
            if one.name in lists:
                places = np.arange(field.shape[1]) < lengths[one.name][:, None]
                field[places] = lists[one.name].flatten().to_numpy(zero_copy_only=False)
        for mask, masked in self.sequences.masks.items():
            if masked == self.sequences.ids:
                values[mask] = values[POSITIONS]
            else:
                values[mask] = np.arange(values[mask].shape[1]) < lengths[masked][:, None]
        return values

    def _positions(self) -> NumberInput:
        """As long as the input whose positions they are."""
        (ids,) = [one for one in self.sequences.inputs if one.name == self.sequences.ids]
        return ids.model_copy(update={"name": POSITIONS, "dtype": "bool"})

    def _shape(
        self, one: NumberInput, lengths: Mapping[str, npt.NDArray[np.int64]]
    ) -> tuple[int, ...]:
        column = self.sequences.masks.get(one.name, one.name)
        longest = max(1, int(lengths[column].max(initial=0)))
        return (longest,) if one.shape[0] < 0 else one.shape


def offered_inputs(numbers: Mapping[str, Number]) -> list[NumberInput]:
    """Every list of numbers, and the masks that can be made, in the types that torch takes them."""
    lists = {name: number for name, number in numbers.items() if len(number.shape) == 1}
    kinds = {name: TAKEN[number.dtype.kind] for name, number in lists.items()}
    for ids, mask in MASKS.items():
        if ids in lists or ids == IDS:
            kinds.setdefault(mask, "int64")
    return [NumberInput(name=name, dtype=kind, shape=(-1,)) for name, kind in kinds.items()]


def joined_rows(parts: Sequence[SequenceRows]) -> SequenceRows:
    """The rows of `parts`, one after the other."""
    return SequenceRows(pa.concat_arrays([part.lists for part in parts]), parts[0].sequences)


def stacked(parts: Sequence[Array]) -> Array:
    """Inputs of samples one after the other, sequences padded with zeros to the longest."""
    kinds = [part.dtype for part in parts]
    names = kinds[0].names
    if names is None or all(kind == kinds[0] for kind in kinds):
        return np.concatenate(parts)
    values = np.zeros(
        sum(map(len, parts)),
        [(name, kinds[0][name].base, max(kind[name].shape for kind in kinds)) for name in names],
    )
    first = 0
    for part in parts:
        for name in names:
            (width,) = part.dtype[name].shape
            values[name][first : first + len(part), :width] = part[name]
        first += len(part)
    return values


def list_lengths(lists: pa.Array) -> npt.NDArray[np.int64]:
    """Values of each list, int64 `[N]`; none of the lists is null."""
    return np.asarray(pc.list_value_length(lists).to_numpy(zero_copy_only=False), np.int64)


def find_sequences(
    path: Location, numbers: Mapping[str, Number], inputs: Sequence[NumberInput], taker: str
) -> Sequences:
    """Where these inputs, and the positions of their sequences, stand among the columns `numbers`.

    Raises DataError, naming `taker`, where that cannot be told.
    """
    lists = [name for name, number in numbers.items() if len(number.shape) == 1]
    ids = _ids(path, [one.name for one in inputs if one.name in lists], taker)
    masks = {}
    for one in inputs:
        if one.name in MASKS.values() and one.name not in numbers:
            masks[one.name] = IDS if one.name == MASKS[IDS] and IDS in lists else ids
        elif one.name not in lists or len(one.shape) != 1:
            found = ", ".join(map(repr, lists)) or "none"
            raise DataError(
                f"{path}: {taker} takes {one.name!r} beside its sequences, and those are columns "
                f"of lists of numbers, one a position; such columns are {found}: rename them"
            )
    mask, length = MASKS.get(ids, MASKS[IDS]), numbers.get(LENGTH)
    counted = length is not None and length.shape == () and length.dtype.kind in "iu"
    if mask in lists:
        return Sequences(tuple(inputs), ids, masks, mask, None)
    return Sequences(tuple(inputs), ids, masks, None, LENGTH if counted else None)


def _ids(path: Location, taken: Sequence[str], taker: str) -> str:
    candidates = [name for name in taken if name not in MASKS.values()]
    named = [name for name in MASKS if name in candidates]
    if named:
        return named[0]
    if len(candidates) != 1:
        found = " and ".join(map(repr, candidates)) or "no column of lists of numbers"
        raise DataError(
            f"{path}: {taker} takes sequences from {found}, and which column has their positions "
            f"cannot be told; call that one {IDS!r}"
        )
    return candidates[0]
