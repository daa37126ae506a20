"""Pictures, labels and keys in the columns of tables that Hugging Face or others wrote.

Pictures stand in column `image`, else in `img`, else in the one that can hold encoded pictures:
struct<bytes: binary, ...> as Hugging Face writes it, or plain binary. Labels are the integers of
`label`, else of `labels`, else of `fine_label` where that is the only ClassLabel; null and -1 are
unknown. Keys are the strings of `key`, else of `__key__`, else of `id`: of the first that is a
column of strings without nulls; without one, rows are numbered, `FILESTEM-00000000`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.sources.reasons import reason
from softlabel.pipeline.sources.row_keys import numbered_keys
from softlabel.pipeline.sources.source import ShardRows
from softlabel.schemas.errors import DataError

METADATA_KEY = b"huggingface"
# What a shard gives at once: encoded pictures, and at most about so many of their bytes.
PIECE_ROWS = 256
PIECE_BYTES = 64 * 2**20
PICTURES = ("image", "img")
LABELS = ("label", "labels")
FINE_LABEL = "fine_label"
KEYS = ("key", "__key__", "id")
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class PictureColumns:
    """Which columns of a table hold what.

    nested: the pictures are the field `bytes` of a struct. label, key: None where there is none.
    """

    picture: str
    nested: bool
    label: str | None
    key: str | None
    classes: tuple[str, ...]

    @property
    def leaves(self) -> list[str]:
        """What rows are made of, as Parquet spells it: of a struct, the bytes alone."""
        picture = f"{self.picture}.bytes" if self.nested else self.picture
        return [picture, *(name for name in (self.label, self.key) if name is not None)]

    def rows(self, place: Path, batch: pa.RecordBatch, first: int) -> ShardRows:
        """The rows of `batch`, whose first is row `first` of file `place`. Raises DataError."""
        if self.key is None:
            keys = numbered_keys(place.stem, first, len(batch))
        else:
            keys = checked_keys(place, batch.column(self.key), first)
        column = batch.column(self.picture)
        pictures = pc.struct_field(column, "bytes") if self.nested else column
        if pictures.null_count:
            row = pc.index(pictures.is_null(), True).as_py()
            raise DataError(
                f"{place}: key {keys[row].as_py()!r}: column {self.picture!r} holds no picture "
                "(paths are not opened); write the pictures' bytes into the file, or leave the "
                "row out"
            )
        if self.label is None:
            labels = pa.nulls(len(batch), pa.int32())
        else:
            labels = _labels(place, keys, batch.column(self.label))
        return ShardRows(keys, pictures.to_pylist(), labels)


def find_columns(
    place: Path,
    schema: pa.Schema,
    features: Mapping[str, Any],
    has_nulls: Callable[[str], bool],
) -> PictureColumns:
    """The columns of file `place`. Raises DataError where they cannot be told.

    features: as Hugging Face describes the columns. has_nulls: of a column of strings.
    """
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{place}: has two columns {twice!r}; rename one")
    picture = _picture_column(place, schema)
    label = _label_column(place, schema, features)
    texts = [name for name in KEYS if name in schema.names and _is_text(schema.field(name).type)]
    key = next((name for name in texts if not has_nulls(name)), None)
    classes = () if label is None else _class_names(place, label, features)
    nested = pa.types.is_struct(schema.field(picture).type)
    return PictureColumns(picture, nested, label, key, classes)


def features_of(place: Path, schema: pa.Schema) -> Mapping[str, Any]:
    """What Hugging Face says of the columns in the schema; empty where it says nothing."""
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(place) from error
    return checked_features(place, features)


def checked_features(place: Path, features: object) -> Mapping[str, Any]:
    """The features of a dataset's description; null is none. Raises DataError."""
    if features is not None and not isinstance(features, dict):
        raise _damaged(place)
    return features or {}


def check_agreement(path: Path, found: Mapping[Path, PictureColumns]) -> None:
    """Refuse files of one source whose columns differ. Raises DataError naming both."""
    (first, wanted), *others = found.items()
    for file, columns in others:
        for field in ("picture", "nested", "label", "key", "classes"):
            one, two = getattr(columns, field), getattr(wanted, field)
            if one != two:
                raise DataError(
                    f"{path}: {file.name} and {first.name} differ in their {field} "
                    f"({one!r} and {two!r}); write them alike, or open them one by one"
                )


def checked_keys(place: Path, column: pa.Array, first: int) -> pa.StringArray:
    """The column of keys, whose first is in row `first`, as strings. Raises DataError."""
    try:
        keys = column.cast(pa.string())
        keys.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(
            f"{place}: its keys are no UTF-8 text: {reason(error)}; write it again"
        ) from error
    bad = pc.equal(pc.binary_length(keys), 0).fill_null(True)
    if pc.any(bad).as_py():
        row = first + pc.index(bad, True).as_py()
        raise DataError(f"{place}: row {row} has an empty key; name every row, or remove the keys")
    return keys


def _picture_column(place: Path, schema: pa.Schema) -> str:
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


def _label_column(place: Path, schema: pa.Schema, features: Mapping[str, Any]) -> str | None:
    name = next((name for name in LABELS if name in schema.names), None)
    if name is None and FINE_LABEL in schema.names and _is_class_label(features.get(FINE_LABEL)):
        named = [column for column, feature in features.items() if _is_class_label(feature)]
        if len(named) > 1:
            names = " and ".join(map(repr, named))
            raise DataError(
                f"{place}: the labels may be in {names}; rename the one to use to 'label'"
            )
        name = FINE_LABEL
    if name is not None:
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise DataError(
                f"{place}: column {name!r} is of {kind}; labels are integers: number the classes, "
                "or rename the column to go without labels"
            )
    return name


def _class_names(place: Path, label: str, features: Mapping[str, Any]) -> tuple[str, ...]:
    if not _is_class_label(features.get(label)):
        return ()
    names = features[label].get("names")
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(place)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{place}: class name {twice!r} of {label!r} appears twice; rename one")
    return tuple(names)


def _labels(place: Path, keys: pa.StringArray, column: pa.Array) -> pa.Int32Array:
    limits = np.iinfo(np.int32)
    known = column.cast(pa.int8()) if pa.types.is_null(column.type) else column
    if pa.types.is_uint64(known.type):
        bad = pc.greater(known, pa.scalar(limits.max, pa.uint64()))
    else:
        bad = pc.or_(pc.greater(known, limits.max), pc.less(known, limits.min))
    bad = bad.fill_null(False)
    if pc.any(bad).as_py():
        row = pc.index(bad, True).as_py()
        raise DataError(
            f"{place}: key {keys[row].as_py()!r} has label {known[row].as_py()}; number the classes"
        )
    labels = known.cast(pa.int32())
    return pc.if_else(pc.equal(labels, UNKNOWN), pa.scalar(None, pa.int32()), labels)


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _is_class_label(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel"


def _damaged(place: Path) -> DataError:
    return DataError(
        f"{place}: what Hugging Face's metadata says of its columns is damaged; write it again"
    )
