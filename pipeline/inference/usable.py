"""Batches in which every sample has its slot, also one that cannot be used.

Such a one is left out only after the teacher ran: the others stand where they would stand without
it, so their labels do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.shards.block import spread
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.packed import PackedOutput
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Reject, Segment
from softlabel.schemas.params.shared import OnBadSample
from softlabel.schemas.sample import Array, SampleBlock, TeacherOutput

Output = TypeVar("Output", TeacherOutput, PackedOutput)


@dataclass(frozen=True, slots=True)
class Slots:
    """The samples of a batch, and those that are left out, by their slot: a slot each view."""

    samples: SampleBlock
    rejects: Mapping[int, Reject]

    def left_out(self) -> tuple[Reject, ...]:
        """Those that are left out, each once."""
        return tuple(dict.fromkeys(self.rejects.values()))

    def run(self, run_teacher: Callable[[Array], Output]) -> tuple[SampleBlock, Output] | None:
        """The samples that can be used, with what the teacher says of them; None without any."""
        if not self.rejects:
            return self.samples, run_teacher(self.samples.inputs)
        kept = np.delete(np.arange(len(self.samples)), list(self.rejects))
        if not len(kept):
            return None
        output = run_teacher(self.samples.inputs)
        return self.samples.take(kept), output.take(self._outputs(kept))

    def _outputs(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where the output of these samples stands, which has one for each position."""
        lengths = self.samples.lengths
        if lengths is None:
            return rows
        return spread(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), rows)


def read_slots(source: Source, segments: Sequence[Segment], on_bad: OnBadSample) -> Slots:
    """The batch of these rows. Raises DataError as `Source.read`, or `read_usable` to skip."""
    if on_bad == "stop":
        return Slots(source.read(segments), {})
    return Slots(*source.read_usable(segments))


def none_usable(source: Source, rejects: Sequence[Reject]) -> DataError:
    """The error for samples from the whole source of which not one can be used."""
    return DataError(
        f"{source.path}: none of {len(rejects)} samples from the whole of it can be used; the "
        f"first is {rejects[0].key!r}: {rejects[0].reason}"
    )
