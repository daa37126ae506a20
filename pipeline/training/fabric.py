"""Lightning Fabric on the device that was asked for, alone or as one of torchrun's ranks."""

from __future__ import annotations

import atexit
import logging
import os
import warnings
from dataclasses import replace

import torch
from lightning_fabric import Fabric
from torch import distributed

from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.schemas.errors import EnvironmentFault
from softlabel.schemas.params.shared import Device


def make_fabric(device: Device, precision: str) -> Fabric:
    """Fabric on one device. Raises EnvironmentFault where CUDA is asked for and not had."""
    return _fabric(_on_cuda(device, 1), precision, 1)


def launch_fabric(device: Device, precision: str, *, unused: bool = False) -> Fabric:
    """Fabric for this rank of torchrun's, or on one device where torchrun did not start it.

    unused: whether there are steps that leave some parameters out. Raises EnvironmentFault where
    CUDA is asked for and not had, for every rank of this machine.
    """
    if not distributed.is_torchelastic_launched():
        return make_fabric(device, precision)
    local, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
    strategy = "ddp_find_unused_parameters_true" if unused else "ddp"
    if local * nodes == 1:
        strategy = "auto"
    fabric = _fabric(_on_cuda(device, local), precision, local, nodes, strategy)
    # It tells of every rank that joins.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    if not distributed.is_initialized():
        atexit.register(_leave)
    fabric.launch()
    return fabric


def own_fabric(device: Device, precision: str) -> Fabric:
    """Fabric on one device for this process alone, be it one of torchrun's ranks.

    Raises EnvironmentFault as `launch_fabric`.
    """
    if not distributed.is_torchelastic_launched():
        return make_fabric(device, precision)
    cuda = _on_cuda(device, int(os.environ["LOCAL_WORLD_SIZE"]))
    return _fabric(cuda, precision, [int(os.environ["LOCAL_RANK"])] if cuda else 1)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _on_cuda(device: Device, ranks: int) -> bool:
    """Whether so many ranks of this machine train on CUDA, with a device each."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not found:
        raise EnvironmentFault(
            "device 'cuda' was asked for and torch sees no CUDA device; pass --device cpu, or "
            "install a CUDA build of torch on a machine with a GPU"
        )
    cuda = device == "cuda" or (device == "auto" and found > 0)
    if cuda and ranks > found:
        raise EnvironmentFault(
            f"torchrun started {ranks} ranks here and torch sees {found} CUDA devices; pass "
            f"--nproc-per-node {found} to torchrun, or --device cpu"
        )
    return cuda


def _fabric(
    cuda: bool, precision: str, devices: int | list[int], nodes: int = 1, strategy: str = "auto"
) -> Fabric:
    with warnings.catch_warnings():
        # Fabric advises on 16-bit arithmetic on a CPU; the user chose it.
        warnings.simplefilter("ignore")
        return Fabric(
            accelerator="cuda" if cuda else "cpu",
            strategy=strategy,
            devices=devices,
            num_nodes=nodes,
            precision=precision,  # type: ignore[arg-type]
        )


def of_all_ranks(batch: TrainingBatch, fabric: Fabric) -> TrainingBatch:
    """A rank's batch with its shares of what all ranks have in this step: positions, hard labels.

    Of pictures that all have a hard label as it is: there the samples are counted. All ranks call
    this together.
    """
    if not batch.partly or fabric.world_size == 1:
        return batch
    own = [len(batch.labels), batch.labelled] if batch.share else [0, 0]
    counts = torch.tensor(own, dtype=torch.float64, device=fabric.device)
    distributed.all_reduce(counts)
    shares = [one / max(1.0, float(every)) for one, every in zip(own, counts, strict=True)]
    return replace(batch, share=shares[0], labelled_share=shares[1])


def device_name(fabric: Fabric) -> str:
    """The device that `fabric` trains on, as people call it; with the ranks where several do."""
    ranks = f"{fabric.world_size} ranks, each " if fabric.world_size > 1 else ""
    if fabric.device.type == "cuda":
        return ranks + torch.cuda.get_device_name(fabric.device)
    return f"{ranks}cpu, {torch.get_num_threads()} threads"
