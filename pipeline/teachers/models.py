"""Building a PyTorch model from its reference, and reading and writing its weights."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from softlabel.schemas.errors import DataError, EnvironmentFault, ParameterError
from softlabel.schemas.teacher import Grid


class PictureModel(nn.Module):
    """A model behind its arithmetic preprocessing: uint8 `[N, H, W, C]` to logits `[N, classes]`.

    `(x / 255 - mean) / std` per channel, then `[N, C, H, W]` into `model`.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits of uint8 pictures."""
        scaled = (pixels.to(torch.float32) / 255 - self.mean) / self.std
        return self.model(scaled.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


def build_model(
    reference: str,
    model_args: Mapping[str, Any],
    num_classes: int,
    channels: int | None,
    weights: Path | None = None,
) -> nn.Module:
    """The model that `reference` names, freshly initialised or filled from the file `weights`.

    `package.module:function` is called with `num_classes` and `model_args`; `timm:NAME` and
    `torchvision:NAME` come from those libraries and load nothing by themselves. `weights` are of
    this very model; `timm:NAME` fits those of another number of classes or channels. channels: of
    pictures, None where it takes none. Raises
    ParameterError, EnvironmentFault where the library is not installed, and as `load_weights`.
    """
    source, _, name = reference.partition(":")
    if not name:
        raise ParameterError(
            f"model {reference!r}: must be package.module:function, timm:NAME or torchvision:NAME"
        )
    arguments = {"num_classes": num_classes} | dict(model_args)
    if source == "timm":
        factory = _timm_factory(name, channels, weights)
    elif source == "torchvision":
        factory = _torchvision_factory(name)
    else:
        factory = _user_factory(source, name)
    try:
        model = factory(**arguments)
    except Exception as error:
        raise ParameterError(
            f"model {reference!r}: cannot be built with {arguments}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ParameterError(
            f"model {reference!r}: gave a {type(model).__name__}, must be a torch.nn.Module"
        )
    if weights is not None and source != "timm":
        load_weights(model, weights)
    return model


def check_fits(
    model: PictureModel,
    reference: str,
    shape: tuple[int, int, int],
    num_classes: int,
    grid: Grid | None = None,
) -> None:
    """Raise ParameterError where `model` does not turn pictures of `shape` into logits.

    shape: height, width and channels. grid: what the error names, where logits of so many positions
    are wanted. Tried on two black pictures, in eval mode.
    """
    height, width, channels = shape
    given = f"pictures of {height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros((2, *shape), dtype=torch.uint8))
    except Exception as error:  # the user's module may raise anything
        raise ParameterError(
            f"model {reference!r}: does not take {given}: {type(error).__name__}: {error}; mend "
            "model_args, or the height, width and channels of the pictures"
        ) from error
    finally:
        model.train(training)
    found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != [2, num_classes]:
        raise ParameterError(
            f"model {reference!r}: makes {found} of two {given}, must make "
            f"{[2, num_classes, *(grid or ())]}; mend it or its model_args"
        )


def count_parameters(model: nn.Module) -> int:
    """Values of all parameters of `model`."""
    return sum(parameter.numel() for parameter in model.parameters())


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` from a safetensors file or a checkpoint read with weights_only; strictly.

    A checkpoint may be the state dict itself or hold it under `state_dict` or `model`.
    Raises ParameterError where the file is missing, DataError where it does not fit the model.
    """
    state = _read_state(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise DataError(
            f"{path}: does not fit the model: {' '.join(lines)[:300]}; check --model and "
            "--model-args"
        ) from error


def weights_bytes(model: nn.Module) -> bytes:
    """The state dict of `model` as one safetensors file, weights with two names twice."""
    state: dict[str, torch.Tensor] = {}
    taken = set()
    for name, value in model.state_dict().items():
        own = value.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        state[name] = own.clone() if place in taken else own
        taken.add(place)
    return save(state)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ParameterError(f"{path}: no such weights file; pass --weights FILE")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise DataError(f"{path}: is no safetensors file: {error}; save it again") from error
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged data torch's unpickler raises whatever comes
        raise DataError(
            f"{path}: torch cannot read it with weights_only (it is damaged or holds more than "
            "tensors); save the state dict alone, as safetensors at best"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    tensors = isinstance(checkpoint, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in checkpoint.items()
    )
    if not tensors:
        raise DataError(f"{path}: holds no state dict; save model.state_dict()")
    return checkpoint  # type: ignore[no-any-return]


def _timm_factory(name: str, channels: int | None, weights: Path | None) -> Callable[..., Any]:
    timm = library("timm", name)
    given: dict[str, Any] = {"in_chans": channels or 3, "pretrained": weights is not None}
    if weights is not None:
        given["pretrained_cfg_overlay"] = {"state_dict": _read_state(weights)}

    def create(**arguments: Any) -> Any:
        return timm.create_model(name, **given | arguments)

    return create


def _torchvision_factory(name: str) -> Callable[..., Any]:
    models = library("torchvision.models", name)

    def create(**arguments: Any) -> Any:
        build = models.get_model_builder(name)
        # Segmenters would fetch a backbone else.
        taken = inspect.signature(build).parameters
        untrained = {which: None for which in ("weights", "weights_backbone") if which in taken}
        return build(**untrained | arguments)

    return create


def library(module: str, name: str) -> Any:
    """The library that has model `name`. Raises EnvironmentFault where it does not import."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        package = module.partition(".")[0]
        raise EnvironmentFault(
            f"model '{package}:{name}': {package} cannot be imported ({error}); "
            "pip install 'softlabel[vision]' in builds that match torch"
        ) from error


def _user_factory(module: str, name: str) -> Callable[..., Any]:
    # As an interpreter started here would: the user's own modules are found in this folder.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # the user's module may raise anything
        raise ParameterError(
            f"model '{module}:{name}': {error}; give a module that Python finds from this folder"
        ) from error
    factory = getattr(loaded, name, None)
    if not callable(factory):
        raise ParameterError(f"model '{module}:{name}': {module} has no function {name!r}")
    return factory  # type: ignore[no-any-return]
