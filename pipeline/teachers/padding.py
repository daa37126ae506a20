"""Whether a teacher of sequences says the same of a sequence with padding behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from softlabel.schemas.errors import DataError
from softlabel.schemas.sample import POSITIONS, Array, RunTeacher, TeacherOutput

DECODER = "decoder_"
# Of the largest number: arithmetic in another shape moves float16 by less, padding by far more.
TOLERANCE = 1e-2


def check_padding(samples: Array, said: TeacherOutput, run: RunTeacher, path: Path) -> bool:
    """Ask again about the sample with the most padding behind it, without that padding.

    samples: inputs `[N]` with `POSITIONS`; said: of their positions; run: says so of a sample by
    itself. Returns False where nothing was to be asked. Raises DataError where the answers differ:
    then a label would depend on the samples that were in its batch.
    """
    there = samples[POSITIONS]
    lengths = there.sum(axis=1)
    behind = (lengths > 0) & (lengths < there.shape[1]) & there[:, 0]
    behind &= np.diff(there, axis=1).sum(axis=1) == 1
    if not behind.any():
        return False
    row = int(np.where(behind, lengths, there.shape[1]).argmin())
    alone = run(_cut(samples[row : row + 1], int(lengths[row])))
    first = int(lengths[:row].sum())
    padded = said.take(np.arange(first, first + len(alone.logits)))
    _refuse_other("logits", alone.logits, padded.logits, path)
    if alone.features is not None and padded.features is not None:
        _refuse_other("features", alone.features, padded.features, path)
    return True


def _refuse_other(what: str, alone: Array, padded: Array, path: Path) -> None:
    with np.errstate(invalid="ignore"):
        difference = np.nanmax(np.abs(np.where(alone == padded, 0, alone - padded)), initial=0)
    largest = np.abs(alone[np.isfinite(alone)]).max(initial=1)
    if difference > TOLERANCE * largest:
        raise DataError(
            f"{path}: says something else of a sequence when padding stands behind it ({what} "
            f"differ by {difference:.2g}); export it with an input 'attention_mask' that it heeds, "
            "or write sequences of one length"
        )


def _cut(sample: Array, length: int) -> Array:
    """The sample with its sequence, of an encoder and a decoder the decoder's, cut to `length`."""
    names = sample.dtype.names or ()
    decoded = any(name.startswith(DECODER) for name in names)
    cut = [name for name in names if name == POSITIONS or not decoded or name.startswith(DECODER)]
    fields = [
        (name, sample.dtype[name].base, length if name in cut else sample.dtype[name].shape)
        for name in names
    ]
    values = np.empty(1, [(n, k, (s,) if isinstance(s, int) else s) for n, k, s in fields])
    for name in names:
        values[name] = sample[name][:, : values.dtype[name].shape[0]]
    return values
