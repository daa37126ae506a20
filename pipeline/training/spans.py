"""Which positions of an epoch's order make which batch, on any number of ranks.

A step takes `ranks * batch_size` positions and gives each rank as many that follow one another, so
an epoch begun on one number of ranks can go on with another from any position on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """Positions `first` to `end` (not included) of an epoch's order."""

    first: int
    end: int


class Steps(NamedTuple):
    """The steps from position `start` to the end at `rows`, in batches of `batch_size` a rank."""

    rows: int
    start: int
    batch_size: int
    ranks: int = 1

    def __len__(self) -> int:
        """Steps, and so batches of each rank."""
        return self._whole() + (self._rest() > 0)

    def spans(self, rank: int = 0) -> Iterator[Span]:
        """The batches of one rank, in order.

        What the last step has left is dealt evenly. Where it is too little to give every rank a
        sample it joins the step before, whose batches then are larger by one on some ranks.
        """
        step = self.batch_size * self.ranks
        whole = self._whole()
        for first in range(self.start, self.start + whole * step, step):
            own = first + rank * self.batch_size
            yield Span(own, own + self.batch_size)
        even, more = divmod(self._rest(), self.ranks)
        own = self.rows - self._rest() + rank * even + min(rank, more)
        if even or rank < more:
            yield Span(own, own + even + (rank < more))

    def position(self, steps: int) -> int:
        """How many samples of the epoch all ranks together have seen after so many steps."""
        if steps >= len(self):
            return self.rows
        return self.start + steps * self.batch_size * self.ranks

    def _whole(self) -> int:
        whole, rest = divmod(self.rows - self.start, self.batch_size * self.ranks)
        return whole - 1 if whole and 0 < rest < self.ranks else whole

    def _rest(self) -> int:
        return self.rows - self.start - self._whole() * self.batch_size * self.ranks
