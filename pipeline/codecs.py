"""The codecs: how a row's logits are packed into columns, and read back at a temperature.

Shapes: N rows, C classes, k kept classes, K recorded temperatures. `d` are logits shifted by
their row's maximum, so the largest is 0; softmax does not see the shift. Order is value
descending, id ascending, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Columns = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float32]

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
    """What every codec packs: d `[N, C]`, shift `[N]`, top1 `[N]`, whether a class is masked."""

    d: Floats
    shift: Floats
    top1: npt.NDArray[np.unsignedinteger]
    masked: bool


class Codec(Protocol):
    """Packs rows into columns and reads them back; columns are what a shard stores."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """The payload columns, in stored order."""

    def encode(self, rows: ShiftedRows) -> Columns:
        """Pack rows; raises ValueError with the row's number in `args[1]` where it cannot."""

    def logits(self, columns: Columns, T: float) -> Floats:
        """Float32 `[N, C]` whose `softmax(. / T)` are the soft targets at T."""


class Dense:
    """`dense-f32` and `dense-f16`: all C shifted logits, and their log-sums as a check.

    In float16, finite values below -65,504 are clamped to it, and only a true -inf stays one.
    """

    def __init__(self, dtype: str, num_classes: int, temperatures: Sequence[float]) -> None:
        self._dtype = np.dtype(dtype)
        self._temperatures = temperatures
        self.columns = (
            Column("logits", self._dtype, num_classes),
            Column("lse", np.dtype(np.float32), len(temperatures)),
        )

    def encode(self, rows: ShiftedRows) -> Columns:
        """Columns `logits` `[N, C]` and `lse` `[N, K]`."""
        values = to_half(rows) if self._dtype == np.float16 else rows.d
        return {"logits": values, "lse": log_sums(rows.d, self._temperatures)}

    def logits(self, columns: Columns, T: float) -> Floats:
        """The stored logits, whatever T is."""
        return columns["logits"].astype(np.float32, copy=False)


class DenseU8:
    """`dense-u8`: a byte a class on a square-root scale, fine where the mass is.

    With `r = max - min`: `q = max(1, rint(255 sqrt(-d / r)))`, 0 for the top-1 alone; decoded as
    `-r (q / 255)^2`.
    """

    def __init__(self, num_classes: int, temperatures: Sequence[float]) -> None:
        self._temperatures = temperatures
        self.columns = (
            Column("logits", np.dtype(np.uint8), num_classes),
            Column("range", np.dtype(np.float32), None),
            Column("lse", np.dtype(np.float32), len(temperatures)),
        )

    def encode(self, rows: ShiftedRows) -> Columns:
        """Columns `logits` `[N, C]`, `range` `[N]`, `lse` `[N, K]`; -inf is refused."""
        spread = -rows.d.min(axis=1)
        bad = ~np.isfinite(spread)
        if bad.any():
            raise ValueError("logits hold -inf, which dense-u8 cannot store", int(bad.argmax()))
        # A row of equal logits has no scale; any will do, for its steps are 0.
        scale = np.where(spread > 0, spread, np.float32(1))
        steps = np.sqrt(-rows.d / scale[:, None])
        steps *= np.float32(255)
        packed = np.maximum(np.rint(steps, out=steps), 1).astype(np.uint8)
        packed[np.arange(len(packed)), rows.top1] = 0
        return {"logits": packed, "range": spread, "lse": log_sums(rows.d, self._temperatures)}

    def logits(self, columns: Columns, T: float) -> Floats:
        """The decoded logits, whatever T is."""
        squares = (np.arange(256, dtype=np.float32) / np.float32(255)) ** 2
        return np.asarray(-columns["range"][:, None] * squares[columns["logits"]], np.float32)


