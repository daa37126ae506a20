"""Encoded pictures in the columns of tables that Hugging Face or others wrote.

They stand in column `image`, else in `img`, else in the one that can hold encoded pictures:
struct<bytes: binary, ...> as Hugging Face writes it, or plain binary. Where no column has a label
a picture, `label`, `labels`, `annotation` or `mask` may hold masks, encoded like pictures. Beside
them, see `label_columns`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.sources.label_columns import LabelColumns, find_labels
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location

# What a shard gives at once: encoded pictures, and at most about so many of their bytes.
PIECE_ROWS = 256
PIECE_BYTES = 64 * 2**20
PICTURES = ("image", "img")
MASKS = ("label", "labels", "annotation", "mask")


@dataclass(frozen=True, slots=True)
class PictureColumns:
    """Which columns hold what. nested: pictures, or masks, are the field `bytes` of a struct.

    mask: the column of the pictures' masks; None where there are none.
    """

    picture: str
    nested: bool
    others: LabelColumns
    mask: str | None = None
    mask_nested: bool = False

    @property
    def leaves(self) -> list[str]:
        """What rows are made of, as Parquet spells it: of a struct, the bytes alone."""
        leaves = [f"{self.picture}.bytes" if self.nested else self.picture, *self.others.names]
        if self.mask is not None:
            leaves.append(f"{self.mask}.bytes" if self.mask_nested else self.mask)
        return leaves

    def told(self) -> dict[str, object]:
        """What the files of a source must agree in."""
        masks = {"mask": self.mask, "nested masks": self.mask_nested}
        return {"picture": self.picture, "nested": self.nested, **masks, **self.others.told()}

    def rows(self, place: Location, batch: pa.RecordBatch, first: int) -> ShardRows:
        """The rows of `batch`, whose first is row `first` of file `place`. Raises DataError."""
        keys = self.others.keys(place, batch, first)
        pictures = _encoded(batch, self.picture, nested=self.nested).to_pylist()
        if self.mask is None:
            return ShardRows(keys, pictures, self.others.hard_labels(place, batch, keys))
        return ShardRows(keys, pictures, _encoded(batch, self.mask, nested=self.mask_nested))


def find_columns(
    place: Location,
    schema: pa.Schema,
    features: Mapping[str, Any],
    has_nulls: Callable[[str], bool],
) -> PictureColumns:
    """The columns of file `place`, the others as `find_labels` finds them. Raises DataError."""
    masks = _mask_columns(schema)
    rest = pa.schema([field for field in schema if field.name not in masks], schema.metadata)
    others = find_labels(place, rest, features, has_nulls)
    mask = next((name for name in MASKS if name in masks and others.label is None), None)
    picture = _picture_column(place, schema if mask is None else rest)
    nested, mask_nested = (
        name is not None and pa.types.is_struct(schema.field(name).type) for name in (picture, mask)
    )
    return PictureColumns(picture, nested, others, mask, mask_nested)


def has_pictures(schema: pa.Schema) -> bool:
    """Whether some column is named as pictures are, or can hold them."""
    return any(field.name in PICTURES or _is_picture(field.type) for field in schema)


def _encoded(batch: pa.RecordBatch, name: str, *, nested: bool) -> pa.Array:
    column = batch.column(name)
    return pc.struct_field(column, "bytes") if nested else column


def _mask_columns(schema: pa.Schema) -> set[str]:
    """The columns that may hold masks: pictures under a name of these, beside other pictures."""
    pictures = [field.name for field in schema if _is_picture(field.type)]
    masks = {name for name in pictures if name in MASKS}
    return masks if len(masks) < len(pictures) else set()


def _picture_column(place: Location, schema: pa.Schema) -> str:
    for name in PICTURES:
        if name in schema.names:
            kind = schema.field(name).type
            if not _is_picture(kind):
                raise DataError(
                    f"{place}: column {name!r} is of {kind}; encoded pictures are binary, or a "
                    "struct with a field 'bytes' of binary"
                )
            return name
    fitting: list[str] = [field.name for field in schema if _is_picture(field.type)]
    if not fitting:
        raise DataError(
            f"{place}: has no column of encoded pictures (binary, or a struct with a field "
            f"'bytes'); it has {', '.join(map(repr, schema.names)) or 'none at all'}"
        )
    if len(fitting) > 1:
        names = " and ".join(map(repr, fitting))
        raise DataError(
            f"{place}: the pictures may be in {names}; rename the one to use to 'image'"
        )
    return fitting[0]


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)
