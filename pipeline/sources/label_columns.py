"""Keys, hard labels and class names in the columns of tables that Hugging Face or others wrote.

Labels are the integers of `label`, else of `labels`, else of `fine_label` where that is the only
ClassLabel; null and -1 are unknown. Of sequences they are lists, where -100 is unknown too. Keys
are the strings of `key`, else of `__key__`, else of `id`: of the first that is a column of strings
without nulls; without one, rows are numbered, `FILESTEM-00000000`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.sources.reasons import reason
from softlabel.pipeline.sources.row_keys import numbered_keys
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location

METADATA_KEY = b"huggingface"
LABELS = ("label", "labels")
FINE_LABEL = "fine_label"
KEYS = ("key", "__key__", "id")
UNKNOWN = -1
# As Hugging Face marks a position of a sequence that has no label.
IGNORED = -100


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

    def rows(self, place: Location, batch: pa.RecordBatch, first: int) -> ShardRows:
        """The rows of `batch`, whose first is row `first` of file `place`. Raises DataError."""


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """Where keys and hard labels stand; None where there are none. classes: empty if not named.

    listed: labels are lists, one of each position of a sequence.
    """

    label: str | None
    key: str | None
    classes: tuple[str, ...]
    listed: bool = False

    @property
    def names(self) -> list[str]:
        """The columns that there are."""
        return [name for name in (self.label, self.key) if name is not None]

    def told(self) -> dict[str, object]:
        """What the files of a source must agree in."""
        named = {"label": self.label, "key": self.key, "classes": self.classes}
        return named | {"lists of labels": self.listed}

    def keys(self, place: Location, batch: pa.RecordBatch, first: int) -> pa.StringArray:
        """The keys of `batch`, whose first is row `first` of file `place`. Raises DataError."""
        if self.key is None:
            return numbered_keys(place.stem, first, len(batch))
        return checked_keys(place, batch.column(self.key), first)

    def hard_labels(
        self, place: Location, batch: pa.RecordBatch, keys: pa.StringArray
    ) -> pa.Int32Array:
        """The labels of `batch`, null where unknown. Raises DataError."""
        if self.label is None:
            return pa.nulls(len(batch), pa.int32())
        if self.listed:
            raise DataError(
                f"{place}: column {self.label!r} has lists of labels, and a sample has one; number "
                "the classes, or rename the column to go without labels"
            )
        return checked_labels(place, batch.column(self.label), lambda row: row, keys)


def find_labels(
    place: Location,
    schema: pa.Schema,
    features: Mapping[str, Any],
    has_nulls: Callable[[str], bool],
    *,
    lists: bool = False,
) -> LabelColumns:
    """The columns of keys and labels of file `place`. Raises DataError where they cannot be told.

    features: as Hugging Face describes the columns. has_nulls: of a column of strings. lists:
    whether labels may be lists.
    """
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{place}: has two columns {twice!r}; rename one")
    label = _label_column(place, schema, features, lists=lists)
    listed = label is not None and _is_list(schema.field(label).type)
    texts = [name for name in KEYS if name in schema.names and _is_text(schema.field(name).type)]
    key = next((name for name in texts if not has_nulls(name)), None)
    classes = () if label is None else _class_names(place, label, features)
    return LabelColumns(label, key, classes, listed)


def check_agreement(path: Location, found: Mapping[Location, TableColumns]) -> None:
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


def features_of(place: Location, schema: pa.Schema) -> Mapping[str, Any]:
    """What Hugging Face says of the columns in the schema; empty where it says nothing."""
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(place) from error
    return checked_features(place, features)


def checked_features(place: Location, features: object) -> Mapping[str, Any]:
    """The features of a dataset's description; null is none. Raises DataError."""
    if features is not None and not isinstance(features, dict):
        raise _damaged(place)
    return features or {}


def checked_keys(place: Location, column: pa.Array, first: int) -> pa.StringArray:
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


def checked_labels(
    place: Location,
    column: pa.Array,
    row_of: Callable[[int], int],
    keys: pa.StringArray,
    *marks: int,
) -> pa.Int32Array:
    """Hard labels as int32, null where they are -1 or one of `marks`. Raises DataError.

    row_of: the row of a label's place, of which `keys` has the key.
    """
    limits = np.iinfo(np.int32)
    known = column.cast(pa.int8()) if pa.types.is_null(column.type) else column
    if pa.types.is_uint64(known.type):
        bad = pc.greater(known, pa.scalar(limits.max, pa.uint64()))
    else:
        bad = pc.or_(pc.greater(known, limits.max), pc.less(known, limits.min))
    bad = bad.fill_null(False)
    if pc.any(bad).as_py():
        at = pc.index(bad, True).as_py()
        raise DataError(
            f"{place}: key {keys[row_of(at)].as_py()!r} has label {known[at].as_py()}; number the "
            "classes"
        )
    labels = known.cast(pa.int32())
    unknown = pc.is_in(labels, pa.array([UNKNOWN, *marks], pa.int32()))
    return pc.if_else(unknown, pa.scalar(None, pa.int32()), labels)


def _label_column(
    place: Location, schema: pa.Schema, features: Mapping[str, Any], *, lists: bool
) -> str | None:
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
        if lists and _is_list(kind):
            kind = kind.value_type
        if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise DataError(
                f"{place}: column {name!r} is of {kind}; labels are integers: number the classes, "
                "or rename the column to go without labels"
            )
    return name


def _class_names(place: Location, label: str, features: Mapping[str, Any]) -> tuple[str, ...]:
    feature = _of_each(features.get(label))
    if not _is_class_label(feature):
        return ()
    names = feature.get("names")
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(place)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{place}: class name {twice!r} of {label!r} appears twice; rename one")
    return tuple(names)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _of_each(feature: Any) -> Any:
    """What Hugging Face says of each value of a column of lists; of another column as it is."""
    if isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        return feature["feature"]
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return feature


def _is_class_label(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel"


def _damaged(place: Location) -> DataError:
    return DataError(
        f"{place}: what Hugging Face's metadata says of its columns is damaged; write it again"
    )