class TopK:
    """`topk`: the k largest logits in float16, and the log-sum of the rest at each temperature.

    Kept and tail sum to one by construction. Between recorded temperatures the tail's log-sum is
    interpolated in 1/T, where it is convex, with the end point ln(C-k) at 1/T = 0; below the
    smallest recorded temperature it is an error. The tail's shape is uniform.
    """

    def __init__(self, k: int, num_classes: int, temperatures: Sequence[float]) -> None:
        if not 1 <= k < num_classes:
            raise ValueError(f"k must be from 1 to {num_classes - 1}, got {k}")
        self._k = k
        self._classes = num_classes
        self._temperatures = np.asarray(temperatures, np.float64)
        self.columns = (
            Column("ids", id_dtype(num_classes), k),
            Column("logits", np.dtype(np.float16), k),
            Column("tail_lse", np.dtype(np.float32), len(temperatures)),
        )

    def encode(self, rows: ShiftedRows) -> Columns:
        """Columns `ids` `[N, k]`, `logits` `[N, k]`, `tail_lse` `[N, K]`."""
        ids = largest(rows.d, self._k)
        kept = np.take_along_axis(rows.d, ids, axis=1)
        tail = rows.d.copy()
        np.put_along_axis(tail, ids, -np.inf, axis=1)
        part = ShiftedRows(kept, rows.shift, rows.top1, rows.masked)
        return {
            "ids": ids.astype(id_dtype(self._classes)),
            "logits": to_half(part),
            "tail_lse": self._tail_sums(tail),
        }

    def logits(self, columns: Columns, T: float) -> Floats:
        """The kept logits, and for the rest the one value that gives the tail its mass at T."""
        kept = columns["logits"].astype(np.float32)
        tail = T * (self.tail_lse(columns, T) - np.log(self._classes - self._k))
        full = np.empty((len(kept), self._classes), np.float32)
        # Rounding must not lift a class that was left out above one that was kept.
        full[:] = np.minimum(tail, kept[:, -1])[:, None]
        np.put_along_axis(full, columns["ids"].astype(np.int64), kept, axis=1)
        return full

    def tail_lse(self, columns: Columns, T: float) -> npt.NDArray[np.float64]:
        """`logsumexp(d / T)` over the classes that were not kept, `[N]`."""
        lowest = self._temperatures.min()
        if T < lowest:
            raise ValueError(
                f"temperature {T:g} is below {lowest:g}, the smallest that this topk set recorded"
            )
        order = np.argsort(self._temperatures)[::-1]
        points = np.concatenate([[0.0], 1 / self._temperatures[order]])
        right = max(1, int(np.searchsorted(points, 1 / T, side="left")))
        upper = columns["tail_lse"][:, order[right - 1]].astype(np.float64)
        weight = (1 / T - points[right - 1]) / (points[right] - points[right - 1])
        if weight == 1:
            return upper
        if right == 1:
            lower = np.full_like(upper, np.log(self._classes - self._k))
        else:
            lower = columns["tail_lse"][:, order[right - 2]].astype(np.float64)
        return np.where(np.isneginf(upper), upper, (1 - weight) * lower + weight * upper)

    def _tail_sums(self, tail: Floats) -> Floats:
        """Log-sums around the tail's own maximum: a small tail must not vanish."""
        highest = tail.max(axis=1)
        empty = np.isneginf(highest)
        anchor = np.where(empty, np.float32(0), highest)
        sums = log_sums(tail - anchor[:, None], self._temperatures.tolist(), empty)
        result = sums + anchor[:, None] / self._temperatures.astype(np.float32)
        return result.astype(np.float32)


def make_codec(name: str, k: int | None, num_classes: int, temperatures: Sequence[float]) -> Codec:
    """The codec called `name`; `k` for `topk` alone. Raises ValueError for impossible values."""
    if name == "topk":
        if k is None:
            raise ValueError("codec topk needs k")
        return TopK(k, num_classes, temperatures)
    if name == "dense-u8":
        return DenseU8(num_classes, temperatures)
    return Dense({"dense-f32": "<f4", "dense-f16": "<f2"}[name], num_classes, temperatures)


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


def log_sums(
    d: Floats, temperatures: Sequence[float], empty: npt.NDArray[np.bool_] | None = None
) -> Floats:
    """`logsumexp(d / T)` for each temperature, `[N, K]`; -inf for the rows marked `empty`."""
    with np.errstate(over="ignore"):  # what is too far below is -inf, without mass
        scaled = [d * np.float32(1 / temperature) for temperature in temperatures]
    sums = np.stack([np.exp(values).sum(axis=1) for values in scaled], axis=1)
    if empty is not None:
        sums[empty] = 1
    logs = np.log(sums)
    if empty is not None:
        logs[empty] = -np.inf
    return np.asarray(logs)


def largest(values: Floats, k: int) -> npt.NDArray[np.intp]:
    """Ids of the k largest values of each row, value descending, id ascending among equals."""
    candidates = np.argpartition(values, values.shape[1] - k, axis=1)[:, -k:]
    candidates.sort(axis=1)
    kept = np.take_along_axis(values, candidates, axis=1)
    # Where the smallest kept value stands outside too, the partition chose among equals.
    torn = (values >= kept.min(axis=1, keepdims=True)).sum(axis=1) > k
    order = np.argsort(-kept, axis=1, kind="stable")
    ids = np.take_along_axis(candidates, order, axis=1)
    if torn.any():
        ids[torn] = np.argsort(-values[torn], axis=1, kind="stable")[:, :k]
    return ids


def kl_sums(
    logits: Floats, decoded: Sequence[npt.NDArray[np.floating]], temperatures: Sequence[float]
) -> tuple[float, ...]:
    """KL(softmax(z/T) || softmax(decoded/T)) summed over the rows, in nats, per temperature."""
    result = []
    for values, temperature in zip(decoded, temperatures, strict=True):
        full = log_softmax(logits.astype(np.float64) / temperature)
        kept = log_softmax(values.astype(np.float64) / temperature)
        # A masked class has no mass on either side; its -inf - -inf must not count.
        with np.errstate(invalid="ignore"):
            terms = np.where(np.isneginf(full), 0.0, np.exp(full) * (full - kept))
        result.append(float(terms.sum()))
    return tuple(result)


def log_softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log-softmax over the last axis, in float64."""
    shifted = values - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def softmax(logits: npt.NDArray[np.floating], temperature: float) -> Floats:
    """`softmax(z / T)` over the last axis, float32, for logits of any shift."""
    scaled = logits.astype(np.float32)
    with np.errstate(over="ignore"):  # what is too far below is -inf, without mass
        scaled -= scaled.max(axis=-1, keepdims=True)
        scaled /= np.float32(temperature)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=-1, keepdims=True)
    return scaled


def id_dtype(classes: int) -> np.dtype[np.unsignedinteger]:
    """The integer type of class ids: uint16 up to 65,536 classes, uint32 beyond."""
    return np.dtype(np.uint16) if classes <= 2**16 else np.dtype(np.uint32)


def _what(largest_value: np.float32) -> str:
    if np.isnan(largest_value):
        return "NaN"
    return "+inf" if largest_value > 0 else "nothing but -inf"
