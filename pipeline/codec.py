"""What every codec shares: its columns, the shifted rows it packs, and the cast to float16.

Shapes: N rows, C classes, k kept classes, K recorded temperatures. `d` are logits shifted by
their row's maximum, so the largest is 0; softmax does not see the shift. Order is value
descending, id ascending, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.numerics import Floats, id_dtype

Columns = Mapping[str, npt.NDArray[Any]]
LARGEST_HALF = np.float32(65504)
# The float16 subnormal nearest to zero: a value that is not the maximum never rounds into a tie.
NEAREST_BELOW_ZERO = np.float16(-6e-8)


@dataclass(frozen=True, slots=True)
class Column:
    """One stored column: `width` values of `dtype` a row, or a single one where width is None."""

    name: str
    dtype: np.dtype[Any]
    width: int | None


@dataclass(frozen=True, slots=True)
class ShiftedRows:
    """What every codec packs: d `[N, C]`, shift `[N]`, top1 `[N]`, whether a class is masked.

    features: the inputs of the teacher's last layer, float32 `[N, width]`, where they were asked
    for.
    """

    d: Floats
    shift: Floats
    top1: npt.NDArray[np.unsignedinteger]
    masked: bool
    features: Floats | None = None


class Codec(Protocol):
    """Packs rows into columns and reads them back; columns are what a shard stores."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """The payload columns, in stored order."""

    def encode(self, rows: ShiftedRows) -> Columns:
        """Pack rows; raises ValueError with the row's number in `args[1]` where it cannot."""

    def logits(self, columns: Columns, T: float) -> Floats:
        """Float32 `[N, C]` whose `softmax(. / T)` are the soft targets at T.

        `columns` are those that `encode` gave, and `top1`.
        """


def shift_rows(logits: Floats) -> ShiftedRows:
    """Shift float32 logits `[N, C]` by their rows' maxima.

    Raises ValueError with the row's number in `args[1]` where a row holds NaN, +inf or only -inf.
    """
    shift = logits.max(axis=1)
    bad = ~np.isfinite(shift)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"logits hold {_what(shift[row])}", row)
    with np.errstate(over="ignore"):
        d = logits - shift[:, None]
    masked = bool(np.isneginf(d).any())
    if masked:
        # A finite logit whose distance overflowed is the smallest number, not a masked class.
        d[np.isneginf(d) & ~np.isneginf(logits)] = np.finfo(np.float32).min
        masked = bool(np.isneginf(d).any())
    top1 = logits.argmax(axis=1).astype(id_dtype(logits.shape[1]))
    return ShiftedRows(d, shift, top1, masked)


def to_half(rows: ShiftedRows) -> npt.NDArray[np.float16]:
    """d in float16: clamped at -65,504, -inf kept, and nothing but a maximum is 0."""
    half = np.maximum(rows.d, -LARGEST_HALF).astype(np.float16)
    half[(half == 0) & (rows.d < 0)] = NEAREST_BELOW_ZERO
    if rows.masked:
        half[np.isneginf(rows.d)] = -np.inf
    return half


def _what(largest_value: np.float32) -> str:
    if np.isnan(largest_value):
        return "NaN"
    return "+inf" if largest_value > 0 else "nothing but -inf"
