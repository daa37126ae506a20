"""The inputs of a student's last linear layer, looked at while it runs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


class Penultimate:
    """Watches a model's last `nn.Linear`, whose outputs should be the logits."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        self._layer = layers[-1] if layers and layers[-1].out_features == classes else None
        self._seen: tuple[Tensor, Tensor] | None = None
        if self._layer is not None:
            self._layer.register_forward_hook(self._see)

    @property
    def templates(self) -> npt.NDArray[np.float32] | None:
        """The layer's weight `[C, d]`; None where the model has no such layer."""
        if self._layer is None:
            return None
        return np.asarray(self._layer.weight.detach().float().cpu().numpy())

    def features(self, logits: Tensor) -> npt.NDArray[np.float32] | None:
        """What the layer got `[N, d]` in the batch that gave `logits`; None where it was not last.

        Such a model does something to the layer's outputs, or uses the layer in another place.
        """
        if self._seen is None:
            return None
        features, outputs = (part.detach().float().cpu() for part in self._seen)
        if features.ndim != 2 or not torch.equal(outputs, logits):
            return None
        return features.numpy()

    def _see(self, layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        self._seen = (inputs[0], outputs)
