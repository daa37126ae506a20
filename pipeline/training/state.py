"""How far a training is, and all that decides how it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed

from softlabel.schemas.reports.training import EpochRecord


class Stateful(Protocol):
    """A part of a training whose state can be taken and given back."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors, numbers and text, in dictionaries and lists: what `torch.load` reads safely."""

    def load_state_dict(self, state: Any, /) -> object:
        """Go on from what `state_dict` gave."""


class TrainingState:
    """Where a training is, and its parts.

    epoch: the one under way, from 0. step: batches of it that are done. history: the finished
    epochs. parts: whatever has a state of its own, by name.
    """

    def __init__(self, fabric: Fabric, **parts: Stateful) -> None:
        self.epoch = 0
        self.step = 0
        self.history: list[EpochRecord] = []
        self._parts = parts | {"generators": RankGenerators(fabric)}

    def end_epoch(self, record: EpochRecord) -> None:
        """The epoch is done; the next begins with its first batch."""
        self.history.append(record)
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """All of it, for a checkpoint; all ranks call this together."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "history": [record.model_dump() for record in self.history],
            "parts": {name: dict(part.state_dict()) for name, part in self._parts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.epoch, self.step = state["epoch"], state["step"]
        self.history = [EpochRecord.model_validate(record) for record in state["history"]]
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])


class Generators:
    """torch's random numbers, for dropout: of the CPU and of each GPU in use."""

    def state_dict(self) -> dict[str, Any]:
        """The states of the generators."""
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where they were; GPUs that are not here any more are left out."""
        torch.set_rng_state(state["cpu"])
        for device, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(generator, device)


class RankGenerators:
    """The same of every rank, on the CPU and on its own GPU.

    All ranks begin with one seed, for the weights; from here on they differ.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._part_ways()

    def state_dict(self) -> dict[str, Any]:
        """The states of the generators of all ranks, `[ranks, bytes]`; all call this together."""
        mine = {"cpu": torch.get_rng_state()}
        if self._fabric.device.type == "cuda":
            mine["cuda"] = torch.cuda.get_rng_state(self._fabric.device)
        return {name: self._of_all_ranks(state) for name, state in mine.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where they were; a rank more than there were gets numbers of its own."""
        rank, known = self._fabric.global_rank, len(state["cpu"])
        torch.set_rng_state(state["cpu"][min(rank, known - 1)])
        if self._fabric.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"][min(rank, known - 1)], self._fabric.device)
        if rank >= known:
            self._part_ways()

    def _of_all_ranks(self, state: Tensor) -> Tensor:
        if self._fabric.world_size == 1:
            return state[None]
        mine = state.to(self._fabric.device)
        every = [torch.empty_like(mine) for _ in range(self._fabric.world_size)]
        distributed.all_gather(every, mine)
        return torch.stack(every).cpu()

    def _part_ways(self) -> None:
        if self._fabric.global_rank:
            number = int(torch.randint(2**62, ()))
            torch.manual_seed(number + self._fabric.global_rank)
