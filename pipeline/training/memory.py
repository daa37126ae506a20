"""The label memory: what a student says in an epoch, kept as a label set for the epochs after it.

The sets of a student lie side by side in one folder, `epoch-0000` and on. Each is a label set like
any other, not aligned with its source; only those that a resumed run needs are kept.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.training.filling import Filling
from softlabel.schemas.errors import IdentityError
from softlabel.schemas.labelset import MANIFEST_FILE, Identity

PREFIX = "epoch-"


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

    def labels(self, epoch: int) -> LabelSet:
        """The set of a finished epoch. Raises IdentityError where another training said it."""
        labels = open_labelset(self._place(epoch))
        if labels.manifest.identity != self._identity_of(epoch):
            raise IdentityError(
                f"{labels.folder}: holds what another training said; remove {self.folder} and "
                "train again"
            )
        return labels

    def last(self, before: int) -> int | None:
        """The last finished epoch before that one; None where there is none."""
        done = [
            epoch
            for epoch in self._epochs()
            if epoch < before and (self._place(epoch) / MANIFEST_FILE).is_file()
        ]
        return max(done, default=None)

    def forget(self, before: int) -> None:
        """Delete the sets of the epochs before that one, with their look-up caches."""
        for epoch in self._epochs():
            if epoch < before:
                place = self._place(epoch)
                for path in [place, *self.folder.glob(f"{place.name}.*")]:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def clear(self) -> None:
        """Forget everything: what an earlier training left."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def _identity_of(self, epoch: int) -> Identity:
        return self._identity.model_copy(update={"epoch": epoch})

    def _place(self, epoch: int) -> Path:
        return self.folder / f"{PREFIX}{epoch:04d}"

    def _epochs(self) -> list[int]:
        names = [path.name.removeprefix(PREFIX) for path in self.folder.glob(f"{PREFIX}*")]
        return sorted(int(name) for name in names if name.isdigit())
