"""The columns of a Parquet label shard: a block of label rows to Arrow and back.

`packed` stores several values a row as FixedSizeBinary, `lists` as fixed-size lists. Where a row
is a sequence, a column holds all positions of a row: as LargeBinary, or as a list. The label of a
position is -1 where unknown.
"""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.codecs.codec import Column
from softlabel.pipeline.codecs.numerics import id_dtype
from softlabel.pipeline.codecs.topk import TopK
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.packing import Packing
from softlabel.schemas.labelset import FORMAT_VERSION, SHARD_METADATA_KEY, sha256_of

Values = npt.NDArray[Any]
UNKNOWN = -1


def shard_header(packing: Packing) -> dict[str, Any]:
    """What a shard says of itself, whatever its container; what does not apply is left out."""
    identity = packing.identity
    header = {
        "format_version": FORMAT_VERSION,
        "identity_sha256": packing.identity_sha256,
        "codec": identity.codec,
        "k": identity.k,
        "tail": identity.tail,
        "prior_sha256": _prior_sha256(packing),
        "head_sha256": identity.head_sha256,
        "layout": packing.layout,
        "temperatures": list(identity.temperatures),
        "num_classes": len(identity.classes),
        "views": identity.views,
        "positions": identity.positions,
        "grid": None if identity.grid is None else list(identity.grid),
        "features": identity.features,
    }
    return {name: value for name, value in header.items() if value is not None}


def _prior_sha256(packing: Packing) -> str | None:
    """Of the class prior as little-endian float32: it decides labels and is not in the identity."""
    if not isinstance(packing.codec, TopK) or packing.codec.prior is None:
        return None
    return sha256_of(packing.codec.prior.astype("<f4").tobytes())


def shard_schema(packing: Packing) -> pa.Schema:
    """The Arrow schema of every Parquet shard of a set."""
    identity = packing.identity
    fields = [pa.field("key", pa.string(), nullable=False)]
    if identity.views > 1:
        fields.append(pa.field("view", pa.uint16(), nullable=False))
    if identity.positions:
        fields.append(pa.field("length", pa.uint32(), nullable=False))
    fields += [_field(column, packing) for column in value_columns(packing)]
    text = json.dumps(shard_header(packing), sort_keys=True)
    return pa.schema(fields, metadata={SHARD_METADATA_KEY: text})


def value_columns(packing: Packing) -> tuple[Column, ...]:
    """All columns with a value a position, in stored order."""
    identity = packing.identity
    columns = (
        Column("label", np.dtype(np.int32), None),
        Column("top1", id_dtype(len(identity.classes)), None),
        Column("shift", np.dtype(np.float32), None),
        *packing.codec.columns,
    )
    if identity.features is None:
        return columns
    return (*columns, Column("features", np.dtype(np.float16), identity.features))


def to_batch(block: LabelBlock, packing: Packing, schema: pa.Schema) -> pa.RecordBatch:
    """The block as Arrow columns in the shard's schema."""
    arrays: list[pa.Array] = [block.keys]
    if block.views is not None:
        arrays.append(pa.array(block.views, pa.uint16()))
    if block.lengths is not None:
        arrays.append(pa.array(block.lengths, pa.uint32()))
    starts = block.starts()
    for column in value_columns(packing):
        if column.name == "label" and block.lengths is None:
            arrays.append(block.labels)
        else:
            kind = schema.field(column.name).type
            arrays.append(_packed(column, column_values(block, column), kind, starts))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def to_block(table: pa.Table, packing: Packing) -> LabelBlock:
    """The block of a table whose columns have one chunk each.

    Raises ValueError, naming the key, where a row has other positions than its length says.
    """
    stored = {name: table[name].chunk(0) for name in table.column_names}
    identity = packing.identity
    lengths = stored["length"].to_numpy() if identity.positions else None
    label, *others = value_columns(packing)
    if lengths is not None:
        for column in (label, *others):
            _check_lengths(column, stored[column.name], lengths, stored["key"])
    values = {column.name: _unpacked(column, stored[column.name]) for column in others}
    if lengths is None:
        labels = stored["label"]
    else:
        labels = known_labels(_unpacked(label, stored["label"]))
    return LabelBlock(
        keys=stored["key"],
        labels=labels,
        top1=values.pop("top1"),
        shift=values.pop("shift"),
        features=values.pop("features") if identity.features is not None else None,
        payload=values,
        codec=packing.codec,
        views=stored["view"].to_numpy() if identity.views > 1 else None,
        lengths=lengths,
    )


