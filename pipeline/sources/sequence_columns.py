"""Reading rows that are sequences out of a table, with the hard labels of their positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.sources.casting import Unfit, cast_numbers, refuse_nulls
from softlabel.pipeline.sources.label_columns import IGNORED, LabelColumns, checked_labels
from softlabel.pipeline.sources.sequences import SequenceRows, Sequences, list_lengths
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location
from softlabel.schemas.sample import POSITIONS, Array
from softlabel.schemas.teacher import NumberInput

Lengths = npt.NDArray[np.int64]


def read_sequences(
    place: Location,
    batch: pa.RecordBatch,
    keys: pa.StringArray,
    others: LabelColumns,
    sequences: Sequences,
) -> tuple[SequenceRows, pa.LargeListArray]:
    """The rows of `batch` of file `place`, and the hard labels of their positions, lists of int32.

    Raises DataError, naming the key, where a row cannot be such.
    """
    lengths: dict[str, Lengths] = {}
    fields: dict[str, pa.LargeListArray] = {}
    column = sequences.ids
    try:
        for wanted in sequences.columns:
            column = wanted.name
            values, lengths[column] = _values(batch.column(column), wanted)
            fields[column] = _lists(values, lengths[column])
        for column, own in lengths.items():
            leader = sequences.leader(column)
            _refuse_other(own, lengths.get(leader, own), leader)
        column = sequences.mask or sequences.length or sequences.ids
        there = _there(batch, sequences, lengths[sequences.ids])
    except Unfit as error:
        raise error.at(place, keys, column) from error
    row_of = np.repeat(np.arange(len(batch)), lengths[sequences.ids])
    fields[POSITIONS] = _lists(there, lengths[sequences.ids])
    lists = pa.StructArray.from_arrays(list(fields.values()), list(fields))
    labels = _labels(place, batch, keys, others, lengths[sequences.ids])
    kept = np.bincount(row_of[there], minlength=len(batch))
    if labels is None:
        labels = pa.nulls(int(kept.sum()), pa.int32())
    else:
        labels = labels.filter(pa.array(there))
    return SequenceRows(lists, sequences), _lists(labels, kept)


def _values(column: pa.Array, wanted: NumberInput) -> tuple[Array, Lengths]:
    """All values of the lists, in the input's type, and the lengths of the lists. Raises Unfit."""
    flat, lengths = _flat(column)
    (most,) = wanted.shape
    if most >= 0 and (lengths > most).any():
        row = int((lengths > most).argmax())
        raise Unfit(f"holds {lengths[row]} values, at most {most} are taken; cut it", row)
    values = flat.to_numpy(zero_copy_only=False)
    return cast_numbers(values, np.dtype(wanted.dtype), _row_of(lengths)), lengths


def _flat(column: pa.Array) -> tuple[pa.Array, Lengths]:
    """The values of a column of lists, none of them null, and the lengths. Raises Unfit."""
    refuse_nulls(column, 1)
    flat, lengths = column.flatten(), list_lengths(column)
    if flat.null_count:
        place = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0])
        reason = "holds no value at a position; fill it in, or leave the row out"
        raise Unfit(reason, _row_of(lengths)(place))
    return flat, lengths


def _there(batch: pa.RecordBatch, sequences: Sequences, lengths: Lengths) -> npt.NDArray[np.bool_]:
    """Which values of the ids' lists are no padding. Raises Unfit."""
    if sequences.mask is not None:
        flat, own = _flat(batch.column(sequences.mask))
        _refuse_other(own, lengths, sequences.ids)
        return np.asarray(flat.to_numpy(zero_copy_only=False) != 0)
    if sequences.length is None:
        return np.ones(int(lengths.sum()), bool)
    column = batch.column(sequences.length)
    refuse_nulls(column, 1)
    first = column.to_numpy(zero_copy_only=False).astype(np.int64)
    wrong = (first < 0) | (first > lengths)
    if wrong.any():
        row = int(wrong.argmax())
        reason = f"holds {first[row]}, of {lengths[row]} in {sequences.ids!r}; mend it"
        raise Unfit(reason, row)
    places = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.asarray(places < np.repeat(first, lengths))


def _refuse_other(own: Lengths, wanted: Lengths, leader: str) -> None:
    if not np.array_equal(own, wanted):
        row = int(np.flatnonzero(own != wanted)[0])
        raise Unfit(f"holds {own[row]} values, {leader!r} {wanted[row]}; make them alike", row)


def _labels(
    place: Location,
    batch: pa.RecordBatch,
    keys: pa.StringArray,
    others: LabelColumns,
    lengths: Lengths,
) -> pa.Int32Array | None:
    """The hard label of every position, padding too, null where unknown; None without labels."""
    if others.label is None:
        return None
    column = batch.column(others.label)
    if pa.types.is_null(column.type):
        return None
    if not others.listed:
        raise DataError(
            f"{place}: column {others.label!r} has one label a sample, and samples are sequences "
            "with a label a position; write lists, or rename the column to go without"
        )
    try:
        refuse_nulls(column, 1)
        _refuse_other(list_lengths(column), lengths, "the sequence")
    except Unfit as error:
        raise error.at(place, keys, others.label) from error
    return checked_labels(place, column.flatten(), _row_of(lengths), keys, IGNORED)


def _row_of(lengths: Lengths) -> Callable[[int], int]:
    """The row of each place among the values of lists of these lengths."""
    ends = np.cumsum(lengths)
    return lambda place: int(np.searchsorted(ends, place, side="right"))


def _lists(values: Array | pa.Array, lengths: Lengths) -> pa.LargeListArray:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(starts), pa.array(values))
