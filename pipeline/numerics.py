"""Arithmetic over rows of logits: softmax, log-sums, divergence and the k largest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


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
