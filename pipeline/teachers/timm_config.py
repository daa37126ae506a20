"""What timm knows of how its models see pictures, for what the user did not say."""

from __future__ import annotations

import math
from typing import Any, get_args

from softlabel.pipeline.teachers.models import library
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.params import ExportParams
from softlabel.schemas.teacher import Interpolation


def timm_preprocessing(params: ExportParams) -> dict[str, Any]:
    """Fields of `params` that timm's configuration of the model fills in; none that are set.

    How pictures are scaled goes with their size: with a height or width of the user's own it is
    left to the user too. Raises EnvironmentFault where timm is missing, ParameterError where the
    model wants its pictures scaled in a way that is not had here.
    """
    if all(getattr(params, name) for name in ("height", "width", "channels", "mean", "std")):
        return {}
    name = params.model.removeprefix("timm:")
    config = library("timm", name).get_pretrained_cfg(name)
    if config is None:
        return {}
    channels, height, width = config.input_size
    known: dict[str, Any] = {
        "height": height,
        "width": width,
        "channels": channels,
        "mean": tuple(config.mean),
        "std": tuple(config.std),
    }
    if params.channels not in (None, channels):
        # Their values are a channel's.
        known = {}
    if params.height is None and params.width is None and params.interpolation is None:
        known |= _scaling(params.model, config)
    return {name: value for name, value in known.items() if not getattr(params, name)}


def _scaling(model: str, config: Any) -> dict[str, Any]:
    """As timm's own evaluation does it: `transforms_imagenet_eval` in its transforms factory."""
    _, height, width = config.input_size
    interpolation = config.interpolation
    known = config.crop_mode == "center" or (config.crop_mode, config.crop_pct) == ("squash", 1)
    if not known or interpolation not in get_args(Interpolation):
        raise ParameterError(
            f"{model}: timm scales its pictures by crop mode {config.crop_mode!r} with crop_pct "
            f"{config.crop_pct:g} and {interpolation!r}; pass --height, --width and --interpolation"
        )
    if config.crop_mode == "squash":
        return {"interpolation": interpolation}
    resize = math.floor(min(height, width) / config.crop_pct)
    return {"interpolation": interpolation, "resize": resize}
