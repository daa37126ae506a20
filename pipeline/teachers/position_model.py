"""A PyTorch model of pictures that says something of each of their positions: a segmenter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softlabel.pipeline.teachers.models import PictureModel
from softlabel.pipeline.teachers.positions import find_grid, to_positions
from softlabel.schemas.teacher import Grid


class PositionModel(PictureModel):
    """A `PictureModel` whose inner model says `[N, classes, height, width]`, or as `find_grid` has.

    That may be what it returns, or stand in it as `logits`, as the models of transformers have it,
    or under `out`, as those of torchvision do.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        num_classes: int,
    ) -> None:
        super().__init__(model, mean, std)
        self.num_classes = num_classes

    def said(self, pixels: Tensor) -> Tensor:
        """Logits `[N, positions, classes]` of uint8 pictures, positions row by row."""
        said = to_positions(_logits(super().forward(pixels)), self.num_classes)
        return said  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `[P, classes]` of all positions, picture by picture."""
        return self.said(pixels).flatten(0, 1)


def with_positions(
    model: PictureModel, shape: tuple[int, int, int], num_classes: int
) -> tuple[PositionModel, Grid] | None:
    """The model as one of positions, and their height and width; None where it speaks of none.

    shape: height, width and channels of its pictures. Tried on two black ones, in eval mode; what
    does not take them is None too.
    """
    training = model.training
    try:
        with torch.no_grad():
            said = _logits(model.eval()(torch.zeros((2, *shape), dtype=torch.uint8)))
    except Exception:  # the user's module may raise anything, and whoever runs it next tells
        return None
    finally:
        model.train(training)
    axes = list(said.shape) if isinstance(said, Tensor) else []
    grid = find_grid(axes[1:], num_classes, *shape[:2]) if axes[:1] == [2] else None
    if grid is None:
        return None
    mean, std = tuple(model.mean.tolist()), tuple(model.std.tolist())
    return PositionModel(model.model, mean, std, num_classes), grid


def _logits(said: Any) -> Any:
    held = getattr(said, "logits", None)
    if held is not None:
        return held
    return said.get("out") if isinstance(said, Mapping) else said
