"""Which axis of an output is what, and PyTorch models that speak of positions."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softlabel.pipeline.teachers.models import PictureModel, build_model
from softlabel.pipeline.teachers.position_model import PositionModel, with_positions
from softlabel.pipeline.teachers.positions import count_classes, find_grid, to_positions

CLASSES = 5


@pytest.mark.parametrize(
    ("axes", "grid"),
    [
        ((5, 6, 8), (6, 8)),
        ((6, 8, 5), (6, 8)),
        ((48, 5), (6, 8)),
        ((12, 5), (3, 4)),
        # Both ends fit: the classes come first, as in PyTorch.
        ((5, 8, 5), (8, 5)),
        # No smaller or larger picture of 12x16 has so many.
        ((24, 5), None),
        ((5,), None),
        ((6, 8, 4), None),
        ((5, None, None), None),
        ((None, 5), None),
        ((5, 2, 6, 8), None),
    ],
)
def test_the_grid_of_an_output(axes: tuple[int | None, ...], grid: tuple[int, int] | None) -> None:
    assert find_grid(axes, CLASSES, height=12, width=16) == grid
    if grid is not None:
        assert count_classes(axes, grid) == CLASSES


@pytest.mark.parametrize("like", [np.asarray, torch.from_numpy])
def test_every_order_of_axes_comes_to_the_same(like: Callable[[Any], Any]) -> None:
    said = np.random.default_rng(0).normal(size=(2, 6, 8, CLASSES))
    wanted = said.reshape(2, 48, CLASSES)
    for other in (said, wanted, np.ascontiguousarray(said.transpose(0, 3, 1, 2))):
        assert np.array_equal(np.asarray(to_positions(like(other), CLASSES)), wanted)


class Says(nn.Module):
    """Says of a picture what `wrap` makes of 5 classes at every second pixel."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap
        self.see = nn.Conv2d(3, CLASSES, 2, stride=2)

    def forward(self, pixels: Tensor) -> Any:
        return self.wrap(self.see(pixels))


def picture_model(wrap: Callable[[Tensor], Any]) -> PictureModel:
    return PictureModel(Says(wrap), (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda said: said,
        lambda said: said.permute(0, 2, 3, 1),
        lambda said: said.flatten(2).transpose(1, 2),
        lambda said: {"out": said, "aux": said[:, :1]},
        lambda said: SimpleNamespace(logits=said),
    ],
    ids=["classes first", "classes last", "positions", "torchvision", "transformers"],
)
def test_a_model_of_positions_is_found(wrap: Callable[[Tensor], Any]) -> None:
    model = picture_model(wrap)
    found = with_positions(model, (12, 16, 3), CLASSES)
    assert found is not None
    spoken, grid = found
    assert grid == (6, 8)
    assert isinstance(spoken, PositionModel)
    pixels = torch.randint(0, 256, (3, 12, 16, 3), dtype=torch.uint8)
    assert isinstance(model.model, Says)
    plain = model.model.see(((pixels / 255 - 0.5) / 0.5).permute(0, 3, 1, 2))
    wanted = plain.permute(0, 2, 3, 1).reshape(-1, CLASSES)
    torch.testing.assert_close(spoken(pixels), wanted)
    assert spoken.said(pixels).shape == (3, 48, CLASSES)
    assert model.training


@pytest.mark.parametrize(
    "wrap",
    [
        lambda said: said.mean((2, 3)),
        lambda said: said[:, :4],
        lambda said: {"mask": said},
        lambda said: said.reshape(-1, 7),
    ],
    ids=["whole pictures", "other classes", "another name", "no batch"],
)
def test_other_models_are_none(wrap: Callable[[Tensor], Any]) -> None:
    assert with_positions(picture_model(wrap), (12, 16, 3), CLASSES) is None


def test_torchvision_s_segmenters_are_built_without_fetching_anything() -> None:
    inner = build_model("torchvision:lraspp_mobilenet_v3_large", {}, CLASSES, None)
    model = PictureModel(inner, (0.5,) * 3, (0.5,) * 3)
    found = with_positions(model, (32, 48, 3), CLASSES)
    assert found is not None
    assert found[1] == (32, 48)
