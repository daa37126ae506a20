"""The label memory: what a student says in an epoch, kept as a label set for the epochs after it.

The sets of a student lie side by side in one folder, `epoch-0000` and on; where it speaks within
epochs too, `epoch-0003-00002` is what it says of the samples that others meet in span 2 of epoch 3.
Each is a label set like any other, not aligned with its source; only those that a resumed run needs
are kept.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.training.filling import Filling
from softlabel.schemas.errors import EnvironmentFault, IdentityError
from softlabel.schemas.labelset import MANIFEST_FILE, Identity
from softlabel.schemas.teacher import Preprocess

MEMORY_FOLDER = "memory"
PREFIX = "epoch-"
NAME = re.compile(rf"{PREFIX}(?P<epoch>\d+)(-(?P<span>\d+))?")
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)


def memory_identity(training_sha256: str, source: Source, preprocess: Preprocess) -> Identity:
    """What a memory says of itself: who spoke, of what, as `preprocess` showed it.

    training_sha256: of all that decides the training's course.
    """
    return Identity(
        teacher_sha256=(training_sha256,),
        preprocess=preprocess,
        classes=source.classes,
        output="logits",
        output_kind="logits",
        source=source.files,
        temperatures=TEMPERATURES,
        codec="dense-f16",
    )


class LabelMemory:
    """The predictions of one student, a label set for each epoch that was asked for.

    identity: what every set says of itself, but for its epoch.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder = folder
        self._identity = identity

    def begin(self, epoch: int, shards: int = 0) -> Filling:
        """Start to fill the set of `epoch`, or go on after its first `shards`.

        A sample that the epoch does not see keeps what the last set before says of it. Raises
        DataError where a shard to go on after is not whole, IdentityError as `labels` does.
        """
        earlier = self.last(epoch)
        return Filling(
            self._place(epoch),
            self._identity_of(epoch),
            None if earlier is None else self.labels(earlier),
            shards,
        )

    def begin_span(self, epoch: int, span: int) -> Filling:
        """Start to fill the set of a span: of what is added, and of nothing else."""
        return Filling(self._place(epoch, span), self._identity_of(epoch, span))

    def labels(self, epoch: int, span: int | None = None) -> LabelSet:
        """A finished set.

        Raises EnvironmentFault where it is not there, IdentityError where another training said it.
        """
        if not self.holds(epoch, span):
            raise EnvironmentFault(
                f"{self._place(epoch, span)}: is not there any more, or not seen from here; ranks "
                "need an output on a disk that all of them share; mend this and run the same "
                "command again"
            )
        labels = open_labelset(self._place(epoch, span))
        if labels.manifest.identity != self._identity_of(epoch, span):
            raise IdentityError(
                f"{labels.folder}: holds what another training said; remove {self.folder} and "
                "train again"
            )
        return labels

    def holds(self, epoch: int, span: int | None = None) -> bool:
        """Whether that set is finished."""
        return (self._place(epoch, span) / MANIFEST_FILE).is_file()

    def last(self, before: int) -> int | None:
        """The last finished epoch before that one; None where there is none."""
        done = [epoch for epoch, _ in self._moments() if epoch < before and self.holds(epoch)]
        return max(done, default=None)

    def forget(self, before: int, span: int | None = None) -> None:
        """Delete the sets before that one, with their look-up caches."""
        for moment in self._moments():
            if _order(*moment) < _order(before, span):
                self._remove_caches(*moment)
                shutil.rmtree(self._place(*moment))

    def keep_last(self) -> None:
        """Delete all but the last set: the training is over."""
        moments = self._moments()
        if moments:
            self.forget(*moments[-1])
            self._remove_caches(*moments[-1])

    def clear(self) -> None:
        """Forget everything: what an earlier training left."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def _remove_caches(self, epoch: int, span: int | None) -> None:
        for path in self.folder.glob(f"{self._place(epoch, span).name}.*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _identity_of(self, epoch: int, span: int | None = None) -> Identity:
        return self._identity.model_copy(update={"epoch": epoch, "span": span})

    def _place(self, epoch: int, span: int | None = None) -> Path:
        within = "" if span is None else f"-{span:05d}"
        return self.folder / f"{PREFIX}{epoch:04d}{within}"

    def _moments(self) -> list[tuple[int, int | None]]:
        """Epoch and span of every set here, the oldest first."""
        found = [NAME.fullmatch(path.name) for path in self.folder.glob(f"{PREFIX}*")]
        moments = [
            (int(name["epoch"]), None if name["span"] is None else int(name["span"]))
            for name in found
            if name
        ]
        return sorted(moments, key=lambda moment: _order(*moment))


def _order(epoch: int, span: int | None) -> tuple[int, int]:
    return epoch, -1 if span is None else span
