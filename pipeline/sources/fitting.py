"""Shapes of samples compared with what a teacher takes, and spelt for people."""

from __future__ import annotations

from collections.abc import Sequence

from softlabel.pipeline.sources.shard import Number
from softlabel.schemas.errors import DataError
from softlabel.schemas.location import Location
from softlabel.schemas.teacher import NumberInput


def fitted_input(path: Location, number: Number, wanted: NumberInput, taker: str) -> NumberInput:
    """The input with the shape that the column gives it, for axes that the graph leaves open.

    A single number may be taken as an axis of one. Raises DataError where the shapes differ.
    """
    has = number.shape if number.shape or len(wanted.shape) != 1 else (1,)
    pairs = list(zip(has, wanted.shape, strict=False))
    if len(has) == len(wanted.shape) and all(one == two or -1 in (one, two) for one, two in pairs):
        shape = tuple(max(pair) for pair in pairs)
        if -1 not in shape:
            return wanted.model_copy(update={"shape": shape})
    raise DataError(
        f"{path}: column {wanted.name!r} holds {axes(number.shape)} a sample, {taker} takes "
        f"{axes(wanted.shape)}; write it so (where both leave a length open, as lists of a fixed "
        "size)"
    )


def axes(shape: Sequence[int]) -> str:
    """A shape in words, "any" for an open axis."""
    return f"[{', '.join('any' if axis < 0 else str(axis) for axis in shape)}]"


def size(shape: tuple[int, int, int]) -> str:
    """The shape in words: height x width and channels."""
    height, width, channels = shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
