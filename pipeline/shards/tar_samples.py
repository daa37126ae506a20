"""What a tar shard holds of one sample: its members from a block of label rows, and back.

`.softlabel.json` has the true key and everything small, each field by the name of its Parquet
column: `view`, `length`, `label`, `top1`, `shift`, `range`, `lse` or `tail_lse`. The arrays have
their own members. Of a plain sample a field is one value and an array `[C]`; with views and in
sequences a field is a list over the sample's positions, and the arrays have a leading axis of as
many. JSON has no infinity: a log-sum of -inf is null, as is an unknown label.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.codecs.codec import Column
from softlabel.pipeline.shards.array_bytes import npy_bytes, npz_bytes, read_npy, read_npz
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.packing import Packing
from softlabel.pipeline.shards.parquet_columns import value_columns
from softlabel.pipeline.shards.tar_members import is_unsafe, split_name

OURS = ".softlabel."
JSON_SUFFIX = f"{OURS}json"
FEATURES_SUFFIX = f"{OURS}features.npy"
CLASS_SUFFIX = ".cls"
# Columns that stand in arrays; the others stand in the JSON.
_ARRAYS = ("ids", "logits", "features")
_PLAIN_KEY = re.compile(r"(?!__)[^\x00-\x1f\x7f-\x9f%./\\]+")
_ESCAPED = re.compile(r"[\x00-\x1f\x7f-\x9f%.\\]|^_(?=_)|(?:^|(?<=/))/|/\Z")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"JSON has no {name}")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


@dataclass(frozen=True, slots=True)
class StoredSample:
    """The members of one sample by suffix, of those that are ours, and their common prefix."""

    prefix: str
    members: Mapping[str, bytes]


def escaped_key(key: str) -> str:
    """The key as the common prefix of a sample's members in `sidecar`.

    Percent-escaped, byte by byte of its UTF-8: control characters, `%`, `.` and backslash; a slash
    at either end or behind another; and the first of two leading underscores. So a prefix has no
    dot, lies inside its folder, is no name that loaders pass over, and says the key again when
    it is unescaped.
    """
    if _PLAIN_KEY.fullmatch(key):
        return key
    return _ESCAPED.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), key)


def member_prefix(key: str, packing: Packing) -> str:
    """The common prefix of the members of the sample `key`: in `merged` the key itself.

    Raises ValueError where a key cannot be one.
    """
    if not key:
        raise ValueError("a key is empty")
    if packing.layout == "sidecar":
        return escaped_key(key)
    if is_unsafe(key) or split_name(key + JSON_SUFFIX) != (key, JSON_SUFFIX):
        raise ValueError(f"key {key!r} cannot name the members of a sample")
    return key


def array_members(packing: Packing) -> dict[str, tuple[str, ...]]:
    """The members that hold arrays, by suffix, and the names of the columns in each."""
    payload = tuple(c.name for c in packing.codec.columns if c.name in _ARRAYS)
    suffix = {
        "dense-u8": f"{OURS}u8.npz",
        "topk": f"{OURS}topk.npz",
        "factored": FEATURES_SUFFIX,
    }.get(packing.identity.codec, f"{OURS}logits.npy")
    inner = {FEATURES_SUFFIX: ("features",)} if packing.identity.features is not None else {}
    return {suffix: payload} | inner


def samples_of(
    block: LabelBlock, packing: Packing
) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Key and members `(suffix, bytes)` of each sample of a block that cuts none in two.

    Raises ValueError for values that JSON cannot hold: NaN and +inf.
    """
    columns = _columns_of(block)
    fields = {c.name: _numbers(columns[c.name]) for c in _json_columns(packing)}
    fields["label"] = block.labels.to_pylist()
    arrays = array_members(packing)
    starts = block.starts()
    plain = block.views is None and block.lengths is None
    with_class = packing.layout == "sidecar" and block.lengths is None
    for key, first, end in _runs(block):
        part: Any = int(starts[first])
        if not plain:
            part = slice(part, int(starts[end]))
        document: dict[str, Any] = {"key": key}
        if block.views is not None:
            document["view"] = block.views[first:end].tolist()
        if block.lengths is not None:
            lengths = block.lengths[first:end].tolist()
            document["length"] = lengths if block.views is not None else lengths[0]
        document |= {name: values[part] for name, values in fields.items()}
        members = [(JSON_SUFFIX, _ENCODER.encode(document).encode())]
        for suffix, names in arrays.items():
            values = {name: columns[name][part] for name in names}
            data = npz_bytes(values) if suffix.endswith("npz") else npy_bytes(values[names[0]])
            members.append((suffix, data))
        if with_class and (label := _common(document["label"])) is not None:
            members.append((CLASS_SUFFIX, str(label).encode()))
        yield key, members


