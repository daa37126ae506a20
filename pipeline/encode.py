"""Packing logits into label rows and back: the codecs. Here, `dense-f16`.

Shapes: N rows, C classes, K temperatures. Logits are stored in log space, shifted by the row's
maximum before the cast: softmax does not see the shift, and float16 is exact where the mass is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LARGEST_HALF = np.float32(65504)
# The float16 subnormal nearest to zero: a value that is not the maximum never rounds into a tie.
NEAREST_BELOW_ZERO = np.float16(-6e-8)


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """N label rows: payload float16 `[N, C]`, shift float32 `[N]`, top1 `[N]`, lse `[N, K]`."""

    payload: npt.NDArray[np.float16]
    shift: npt.NDArray[np.float32]
    top1: npt.NDArray[np.unsignedinteger]
    lse: npt.NDArray[np.float32]


def encode_dense_f16(
    logits: npt.NDArray[np.float32], temperatures: Sequence[float]
) -> EncodedBlock:
    """Pack float32 logits `[N, C]`.

    payload: `z - max(z)`, finite values below -65,504 clamped to it, a true -inf kept. top1: the
    arg-max, the lowest id among equals. lse: `logsumexp((z - max(z)) / T)`, between 0 and ln C.
    Raises ValueError with the row's number in `args[1]` where a row holds NaN, +inf or only -inf.
    """
    shift = logits.max(axis=1)
    bad = ~np.isfinite(shift)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"logits hold {_what(shift[row])}", row)
    with np.errstate(over="ignore"):
        shifted = logits - shift[:, None]
    return EncodedBlock(
        payload=_to_half(shifted, logits),
        shift=shift,
        top1=logits.argmax(axis=1).astype(id_dtype(logits.shape[1])),
        lse=log_sums(shifted, temperatures),
    )


def log_sums(
    shifted: npt.NDArray[np.float32], temperatures: Sequence[float]
) -> npt.NDArray[np.float32]:
    """`logsumexp(shifted / T)` for each temperature, `[N, K]`, of rows whose maximum is 0."""
    with np.errstate(over="ignore"):  # what is too far below is -inf, without mass
        sums = [
            np.exp(shifted * np.float32(1 / temperature)).sum(axis=1)
            for temperature in temperatures
        ]
    return np.asarray(np.log(np.stack(sums, axis=1)))


def kl_sums(
    logits: npt.NDArray[np.float32],
    stored: npt.NDArray[np.float16],
    temperatures: Sequence[float],
) -> tuple[float, ...]:
    """KL(softmax(z/T) || softmax(stored/T)) summed over the rows, in nats, per temperature."""
    result = []
    for temperature in temperatures:
        full = _log_softmax(logits.astype(np.float64) / temperature)
        kept = _log_softmax(stored.astype(np.float64) / temperature)
        # A masked class has no mass on either side; its -inf - -inf must not count.
        with np.errstate(invalid="ignore"):
            terms = np.where(np.isneginf(full), 0.0, np.exp(full) * (full - kept))
        result.append(float(terms.sum()))
    return tuple(result)


def softmax(logits: npt.NDArray[np.floating], temperature: float) -> npt.NDArray[np.float32]:
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


def _to_half(
    shifted: npt.NDArray[np.float32], logits: npt.NDArray[np.float32]
) -> npt.NDArray[np.float16]:
    clamped = np.maximum(shifted, -LARGEST_HALF)
    half = clamped.astype(np.float16)
    half[(half == 0) & (shifted < 0)] = NEAREST_BELOW_ZERO
    masked = np.isneginf(logits)
    if masked.any():
        half[masked] = -np.inf
    return half


def _log_softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _what(largest: np.float32) -> str:
    if np.isnan(largest):
        return "NaN"
    return "+inf" if largest > 0 else "nothing but -inf"
