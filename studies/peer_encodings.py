"""Other projects' encodings of soft labels, recomputed: probabilities at T = 1, not logits.

They keep k probabilities and class ids of a row. At another temperature they can only raise what
they kept to the power 1/T. Shapes: N rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.numerics import id_dtype, largest, softmax

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Kept:
    """The k largest probabilities of each row, as stored, and their class ids, `[N, k]`."""

    probs: npt.NDArray[np.floating]
    ids: npt.NDArray[np.intp]
    classes: int

    @property
    def bytes(self) -> int:
        """Bytes a row."""
        width = self.probs.dtype.itemsize + id_dtype(self.classes).itemsize
        return int(self.probs.shape[1] * width)


def keep(logits: Floats, k: int, dtype: type[np.floating]) -> Kept:
    """The k largest probabilities at T = 1 in `dtype`."""
    ids = largest(logits, k)
    probs = np.take_along_axis(softmax(logits, 1.0), ids, axis=1)
    return Kept(probs.astype(dtype), ids, logits.shape[1])


def uniform_tail(kept: Kept) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Log-probabilities `[N, C]` with one minus the kept sum spread evenly; rows that have one.

    In float16 as TinyViT (Wu et al. 2022), in float32 as FKD's marginal smoothing (Shen and Xing
    2021). Where rounding left nothing for the tail, or less, a row has no distribution.
    """
    probs = kept.probs.astype(np.float64)
    rest = 1 - probs.sum(axis=1)
    sound = (rest > 0) & (probs > 0).all(axis=1)
    tail = np.where(sound, rest, 1) / (kept.classes - probs.shape[1])
    full = np.repeat(np.log(tail)[:, None], kept.classes, axis=1)
    with np.errstate(divide="ignore"):
        np.put_along_axis(full, kept.ids, np.log(probs), axis=1)
    return full, sound


def renormalised(kept: Kept) -> Doubles:
    """Log-probabilities `[N, C]` of the kept part alone, as FKD's marginal re-norm."""
    full = np.full((len(kept.probs), kept.classes), -np.inf)
    with np.errstate(divide="ignore"):
        np.put_along_axis(full, kept.ids, np.log(kept.probs.astype(np.float64)), axis=1)
    return full