def block_of_samples(samples: Sequence[StoredSample], packing: Packing) -> LabelBlock:
    """The rows of these samples.

    Raises ValueError, TypeError, LookupError or ArrowException where they are not of such a set.
    """
    identity = packing.identity
    documents = [read_document(sample, packing) for sample in samples]
    plain = identity.views == 1 and not identity.positions
    rows = [len(document["view"]) if identity.views > 1 else 1 for document in documents]
    views, lengths, counts = None, None, rows
    if identity.views > 1:
        views = _integers(_chained(document["view"] for document in documents), pa.uint16())
    if identity.positions:
        each = [d["length"] if identity.views > 1 else [d["length"]] for d in documents]
        if [len(item) for item in each] != rows:
            raise ValueError("a sample has other views than lengths")
        lengths = _integers(_chained(each), pa.uint32())
        counts = [sum(item) for item in each]

    def field(name: str) -> list[Any]:
        if plain:
            return [document[name] for document in documents]
        if [len(document[name]) for document in documents] != counts:
            raise ValueError(f"a sample has too few or too many of {name}")
        return _chained(document[name] for document in documents)

    columns = {c.name: _column(field(c.name), c) for c in _json_columns(packing)}
    for suffix, names in array_members(packing).items():
        columns |= _joined_arrays(samples, suffix, names, packing, None if plain else counts)
    keys = [d["key"] for d, n in zip(documents, rows, strict=True) for _ in range(n)]
    payload = {column.name: columns[column.name] for column in packing.codec.columns}
    return LabelBlock(
        keys=pa.array(keys, pa.string()),
        labels=pa.array(field("label"), pa.int32()),
        top1=columns["top1"],
        shift=columns["shift"],
        payload=payload,
        codec=packing.codec,
        views=views,
        lengths=lengths,
        features=columns["features"] if identity.features is not None else None,
    )


def read_document(sample: StoredSample, packing: Packing) -> dict[str, Any]:
    """The JSON of a sample. Raises ValueError, KeyError or TypeError where it is not its own."""
    document: dict[str, Any] = _DECODER.decode(sample.members[JSON_SUFFIX].decode())
    if member_prefix(document["key"], packing) != sample.prefix:
        raise ValueError(f"the members {sample.prefix!r} say that they are of another key")
    return document


def _json_columns(packing: Packing) -> list[Column]:
    return [c for c in value_columns(packing) if c.name not in (*_ARRAYS, "label")]


def _columns_of(block: LabelBlock) -> dict[str, npt.NDArray[Any]]:
    columns = {**block.payload, "top1": block.top1, "shift": block.shift}
    if block.features is not None:
        columns["features"] = block.features
    return columns


def _runs(block: LabelBlock) -> Iterator[tuple[str, int, int]]:
    """Key, first row and end of each sample."""
    first = 0
    for key, rows in itertools.groupby(block.keys.to_pylist()):
        end = first + (sum(1 for _ in rows))
        if block.views is None:
            yield from ((key, row, row + 1) for row in range(first, end))
        else:
            yield key, first, end
        first = end


def _numbers(values: npt.NDArray[Any]) -> list[Any]:
    """Values as JSON numbers; float32 as the shortest that reads back as the same float32."""
    if values.dtype.kind != "f":
        listed: list[Any] = values.tolist()
        return listed
    flat = values.reshape(-1)
    short = pc.cast(pc.cast(pa.array(flat), pa.string()), pa.float64()).to_numpy()
    # Rounded to float64 on the way, the shortest may hit the middle between two float32.
    exact = np.where(short.astype(np.float32) == flat, short, flat.astype(np.float64))
    whole: Any = exact.reshape(values.shape)
    if np.isneginf(exact).any():
        whole = whole.astype(object)
        whole[np.isneginf(values)] = None
    result: list[Any] = whole.tolist()
    return result


def _common(labels: int | list[int | None] | None) -> int | None:
    """The label of a sample, where all its views say the same."""
    if not isinstance(labels, list):
        return labels
    return labels[0] if len(set(labels)) == 1 else None


def _chained(lists: Any) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


def _integers(values: list[Any], kind: pa.DataType) -> npt.NDArray[Any]:
    array = pa.array(values, kind)
    if array.null_count:
        raise ValueError("a number is missing")
    return np.asarray(array.to_numpy())


def _column(values: list[Any], column: Column) -> npt.NDArray[Any]:
    """Fields of the JSON as a column, `[P]` or `[P, width]`."""
    kind = pa.from_numpy_dtype(column.dtype)
    if column.width is None:
        return _integers(values, kind)
    if any(len(item) != column.width for item in values):
        raise ValueError(f"{column.name} has not {column.width} values")
    flat = pa.array(_chained(values), kind).fill_null(-np.inf)
    return np.asarray(flat.to_numpy(zero_copy_only=False).reshape(-1, column.width))


def _joined_arrays(
    samples: Sequence[StoredSample],
    suffix: str,
    names: tuple[str, ...],
    packing: Packing,
    counts: list[int] | None,
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of all samples one after the other; counts: positions, None of plain samples."""
    widths = {c.name: c for c in value_columns(packing) if c.name in names}
    pieces: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
    for index, sample in enumerate(samples):
        data = sample.members[suffix]
        arrays = read_npz(data) if suffix.endswith("npz") else {names[0]: read_npy(data)}
        for name in names:
            column, values = widths[name], arrays[name]
            shape = (column.width,) if counts is None else (counts[index], column.width)
            if values.dtype != column.dtype or values.shape != shape:
                raise ValueError(f"an array {name!r} is {values.dtype} {values.shape}")
            pieces[name].append(values.reshape(-1, column.width or 1))
    return {name: np.concatenate(parts) for name, parts in pieces.items()}
