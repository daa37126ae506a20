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


def batch_shares(
    rows: int, batch_size: int, first_batch: int, part: tuple[int, int]
) -> Iterator[tuple[Span, float]]:
    """The positions that rank i of n, `part`, takes of each batch, and their share of it.

    All ranks together take each batch of `batch_size` from number `first_batch` on, whatever n is.
    A rank for which a batch has no sample left takes its first with a share of 0: every rank has
    part in every step.
    """
    rank, ranks = part
    for first in range(first_batch * batch_size, rows, batch_size):
        size = min(batch_size, rows - first)
        own, end = first + rank * size // ranks, first + (rank + 1) * size // ranks
        yield (Span(own, end), (end - own) / size) if own < end else (Span(first, first + 1), 0.0)
