"""Keys for rows that have none of their own: the file's stem and the row's number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.sources.files import is_file
from softlabel.pipeline.sources.reasons import no_such_source
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location


def numbered_keys(stem: str, first: int, rows: int, digits: int = 8) -> pa.StringArray:
    """The keys `STEM-00000000` and on of rows `first` to `first + rows`."""
    numbers = pc.cast(pa.array(np.arange(first, first + rows)), pa.string())
    return pc.binary_join_element_wise(pa.scalar(stem), pc.utf8_lpad(numbers, digits, "0"), "-")


def check_stems(path: Location, stems: Mapping[Location, str]) -> None:
    """Refuse files that are not there, and stems that would give two samples one key.

    stems: of each file. Raises ParameterError, DataError.
    """
    owners: dict[str, Location] = {}
    for file, stem in stems.items():
        if not is_file(file):
            raise no_such_source(file)
        if not stem.isprintable():
            raise DataError(f"{path}: the file name {file.name!r} makes no key; rename the file")
        other = owners.setdefault(stem, file)
        if other is not file:
            raise DataError(
                f"{path}: {other} and {file} would give their rows the same keys {stem!r}-NUMBER; "
                "rename one of them"
            )