def known_labels(labels: npt.NDArray[np.int32]) -> pa.Int32Array:
    """Hard labels as Arrow, null where they are -1."""
    return pa.array(labels, pa.int32(), mask=labels == UNKNOWN)


def _field(column: Column, packing: Packing) -> pa.Field:
    """One value or `width` of them, of each row or of each of its positions."""
    positions = packing.identity.positions
    kind = pa.from_numpy_dtype(column.dtype)
    if packing.layout == "lists":
        if column.width is not None:
            kind = pa.list_(pa.field("element", kind, nullable=False), column.width)
        if positions:
            kind = pa.large_list(pa.field("element", kind, nullable=False))
    elif positions or column.width is not None:
        size = column.dtype.itemsize * (column.width or 1)
        kind = pa.large_binary() if positions else pa.binary(size)
        shape = [-1] * positions + ([] if column.width is None else [column.width])
        metadata = {"dtype": column.dtype.name, "shape": json.dumps(shape)}
        return pa.field(column.name, kind, nullable=False, metadata=metadata)
    return pa.field(column.name, kind, nullable=column.name == "label" and not positions)


def column_values(block: LabelBlock, column: Column) -> Values:
    """The block's values of one stored column, a hard label that is unknown as -1."""
    match column.name:
        case "label":
            return cast("Values", block.labels.fill_null(UNKNOWN).to_numpy(zero_copy_only=False))
        case "top1":
            return block.top1
        case "shift":
            return block.shift
        case "features" if block.features is not None:
            return block.features
        case name:
            return block.payload[name]


def _packed(
    column: Column, values: Values, kind: pa.DataType, starts: npt.NDArray[np.int64]
) -> pa.Array:
    little = column.dtype.newbyteorder("<")
    values = np.ascontiguousarray(values.astype(little, copy=False))
    if pa.types.is_fixed_size_binary(kind):
        rows = len(starts) - 1
        return pa.FixedSizeBinaryArray.from_buffers(kind, rows, [None, pa.py_buffer(values)])
    if pa.types.is_large_binary(kind):
        offsets = pa.py_buffer(starts * (little.itemsize * (column.width or 1)))
        return pa.Array.from_buffers(kind, len(starts) - 1, [None, offsets, pa.py_buffer(values)])
    if pa.types.is_large_list(kind):
        inner = _packed(column, values, kind.value_type, np.arange(len(values) + 1))
        return pa.LargeListArray.from_arrays(pa.array(starts), inner, type=kind)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
    return pa.array(values)


def _unpacked(column: Column, stored: pa.Array) -> Values:
    little = column.dtype.newbyteorder("<")
    kind = stored.type
    if pa.types.is_large_list(kind):
        stored = stored.flatten()
        kind = stored.type
    if pa.types.is_fixed_size_list(kind):
        flat = stored.flatten().to_numpy()
    elif pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
        start, size = stored.offset * width, len(stored) * width
        flat = np.frombuffer(stored.buffers()[1], np.uint8, size, start).view(little)
    elif pa.types.is_large_binary(kind):
        flat = _joined_bytes(stored).view(little)
    else:
        return np.asarray(stored.to_numpy())
    return np.asarray(flat if column.width is None else flat.reshape(-1, column.width))


def _check_lengths(
    column: Column, stored: pa.Array, lengths: npt.NDArray[np.uint32], keys: pa.StringArray
) -> None:
    """Else every row behind a wrong one would get the values of others."""
    if pa.types.is_large_binary(stored.type):
        unit, what = column.dtype.itemsize * (column.width or 1), "bytes"
        sizes = pc.binary_length(stored).to_numpy()
    else:
        unit, what = 1, "values"
        sizes = stored.value_lengths().to_numpy()
    wrong = sizes != lengths.astype(np.int64) * unit
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"key {keys[row].as_py()!r} has length {lengths[row]}, but {sizes[row]} {what} of "
            f"{column.name} where {lengths[row] * unit} belong to it"
        )


def _joined_bytes(stored: pa.LargeBinaryArray) -> npt.NDArray[np.uint8]:
    if not len(stored):
        return np.zeros(0, np.uint8)
    offsets = np.frombuffer(stored.buffers()[1], np.int64)[stored.offset :]
    start, stop = int(offsets[0]), int(offsets[len(stored)])
    if start == stop:
        return np.zeros(0, np.uint8)
    return np.frombuffer(stored.buffers()[2], np.uint8, stop - start, start)
