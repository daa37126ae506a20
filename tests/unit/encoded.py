"""Samples as encoded pictures, and whole sources compared with them."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from softlabel.pipeline.sources.source import Source
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import SampleBlock


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """One picture `[height, width, channels]` as PNG, which loses nothing."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def pngs(block: SampleBlock) -> list[bytes]:
    return [png(pixels) for pixels in block.inputs]


def segments(source: Source) -> list[Segment]:
    return [
        Segment(source=file.name, first=0, rows=file.rows) for file in source.files if file.rows
    ]


def whole(source: Source) -> SampleBlock:
    return source.read(segments(source))


def same(one: SampleBlock, two: SampleBlock) -> bool:
    return (
        one.keys.equals(two.keys)
        and one.labels.equals(two.labels)
        and one.inputs.dtype == two.inputs.dtype
        and np.array_equal(one.inputs, two.inputs)
    )
