"""What every codec shares: its columns, the shifted rows it packs, and the cast to float16.

Shapes: N rows, C classes, k kept classes, K recorded temperatures. `d` are logits shifted by
their row's maximum, so the largest is 0; softmax does not see the shift. Order is value
descending, id ascending, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.numerics import Floats, id_dtype

Columns = Mapping[str, npt.NDArray[Any]]
LARGEST_HALF = np.float32(65504)
# The float16 subnormal nearest to zero: a value that is not the maximum never rounds into a tie.
NEAREST_BELOW_ZERO = np.float16(-6e-8)
SMALLEST_NORMAL_HALF = np.float32(2**-14)
# From float32 to float16: the exponent's bias, half a unit in the last place, and the sign bit.
TO_HALF = np.uint32((2**32 - (112 << 23) + 0xFFF + (1 << 28)) % 2**32)
# Rows are packed in chunks of so many values: all that is done to one stays in the L2 cache.
CHUNK_VALUES = 2**16


@dataclass(frozen=True, slots=True)
class Column:
    """One stored column: `width` values of `dtype` a row, or a single one where width is None."""

    name: str
    dtype: np.dtype[Any]
    width: int | None


@dataclass(frozen=True, slots=True)
class ShiftedRows:
    """What every codec packs: d `[N, C]`, C-contiguous, shift `[N]`, top1 `[N]`.

    lowest: smallest d of each row, `[N]`. masked: whether any of them is -inf. features: for
    `factored` the inputs of the teacher's last layer, float32 `[N, width]`.
    """

    d: Floats
    shift: Floats
    top1: npt.NDArray[np.unsignedinteger]
    lowest: Floats
    masked: bool
    features: Floats | None = None


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """What a shard stores of N rows: shift `[N]`, top1 `[N]`, and the codec's columns."""

    shift: Floats
    top1: npt.NDArray[np.unsignedinteger]
    columns: Columns


class Decoder(Protocol):
    """Reads rows back from their columns."""

    def logits(self, columns: Columns, T: float) -> Floats:
        """Float32 `[N, C]` whose `softmax(. / T)` are the soft targets at T.

        `columns` are those that were packed, and `top1`.
        """


class Codec(Decoder, Protocol):
    """Packs rows into columns and reads them back; columns are what a shard stores."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """The payload columns, in stored order."""

    def encode(self, rows: ShiftedRows) -> Columns:
        """Pack rows; raises ValueError with the row's number in `args[1]` where it cannot."""


def encode_rows(codec: Codec, logits: Floats, features: Floats | None = None) -> EncodedRows:
    """Float32 logits `[N, C]`, and features `[N, d]` where the codec packs those, as stored.

    Raises ValueError with the row's number in `args[1]` where a row cannot be packed.
    """
    rows, classes = logits.shape
    shift = np.empty(rows, np.float32)
    top1 = np.empty(rows, id_dtype(classes))
    columns = {
        column.name: np.empty(_shape(rows, column.width), column.dtype) for column in codec.columns
    }
    size = max(1, CHUNK_VALUES // classes)
    for first in range(0, rows, size):
        part = slice(first, first + size)
        try:
            chunk = shift_rows(logits[part])
            if features is not None:
                chunk = replace(chunk, features=features[part])
            packed = codec.encode(chunk)
        except ValueError as error:
            reason, row = error.args
            raise ValueError(reason, first + row) from error
        shift[part], top1[part] = chunk.shift, chunk.top1
        for name, values in packed.items():
            columns[name][part] = values
    return EncodedRows(shift, top1, columns)


def shift_rows(logits: Floats) -> ShiftedRows:
    """Shift float32 logits `[N, C]` by their rows' maxima.

    Raises ValueError with the row's number in `args[1]` where a row holds NaN, +inf or only -inf.
    """
    top1 = logits.argmax(axis=1)
    shift = logits[np.arange(len(logits)), top1]
    bad = ~np.isfinite(shift)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"logits hold {_what(shift[row])}", row)
    with np.errstate(over="ignore"):
        d = np.subtract(logits, shift[:, None], order="C")
    lowest = d.min(axis=1)
    masked = bool(np.isneginf(lowest).any())
    if masked:
        # A finite logit whose distance overflowed is the smallest number, not a masked class.
        d[np.isneginf(d) & ~np.isneginf(logits)] = np.finfo(np.float32).min
        lowest = d.min(axis=1)
        masked = bool(np.isneginf(lowest).any())
    return ShiftedRows(d, shift, top1.astype(id_dtype(logits.shape[1])), lowest, masked)


def to_half(d: Floats, lowest: Floats) -> npt.NDArray[np.float16]:
    """Shifted logits in float16: clamped at -65,504, -inf kept, and nothing but a maximum is 0.

    Rounds to the nearest, ties to even, as NumPy's cast does, which takes a value at a time: in
    whole-array steps on the bits, but for the few values below float16's normal range.
    """
    values = d if lowest.min(initial=0) >= -LARGEST_HALF else np.maximum(d, -LARGEST_HALF)
    bits = values.view(np.uint32)
    rounded = np.right_shift(bits, 13)
    rounded &= np.uint32(1)
    rounded += bits
    rounded += TO_HALF
    rounded >>= np.uint32(13)
    half = rounded.astype(np.uint16).view(np.float16)
    small = np.flatnonzero(values > -SMALLEST_NORMAL_HALF)
    half.reshape(-1)[small] = _small_to_half(values.reshape(-1)[small])
    if np.isneginf(lowest).any():
        half[np.isneginf(d)] = -np.inf
    return half


def features_to_half(features: Floats) -> npt.NDArray[np.float16]:
    """Features `[N, width]` in float16.

    Raises ValueError with the row's number in `args[1]` where float16 cannot hold one.
    """
    bad = ~(np.abs(features) <= LARGEST_HALF).all(axis=1)
    if bad.any():
        raise ValueError("features are beyond 65,504, the end of float16", int(bad.argmax()))
    return features.astype(np.float16)


def _small_to_half(values: Floats) -> npt.NDArray[np.float16]:
    half = values.astype(np.float16)
    half[(half == 0) & (values < 0)] = NEAREST_BELOW_ZERO
    half[values == 0] = 0
    return half


def _shape(rows: int, width: int | None) -> tuple[int, ...]:
    return (rows,) if width is None else (rows, width)


def _what(largest_value: np.float32) -> str:
    if np.isnan(largest_value):
        return "NaN"
    return "+inf" if largest_value > 0 else "nothing but -inf"
