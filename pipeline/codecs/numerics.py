"""Arithmetic over rows of logits: softmax, log-sums, divergence and the k largest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
# Each square doubles the relative error of float32's exp, which is about 1e-7: after three, sums of
# many equal terms are off by 1.1e-6.
MOST_SQUARES = 2
LANES_A_KEPT = 8


def log_sums(
    d: Floats, temperatures: Sequence[float], empty: npt.NDArray[np.bool_] | None = None
) -> Floats:
    """`logsumexp(d / T)` for each temperature, `[N, K]`; -inf for the rows marked `empty`.

    A sum over `exp(d / T)` comes from the squares of `exp(d / 2T)` where 2T is asked too: within
    1e-6 of the exact sum.
    """
    sums = np.empty((len(d), len(temperatures)), np.float32)
    powers = np.empty_like(d)
    squared, above = MOST_SQUARES, 0.0
    for index in sorted(range(len(temperatures)), key=lambda index: -temperatures[index]):
        if above == 2 * temperatures[index] and squared < MOST_SQUARES:
            np.multiply(powers, powers, out=powers)
            squared += 1
        else:
            scale = np.float32(1 / temperatures[index])
            with np.errstate(over="ignore"):  # what is too far below is -inf, without mass
                scaled = d if scale == 1 else np.multiply(d, scale, out=powers)
            np.exp(scaled, out=powers)
            squared = 0
        above = temperatures[index]
        np.add.reduce(powers, axis=1, out=sums[:, index])
    if empty is not None:
        sums[empty] = 1
    logs = np.log(sums, out=sums)
    if empty is not None:
        logs[empty] = -np.inf
    return logs


def largest(values: Floats, k: int) -> npt.NDArray[np.intp]:
    """Ids `[N, k]` of the k largest values of each row, value descending, id ascending if equal.

    values: C-contiguous `[N, C]`, without NaN. Where there are many, the classes are dealt to
    lanes: the k-th largest of the lanes' maxima is no larger than the k-th largest value, and few
    values reach it.
    """
    lanes = LANES_A_KEPT * k
    highest = _lane_maxima(values, lanes) if values.shape[1] >= 2 * lanes else values
    last = highest.shape[1] - k
    limit = np.partition(highest, last, axis=1)[:, last]
    reached = values >= limit[:, None]
    counts = np.count_nonzero(reached, axis=1)
    crowded = counts > lanes  # by equal values
    if crowded.any():
        reached[crowded], counts[crowded] = False, 0
    ids = _sorted_by_row(values, reached, counts, k)
    if crowded.any():
        ids[crowded] = np.argsort(-values[crowded], axis=1, kind="stable")[:, :k]
    return ids


def _lane_maxima(values: Floats, lanes: int) -> Floats:
    """The maxima over every `lanes`-th class, `[N, lanes]`; an incomplete last round is left out.

    Rounds are rows of memory, so that the maximum is taken over long vectors.
    """
    rows, classes = values.shape
    size = values.itemsize
    shape, strides = (rows, classes // lanes, lanes), (classes * size, lanes * size, size)
    dealt = np.lib.stride_tricks.as_strided(values, shape, strides, writeable=False)
    return np.asarray(dealt.max(axis=1))


def _sorted_by_row(
    values: Floats, reached: npt.NDArray[np.bool_], counts: npt.NDArray[np.intp], k: int
) -> npt.NDArray[np.intp]:
    """Ids of the k largest of the values marked `reached`, of which a row has at least k."""
    rows, classes = values.shape
    places = np.flatnonzero(reached)
    row = np.repeat(np.arange(rows), counts)
    slot = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = max(k, int(counts.max(initial=0)))
    found = np.full((rows, width), np.inf, np.float32)
    found[row, slot] = -values.reshape(-1)[places]
    ids = np.zeros((rows, width), np.intp)
    ids[row, slot] = places - row * classes
    order = np.argsort(found, axis=1, kind="stable")[:, :k]
    order += np.arange(rows)[:, None] * width
    return ids.reshape(-1)[order]


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
