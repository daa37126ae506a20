"""A table's numbers in the types that a model takes, or why they are no such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location
from softlabel.schemas.sample import Array


class Unfit(ValueError):
    """A value that is no input. row: its place among those read together."""

    def __init__(self, reason: str, row: int) -> None:
        super().__init__(reason, row)
        self.reason = reason
        self.row = row

    def at(self, place: Location, keys: pa.StringArray, column: str) -> DataError:
        """The error that tells of it, for rows of `keys` in the file `place`."""
        return DataError(
            f"{place}: key {keys[self.row].as_py()!r}: column {column!r} {self.reason}"
        )


def refuse_nulls(column: pa.Array, each: int) -> None:
    """Raise Unfit where a value is null, `each` of them being a row's."""
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py() // max(1, each)
        raise Unfit("holds no value; fill it in, or leave the row out", row)


def cast_numbers(values: Array, wanted: np.dtype[Any], row_of: Callable[[int], int]) -> Array:
    """As the input's type: floats are rounded to it, whatever else would change is refused.

    row_of: the row of a value's place. Raises Unfit.
    """
    if values.dtype == wanted:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(wanted)
        if values.dtype.kind == wanted.kind == "f":
            changed = np.isinf(cast) & ~np.isinf(values)
        else:
            changed = cast.astype(values.dtype) != values
    if changed.any():
        place = int(changed.argmax())
        raise Unfit(
            f"holds {values[place]}, which {wanted} cannot hold; scale it, or export the teacher "
            f"with inputs of {values.dtype}",
            row_of(place),
        )
    return cast
