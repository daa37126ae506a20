"""What a model of pictures says of their positions: which axis is what, in one order for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from softlabel.schemas.teacher import Grid

# Of NumPy or of torch.
AnyArray = Any


def find_grid(axes: Sequence[int | None], classes: int, height: int, width: int) -> Grid | None:
    """Height and width of the positions in an output with these axes after the batch's.

    They are `[classes, height, width]`, `[height, width, classes]` or `[positions, classes]`; of
    several that fit the first is meant. Positions without two axes lie as the picture does, whose
    height and width are given: as many as a smaller or larger one of its shape has. None where the
    axes are none of these, or open.
    """
    if None in axes:
        return None
    match axes:
        case [int(first), int(high), int(wide)] if first == classes:
            return high, wide
        case [int(high), int(wide), int(last)] if last == classes:
            return high, wide
        case [int(positions), int(last)] if last == classes:
            shared = math.gcd(height, width)
            high, wide = height // shared, width // shared
            times = math.isqrt(positions // (high * wide))
            return (high * times, wide * times) if high * wide * times**2 == positions else None
    return None


def count_classes(axes: Sequence[int | None], grid: Grid | None) -> int | None:
    """How long the axis of classes is, of an output with these axes after the batch's."""
    return axes[0] if grid is not None and tuple(axes[1:]) == grid else axes[-1]


def to_positions(said: AnyArray, classes: int) -> AnyArray:
    """An output `[N, ...]` with the axes that `find_grid` takes as `[N, positions, classes]`."""
    if said.ndim == 4 and said.shape[1] == classes:
        return said.reshape(said.shape[0], classes, -1).swapaxes(1, 2)
    return said.reshape(said.shape[0], -1, classes)
