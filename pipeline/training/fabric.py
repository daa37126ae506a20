"""Lightning Fabric on the device that was asked for."""

from __future__ import annotations

import warnings

import torch
from lightning_fabric import Fabric

from softlabel.schemas.errors import EnvironmentFault
from softlabel.schemas.params import Device


def make_fabric(device: Device, precision: str) -> Fabric:
    """Fabric on one device. Raises EnvironmentFault where CUDA is asked for and not had."""
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault(
            "device 'cuda' was asked for and torch sees no CUDA device; pass --device cpu, or "
            "install a CUDA build of torch on a machine with a GPU"
        )
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    with warnings.catch_warnings():
        # Fabric advises on 16-bit arithmetic on a CPU; the user chose it.
        warnings.simplefilter("ignore")
        return Fabric(accelerator="cuda" if cuda else "cpu", devices=1, precision=precision)  # type: ignore[arg-type]


def device_name(fabric: Fabric) -> str:
    """The device that `fabric` trains on, as people call it."""
    if fabric.device.type == "cuda":
        return torch.cuda.get_device_name(fabric.device)
    return f"cpu, {torch.get_num_threads()} threads"
