"""timm's configuration of a model, as what the user did not say of its pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softlabel.pipeline.sources.pictures import decode
from softlabel.pipeline.teachers.timm_config import timm_preprocessing
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.params import ExportParams
from softlabel.schemas.teacher import Framing

timm = pytest.importorskip("timm")


def params(model: str, **said: Any) -> ExportParams:
    return ExportParams(model=f"timm:{model}", **said)


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "model", ["resnet50", "vit_base_patch16_224", "test_vit", "swinv2_tiny_window8_256"]
)
@pytest.mark.parametrize("size", [(300, 451), (333, 260)])
def test_pictures_come_out_as_timm_scales_them(model: str, size: tuple[int, int]) -> None:
    data_tools: Any = timm.data
    filled = timm_preprocessing(params(model))
    framing = Framing(**{name: filled[name] for name in Framing.model_fields if name in filled})
    image = picture(*size)
    data = io.BytesIO()
    image.save(data, "PNG")
    config = data_tools.resolve_data_config(
        {}, pretrained_cfg=timm.get_pretrained_cfg(model).to_dict()
    )
    *_, wanted = (
        image := step(image) for step in data_tools.create_transform(**config).transforms[:2]
    )
    assert decode(data.getvalue(), framing).tobytes() == np.asarray(wanted).tobytes()
    assert (filled["mean"], filled["std"]) == (config["mean"], config["std"])


def test_what_the_user_says_goes_first() -> None:
    assert timm_preprocessing(params("resnet50", mean=(0.5,) * 3)) == {
        "height": 224,
        "width": 224,
        "channels": 3,
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "resize": 235,
    }


def test_with_a_size_of_the_users_own_the_scaling_is_his_too() -> None:
    filled = timm_preprocessing(params("resnet50", height=32, width=32))
    assert filled == {"channels": 3, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def test_with_other_channels_nothing_is_known_of_them() -> None:
    filled = timm_preprocessing(params("resnet50", channels=1, height=32, width=32))
    assert filled == {}


def test_a_model_that_timm_does_not_know_tells_nothing() -> None:
    assert timm_preprocessing(params("nonsense")) == {}


def test_padding_is_told_and_not_guessed() -> None:
    (name, *_) = [
        name
        for name in timm.list_models()
        if (config := timm.get_pretrained_cfg(name)) is not None and config.crop_mode == "border"
    ]
    with pytest.raises(ParameterError, match=r"crop mode 'border' .*; pass --height, --width and"):
        timm_preprocessing(params(name))


def test_a_crop_of_what_is_squashed_is_told_and_not_guessed() -> None:
    with pytest.raises(ParameterError, match=r"'squash' with crop_pct 0\.9"):
        timm_preprocessing(params("dm_nfnet_f0"))
