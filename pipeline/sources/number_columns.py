"""Tables of numbers, for teachers that take no pictures: columns by the names of their inputs.

Any column of integers, floats or booleans can be an input, and any list of them with one length;
label and key are found as beside pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.sources.casting import Unfit, cast_numbers, refuse_nulls
from softlabel.pipeline.sources.label_columns import LabelColumns, find_labels
from softlabel.pipeline.sources.sequence_columns import read_sequences
from softlabel.pipeline.sources.sequences import Sequences
from softlabel.pipeline.sources.shard import Number, ShardRows
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import NumberInput


@dataclass(frozen=True, slots=True)
class NumberColumns:
    """Which columns of a table hold what.

    numbers: those that can be inputs, by name. inputs: those that are read. sequences: what is read
    in their place where rows are sequences.
    """

    numbers: Mapping[str, Number]
    others: LabelColumns
    inputs: tuple[NumberInput, ...] = ()
    sequences: Sequences | None = None

    @property
    def leaves(self) -> list[str]:
        """What rows are made of, as Parquet spells it."""
        if self.sequences is not None:
            return [*self.sequences.names, *self.others.names]
        return [*(wanted.name for wanted in self.inputs), *self.others.names]

    def told(self) -> dict[str, object]:
        """What the files of a source must agree in."""
        return {"numbers": dict(self.numbers), **self.others.told()}

    def taking(self, wanted: Sequence[NumberInput] | Sequences) -> NumberColumns:
        """The same table with these inputs to read."""
        if isinstance(wanted, Sequences):
            return replace(self, sequences=wanted)
        return replace(self, inputs=tuple(wanted))

    def rows(self, place: Location, batch: pa.RecordBatch, first: int) -> ShardRows:
        """The rows of `batch`, whose first is row `first` of file `place`. Raises DataError."""
        keys = self.others.keys(place, batch, first)
        if self.sequences is not None:
            return ShardRows(keys, *read_sequences(place, batch, keys, self.others, self.sequences))
        kinds = [(wanted.name, wanted.dtype, wanted.shape) for wanted in self.inputs]
        values = np.empty(len(batch), np.dtype(kinds))
        for wanted in self.inputs:
            try:
                values[wanted.name] = _as_input(batch.column(wanted.name), wanted)
            except Unfit as error:
                raise error.at(place, keys, wanted.name) from error
        return ShardRows(keys, values, self.others.hard_labels(place, batch, keys))


def find_numbers(
    place: Location,
    schema: pa.Schema,
    features: Mapping[str, Any],
    has_nulls: Callable[[str], bool],
) -> NumberColumns:
    """The columns of file `place`, as `find_columns` finds those of pictures. Raises DataError."""
    others = find_labels(place, schema, features, has_nulls, lists=True)
    numbers = {
        field.name: number
        for field in schema
        if field.name not in others.names and (number := _number(field.type)) is not None
    }
    if not numbers:
        raise DataError(
            f"{place}: has no column of encoded pictures (binary, or a struct with a field "
            "'bytes') and none of numbers; it has "
            f"{', '.join(map(repr, schema.names)) or 'none at all'}"
        )
    return NumberColumns(numbers, others)


def _number(kind: pa.DataType) -> Number | None:
    """What the column can be as an input: lists may be of lists; None where it can be none."""
    shape: list[int] = []
    while True:
        if pa.types.is_fixed_size_list(kind):
            shape.append(kind.list_size)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            shape.append(-1)
        else:
            break
        kind = kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return None
    return Number(np.dtype(kind.to_pandas_dtype()), tuple(shape))


def _as_input(column: pa.Array, wanted: NumberInput) -> Array:
    """The column as `[N, *shape]` of the input's type. Raises Unfit where a row is not."""
    rows = len(column)
    each = 1
    # Level by level: what a list of `size` values holds stands `size` apart.
    for size in wanted.shape:
        refuse_nulls(column, each)
        if pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            other = pc.not_equal(pc.list_value_length(column), size)
            if pc.any(other).as_py():
                place = pc.index(other, True).as_py()
                length = pc.list_value_length(column)[place].as_py()
                raise Unfit(
                    f"holds {length} values, {size} are taken; make them alike", place // each
                )
            column = column.flatten()
        each *= size
    refuse_nulls(column, each)
    values = column.to_numpy(zero_copy_only=False)
    cast = cast_numbers(values, np.dtype(wanted.dtype), lambda place: place // max(1, each))
    return cast.reshape(rows, *wanted.shape)
