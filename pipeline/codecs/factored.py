"""The codec `factored`: the inputs of the teacher's last linear layer, and that layer once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from softlabel.pipeline.codecs.codec import (
    SMALLEST_NORMAL_HALF,
    Column,
    Columns,
    ShiftedRows,
    features_to_half,
)
from softlabel.pipeline.codecs.numerics import Floats, log_sums
from softlabel.schemas.errors import DataError

# The largest |head(features) - logits| allowed, as a part of the largest |logit|.
HEAD_TOLERANCE = 1e-3
# Half a unit in float16's last place, as a part of the value.
HALF_STEP = np.float32(2**-11)


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer: `logits = features @ weight.T + bias`; weight `[C, d]`, bias `[C]`."""

    weight: Floats
    bias: Floats

    def to_bytes(self) -> bytes:
        """The head as a safetensors file; the same head gives the same bytes."""
        parts = {"weight": self.weight, "bias": self.bias}
        return save({name: np.ascontiguousarray(values) for name, values in parts.items()})

    def digest(self) -> str:
        """SHA-256 of the head's file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def take(self, classes: Sequence[int]) -> Head:
        """The head of these classes, in this order."""
        rows = np.asarray(classes)
        return Head(self.weight[rows], self.bias[rows])

    def logits(self, features: npt.NDArray[np.floating]) -> Floats:
        """Float32 logits `[N, C]` of features `[N, d]`."""
        full = features.astype(np.float32, copy=False) @ self.weight.T
        full += self.bias
        return full


def read_head(path: Path, sha256: str | None, verb: str) -> Head:
    """The head in `path`. Raises DataError where it is missing, damaged or another one.

    verb: the one that made the set, and writes a lost head again.
    """
    remedy = f"run the same 'softlabel {verb}' again: it writes the head and keeps the shards"
    try:
        data = path.read_bytes()
        tensors = load(data)
        head = Head(tensors["weight"], tensors["bias"])
    except (FileNotFoundError, SafetensorError, KeyError) as error:
        raise DataError(f"{path}: the head is missing or damaged; {remedy}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{path}: is not the head of these labels (other SHA-256); {remedy}")
    return head


class Factored:
    """`factored`: d features in float16 instead of C logits, where d < C.

    The logits at any T are those of the head over the stored features; only the features'
    rounding is lost. The stored top-1 settles the arg-max.
    """

    def __init__(self, head: Head, temperatures: Sequence[float]) -> None:
        self.head = head
        self.temperatures = tuple(temperatures)
        self.columns = (
            Column("features", np.dtype("<f2"), head.weight.shape[1]),
            Column("lse", np.dtype(np.float32), len(temperatures)),
        )

    def encode(self, rows: ShiftedRows) -> Columns:
        """Columns `features` `[N, d]` and `lse` `[N, K]`; what float16 cannot hold is refused."""
        if rows.features is None:
            raise ValueError("codec factored needs the features of the teacher's last layer", 0)
        features = features_to_half(rows.features)
        if rows.masked:
            bad = (np.isneginf(rows.d) & np.isfinite(self.head.bias)).any(axis=1)
            if bad.any():
                row = int(bad.argmax())
                raise ValueError("logits hold -inf, which factored cannot store", row)
        return {"features": features, "lse": log_sums(rows.d, self.temperatures)}

    def logits(self, columns: Columns, T: float) -> Floats:
        """The head over the stored features, shifted by the row's maximum, whatever T is."""
        full = self.head.logits(columns["features"])
        highest = full.max(axis=1)
        moved = np.flatnonzero(full.argmax(axis=1) != columns["top1"])
        highest[moved] = np.nextafter(highest[moved], np.float32(np.inf))
        full[moved, columns["top1"][moved]] = highest[moved]
        full -= highest[:, None]
        return full

    def slack(self, columns: Columns) -> Floats:
        """How far the teacher's logits may lie from the head over the stored features, `[N]`.

        What float16 may have moved, and what the teacher's own arithmetic may differ.
        """
        features = columns["features"].astype(np.float32)
        half_steps = np.maximum(np.abs(features) * HALF_STEP, HALF_STEP * SMALLEST_NORMAL_HALF)
        moved = half_steps @ np.abs(self.head.weight).T
        full = np.abs(self.head.logits(features))
        largest = np.where(np.isfinite(full), full, 0).max(axis=1)
        return np.asarray(moved.max(axis=1) + HEAD_TOLERANCE * largest)


@dataclass(frozen=True, slots=True)
class FactoredRows:
    """N rows as they are stored, for who multiplies by the head.

    features: float16 `[N, d]`. top1 `[N]`.
    """

    codec: Factored
    features: npt.NDArray[np.float16]
    top1: npt.NDArray[np.unsignedinteger]

    def take(self, rows: npt.NDArray[np.integer]) -> FactoredRows:
        """The rows of these numbers, in this order."""
        return FactoredRows(self.codec, self.features[rows], self.top1[rows])
