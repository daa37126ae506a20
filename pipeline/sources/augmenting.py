"""Torchvision's transforms on Pillow pictures, drawing from a generator of their own.

They draw from torch's global generator, which other threads draw from too. A function mode, which
holds for one thread, hands each of their draws the view's generator instead: the numbers are those
that `torch.manual_seed` would give, and nobody waits for anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from PIL import Image
from torch.overrides import TorchFunctionMode
from torchvision.transforms import InterpolationMode, v2

from softlabel.schemas.augment import RandomCrop, RandomResizedCrop, Transform

Step = Callable[[Image.Image], Image.Image]
CLASSES = {
    "random_resized_crop": v2.RandomResizedCrop,
    "random_crop": v2.RandomCrop,
    "horizontal_flip": v2.RandomHorizontalFlip,
    "vertical_flip": v2.RandomVerticalFlip,
    "rotation": v2.RandomRotation,
    "affine": v2.RandomAffine,
    "color_jitter": v2.ColorJitter,
    "grayscale": v2.RandomGrayscale,
    "rand_augment": v2.RandAugment,
    "trivial_augment": v2.TrivialAugmentWide,
    "auto_augment": v2.AutoAugment,
    "random_erasing": v2.RandomErasing,
}
# All of torch that the transforms draw by.
DRAWS = {
    torch.rand,
    torch.randint,
    torch.randperm,
    torch.Tensor.uniform_,
}


class _Drawing(TorchFunctionMode):
    """Within it, this thread's draws come from `generator`."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in DRAWS:
            given = {**given, "generator": self._generator}
        return func(*args, **given)


def build(transforms: Sequence[Transform], size: tuple[int, int]) -> list[Step]:
    """The transforms for pictures of this height and width."""
    return [_step(transform, size) for transform in transforms]


def apply(steps: Sequence[Step], image: Image.Image, seed: int) -> Image.Image:
    """One picture made of another, by draws that begin with `seed`."""
    with _Drawing(torch.Generator().manual_seed(seed)):
        for step in steps:
            image = step(image)
    return image


def releases() -> dict[str, str]:
    """The versions of what draws and transforms."""
    return {"torch": torch.__version__, "torchvision": torchvision.__version__}


def _step(transform: Transform, size: tuple[int, int]) -> Step:
    arguments = transform.model_dump()
    name = arguments.pop("name")
    if isinstance(transform, RandomResizedCrop | RandomCrop):
        arguments["size"] = size
    if "interpolation" in arguments:
        arguments["interpolation"] = InterpolationMode(arguments["interpolation"])
    if "policy" in arguments:
        arguments["policy"] = v2.AutoAugmentPolicy(arguments["policy"])
    step: Step = CLASSES[name](**arguments)
    return step
