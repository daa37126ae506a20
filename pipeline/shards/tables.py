"""Label rows as Arrow tables with real list columns, for people and for other tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from softlabel.pipeline.shards.block import LabelBlock


def block_table(block: LabelBlock) -> pa.Table:
    """One row a label row; payload columns are lists, and of sequences lists of lists.

    Columns: key; view, with views; label, null where unknown; top1; shift; the codec's columns;
    features, where stored. Values are as stored: logits are shifted by the row's maximum.
    """
    starts = None if block.lengths is None else pa.array(block.starts())
    columns: dict[str, pa.Array] = {"key": block.keys}
    if block.views is not None:
        columns["view"] = pa.array(block.views)
    columns["label"] = _per_row(block.labels, starts)
    values: dict[str, npt.NDArray[Any]] = {"top1": block.top1, "shift": block.shift}
    values |= block.payload
    if block.features is not None:
        values["features"] = block.features
    for name, array in values.items():
        columns[name] = _per_row(_listed(array), starts)
    return pa.table(columns)


def _listed(values: npt.NDArray[Any]) -> pa.Array:
    """One value or a list of values an entry of the first axis."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if values.ndim == 1:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _per_row(values: pa.Array, starts: pa.Array | None) -> pa.Array:
    return values if starts is None else pa.LargeListArray.from_arrays(starts, values)
