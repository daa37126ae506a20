"""The part of preprocessing that the teacher's graph does not do itself."""

from __future__ import annotations

import numpy as np

from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import Preprocess


def model_input(pixels: Array, preprocess: Preprocess) -> Array:
    """uint8 pictures `[N, height, width, channels]` as the teacher's input.

    With arithmetic in the graph they stay uint8; otherwise float32 `(x / 255 - mean) / std`.
    """
    if not preprocess.in_graph:
        deviation = np.asarray(preprocess.std, np.float32)
        scale = np.float32(1 / 255) / deviation
        pixels = pixels * scale - np.asarray(preprocess.mean, np.float32) / deviation
    if preprocess.layout == "NCHW":
        pixels = pixels.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels)
