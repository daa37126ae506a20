"""Filling a student's memory while it trains, in the epochs whose predictions are published."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.exchange import Exchange
from softlabel.pipeline.training.filling import Filling
from softlabel.pipeline.training.memory import LabelMemory
from softlabel.schemas.errors import EnvironmentFault

# Batches of samples, each with the logits `[N, C]` of what is said of them.
Rest = Callable[[], Iterable[tuple[TrainingBatch, Tensor]]]


class Listener:
    """Hears what one student says of each batch, and publishes it at an epoch's end.

    rest: what the student says in the end of samples that it is not trained on. Its state is what a
    training needs to go on with the very same memory.
    """

    def __init__(self, memory: LabelMemory, exchange: Exchange, rest: Rest = list) -> None:
        self._memory = memory
        self._exchange = exchange
        self._rest = rest
        self._epoch = 0
        self._shards = 0
        self._filling: Filling | None = None

    def hear(self, batch: TrainingBatch, logits: Tensor) -> None:
        """The student's logits `[N, C]` of a batch that it was trained on.

        Raises DataError where one is no number, EnvironmentFault where the disk refuses.
        """
        if self._exchange.publishes(self._epoch):
            with writing(self._memory.folder):
                self._opened().add(batch.keys, batch.labels, logits.float().cpu().numpy())

    def end_epoch(self) -> int | None:
        """Publish what was heard; how many samples were not seen, None where nothing was asked.

        Raises DataError where a key was seen twice, EnvironmentFault where the disk refuses.
        """
        unseen = None
        if self._exchange.publishes(self._epoch):
            for batch, logits in self._rest():
                self.hear(batch, logits)
            with writing(self._memory.folder):
                unseen = self._opened().publish()
        self._epoch, self._shards, self._filling = self._epoch + 1, 0, None
        return unseen

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` takes to go on; all that was heard so far is on disk then."""
        with writing(self._memory.folder):
            shards = self._shards if self._filling is None else self._filling.cut()
        return {"epoch": self._epoch, "shards": shards}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a listener to the same student was."""
        self._epoch, self._shards, self._filling = state["epoch"], state["shards"], None

    def _opened(self) -> Filling:
        if self._filling is None:
            self._filling = self._memory.begin(self._epoch, self._shards)
        return self._filling


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise EnvironmentFault where the disk refuses what is written to a memory in `folder`."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename or folder}: {error.strerror or error}; mend this and run the same "
            "command again"
        ) from error
