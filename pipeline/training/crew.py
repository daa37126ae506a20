"""The processes that train the members of a run: one, or torchrun's ranks with members each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from lightning_fabric import Fabric
from torch import distributed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Crew:
    """Ranks that share the members out and meet at the end of every epoch; alone without a fabric.

    What members say of samples goes through their label memories alone, on a disk that all see.
    """

    fabric: Fabric | None = None

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.fabric.global_rank if self.fabric else 0

    @property
    def ranks(self) -> int:
        """How many processes there are."""
        return self.fabric.world_size if self.fabric else 1

    def trains(self, number: int) -> bool:
        """Whether this process trains the member of that number."""
        return number % self.ranks == self.rank

    def meet(self) -> None:
        """Wait until all are here."""
        if self.ranks > 1:
            distributed.barrier()

    def of_all(self, values: Sequence[T]) -> list[T]:
        """One value a member, each from the process that trains it; all call this together."""
        if self.ranks == 1:
            return list(values)
        every: list[Sequence[T]] = [()] * self.ranks
        distributed.all_gather_object(every, values)
        return [every[number % self.ranks][number] for number in range(len(values))]
