"""Masks: the hard labels of a picture's pixels, read at the positions that labels are of.

A mask holds the number of a class in each pixel. Position (i, j) of a grid has the label of the
pixel at its centre, in the part of the picture that the model sees: no two classes are mixed.
Pixels of 255, as Pascal VOC marks borders, of -1 and of -100 have no label; with more than 255
classes 255 is one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from softlabel.pipeline.sources.label_columns import IGNORED, UNKNOWN
from softlabel.pipeline.sources.pictures import (
    BadPicture,
    Decoder,
    decoded_mask,
    picture_shape,
)
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import Framing, Grid

BORDER = 255


def mask_labels(
    rows: ShardRows,
    shape: tuple[int, int, int],
    framing: Framing | None,
    grid: Grid,
    classes: int,
    decoder: Decoder,
) -> tuple[pa.LargeListArray, dict[int, str]]:
    """Labels int32 of each position of each picture, null where unknown; why rows have none.

    The labels of `rows` are masks: encoded, or lists of the pixels of a picture that is stored as
    an array. shape: of pictures as they are seen. framing: how encoded ones come to it; None for
    arrays, which have it.
    """
    bad: dict[int, str] = {}
    if framing is None:
        height, width, _ = shape
        masks = rows.labels.flatten().to_numpy(zero_copy_only=False).reshape(-1, height, width)
        down, across = _places((height, width), framing, grid)
        values = masks[:, down[:, None], across]
    else:
        pictures, encoded = cast("Sequence[bytes | None]", rows.pictures), rows.labels

        def one(row: int) -> Array:
            return _read(encoded[row].as_py(), pictures[row], framing, grid)

        values, bad = decoder.make_all(len(rows.keys), grid, one, np.int32)
        values[list(bad)] = UNKNOWN
    return _known_labels(values.reshape(-1, math.prod(grid)), classes), bad


def unknown_labels(rows: int, grid: Grid) -> pa.LargeListArray:
    """Labels of each position of so many pictures, none of them known."""
    each = math.prod(grid)
    return _lists(pa.nulls(rows * each, pa.int32()), each)


def _known_labels(values: Array, classes: int) -> pa.LargeListArray:
    """Lists of int32 of `[N, positions]`, null where there is no label.

    classes: how many there are; 0 where that is not known.
    """
    wide = values.astype(np.int64)
    unknown = (wide == UNKNOWN) | (wide == IGNORED)
    if classes <= BORDER:
        unknown |= wide == BORDER
    # What int32 cannot hold is refused with all that is no class.
    limits = np.iinfo(np.int32)
    fitting = wide.clip(limits.min, limits.max).astype(np.int32)
    return _lists(pa.array(fitting.ravel(), mask=unknown.ravel()), values.shape[1])


def _lists(values: pa.Int32Array, each: int) -> pa.LargeListArray:
    starts = pa.array(np.arange(len(values) // each + 1) * each)
    return pa.LargeListArray.from_arrays(starts, values)


def _read(data: bytes | None, picture: bytes | None, framing: Framing, grid: Grid) -> Array:
    """The labels of one picture's positions, all unknown without a mask. Raises BadPicture."""
    if data is None:
        return np.full(grid, UNKNOWN)
    mask, size = decoded_mask(data), picture_shape(picture)[:2]
    if mask.shape != size:
        raise BadPicture(
            f"its mask is {mask.shape[0]}x{mask.shape[1]}, the picture {size[0]}x{size[1]}; make "
            "them alike"
        )
    down, across = _places(size, framing, grid)
    return mask[down[:, None], across]


def _places(
    size: tuple[int, int], framing: Framing | None, grid: Grid
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows and the columns of a picture of `size` in which the centres of positions lie.

    In whole numbers, so that they are the same for each size that a picture is scaled to.
    """
    seen = None if framing is None or framing.resize is None else framing
    if seen is None:
        parts = [(side, 1) for side in size]
    else:
        # What is cropped, in pixels of the picture before it was scaled.
        parts = [(side * min(size), seen.resize or 1) for side in (seen.height, seen.width)]
    down, across = (
        (side * count * scale + (2 * np.arange(count) + 1 - count) * part) // (2 * count * scale)
        for side, count, (part, scale) in zip(size, grid, parts, strict=True)
    )
    return down, across
