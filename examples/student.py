"""The student of all examples, and what it wants of pixels: replace both by your own."""

from torch import Tensor, nn


def student(num_classes: int, channels: int = 1, width: int = 16) -> nn.Module:
    """A small convolutional net: float pictures `[N, channels, H, W]` to logits."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )


def normalised(pixels: Tensor) -> Tensor:
    """uint8 to floats from -1 to 1, as `train-student` has them by default."""
    return (pixels.float() / 255 - 0.5) / 0.5
