"""Two small picture classifiers, for the demo, tests and benchmarks: no model zoo needed."""

from __future__ import annotations

import torch
from torch import nn


def conv_net(num_classes: int, channels: int = 1, width: int = 32, depth: int = 3) -> nn.Module:
    """A plain convolutional net; float pictures `[N, channels, H, W]` to logits `[N, classes]`.

    `depth` stages of two 3x3 convolutions with batch normalisation; every stage after the first
    halves the picture and doubles the width. Global average pooling and one linear layer end it.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for stage in range(depth):
        outputs = width * 2**stage
        layers += [_block(inputs, outputs, stride=1 if stage == 0 else 2), _block(outputs, outputs)]
        inputs = outputs
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)
    )


class Mlp(nn.Module):
    """One hidden layer over the flattened picture; its input size is fixed at construction."""

    def __init__(self, inputs: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Float pictures `[N, C, H, W]` to logits `[N, classes]`."""
        return self.head(torch.relu(self.hidden(pictures.flatten(1))))  # type: ignore[no-any-return]


def mlp(num_classes: int, inputs: int = 64, hidden: int = 16) -> nn.Module:
    """A perceptron with one hidden layer for pictures of `inputs` values."""
    return Mlp(inputs, hidden, num_classes)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
