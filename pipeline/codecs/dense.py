"""The dense codecs: every class of a row, in four, two or one byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from softlabel.pipeline.codecs.codec import Column, Columns, ShiftedRows, to_half
from softlabel.pipeline.codecs.numerics import Floats, log_sums


class Dense:
    """`dense-f32` and `dense-f16`: all C shifted logits, and their log-sums as a check.

    In float16, finite values below -65,504 are clamped to it, and only a true -inf stays one.
    """

    def __init__(self, dtype: str, num_classes: int, temperatures: Sequence[float]) -> None:
        self._dtype = np.dtype(dtype)
        self.temperatures = tuple(temperatures)
        self.columns = (
            Column("logits", self._dtype, num_classes),
            Column("lse", np.dtype(np.float32), len(temperatures)),
        )

    def encode(self, rows: ShiftedRows) -> Columns:
        """Columns `logits` `[N, C]` and `lse` `[N, K]`."""
        half = self._dtype == np.float16
        values = to_half(rows.d, rows.lowest) if half else rows.d
        return {"logits": values, "lse": log_sums(rows.d, self.temperatures)}

    def logits(self, columns: Columns, T: float) -> Floats:
        """The stored logits, whatever T is."""
        return columns["logits"].astype(np.float32, copy=False)


class DenseU8:
    """`dense-u8`: a byte a class on a square-root scale, fine where the mass is.

    With `r = max - min`: `q = max(1, rint(255 sqrt(-d / r)))`, 0 for the top-1 alone; decoded as
    `-r (q / 255)^2`.
    """

    def __init__(self, num_classes: int, temperatures: Sequence[float]) -> None:
        self.temperatures = tuple(temperatures)
        self.columns = (
            Column("logits", np.dtype(np.uint8), num_classes),
            Column("range", np.dtype(np.float32), None),
            Column("lse", np.dtype(np.float32), len(temperatures)),
        )

    def encode(self, rows: ShiftedRows) -> Columns:
        """Columns `logits` `[N, C]`, `range` `[N]`, `lse` `[N, K]`; -inf is refused."""
        spread = np.abs(rows.lowest)
        bad = ~np.isfinite(spread)
        if bad.any():
            raise ValueError("logits hold -inf, which dense-u8 cannot store", int(bad.argmax()))
        # A row of equal logits has no scale; any will do, for its steps are 0.
        scale = np.where(spread > 0, spread, np.float32(1))
        steps = np.divide(rows.d, -scale[:, None])
        np.sqrt(steps, out=steps)
        steps *= np.float32(255)
        packed = np.rint(steps, out=steps).astype(np.uint8)
        packed += packed == 0
        packed[np.arange(len(packed)), rows.top1] = 0
        return {"logits": packed, "range": spread, "lse": log_sums(rows.d, self.temperatures)}

    def logits(self, columns: Columns, T: float) -> Floats:
        """The decoded logits, whatever T is."""
        squares = (np.arange(256, dtype=np.float32) / np.float32(255)) ** 2
        return np.asarray(-columns["range"][:, None] * squares[columns["logits"]], np.float32)

    def bounds(self, columns: Columns) -> tuple[Floats, Floats]:
        """The lowest and the highest logits `[N, C]` that `encode` stores as these bytes."""
        q = columns["logits"].astype(np.float32)
        spread = columns["range"][:, None]
        lowest = -spread * np.square((q + np.float32(0.5) * (q > 0)) / np.float32(255))
        highest = -spread * np.square(np.where(q > 1, q - np.float32(0.5), 0) / np.float32(255))
        return np.asarray(lowest, np.float32), np.asarray(highest, np.float32)
