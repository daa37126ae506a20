"""Keys, hard labels and class names in the columns of tables that Hugging Face or others wrote.

Labels are the integers of `label`, else of `labels`, else of `fine_label` where that is the only
ClassLabel; null and -1 are unknown. Keys are the strings of `key`, else of `__key__`, else of `id`:
of the first that is a column of strings without nulls; without one, rows are numbered,
`FILESTEM-00000000`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.sources.reasons import reason
from softlabel.pipeline.sources.row_keys import numbered_keys
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.schemas.errors import DataError

METADATA_KEY = b"huggingface"
LABELS = ("label", "labels")
FINE_LABEL = "fine_label"
KEYS = ("key", "__key__", "id")
UNKNOWN = -1


class TableColumns(Protocol):
    """What a table's shard needs to know of its columns."""

    @property
    def others(self) -> LabelColumns:
        """Where keys and hard labels stand."""

    @property
    def leaves(self) -> list[str]:
        """The columns that are read, as Parquet spells them."""

    def told(self) -> dict[str, object]:
        """What the files of a source must agree in."""

    def rows(self, place: Path, batch: pa.RecordBatch, first: int) -> ShardRows:
        """The rows of `batch`, whose first is row `first` of file `place`. Raises DataError."""


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """Where keys and hard labels stand; None where there are none. classes: empty if not named."""

    label: str | None
    key: str | None
    classes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The columns that there are."""
        return [name for name in (self.label, self.key) if name is not None]

    def told(self) -> dict[str, object]:
        """What the files of a source must agree in."""
        return {"label": self.label, "key": self.key, "classes": self.classes}

    def keys(self, place: Path, batch: pa.RecordBatch, first: int) -> pa.StringArray:
        """The keys of `batch`, whose first is row `first` of file `place`. Raises DataError."""
        if self.key is None:
            return numbered_keys(place.stem, first, len(batch))
        return checked_keys(place, batch.column(self.key), first)

    def hard_labels(
        self, place: Path, batch: pa.RecordBatch, keys: pa.StringArray
    ) -> pa.Int32Array:
        """The labels of `batch`, null where unknown. Raises DataError."""
        if self.label is None:
            return pa.nulls(len(batch), pa.int32())
        return _labels(place, keys, batch.column(self.label))


def find_labels(
    place: Path,
    schema: pa.Schema,
    features: Mapping[str, Any],
    has_nulls: Callable[[str], bool],
) -> LabelColumns:
    """The columns of keys and labels of file `place`. Raises DataError where they cannot be told.

    features: as Hugging Face describes the columns. has_nulls: of a column of strings.
    """
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{place}: has two columns {twice!r}; rename one")
    label = _label_column(place, schema, features)
    texts = [name for name in KEYS if name in schema.names and _is_text(schema.field(name).type)]
    key = next((name for name in texts if not has_nulls(name)), None)
    return LabelColumns(label, key, () if label is None else _class_names(place, label, features))


def check_agreement(path: Path, found: Mapping[Path, TableColumns]) -> None:
    """Refuse files of one source whose columns differ. Raises DataError naming both."""
    (first, wanted), *others = found.items()
    for file, columns in others:
        told, expected = columns.told(), wanted.told()
        for field in expected | told:
            one, two = told.get(field), expected.get(field)
            if one != two:
                raise DataError(
                    f"{path}: {file.name} and {first.name} differ in their {field} "
                    f"({one!r} and {two!r}); write them alike, or open them one by one"
                )


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
