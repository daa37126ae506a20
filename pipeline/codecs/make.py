"""The codecs by name: how a row's logits are packed, and read back at a temperature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from softlabel.pipeline.codecs.codec import Codec
from softlabel.pipeline.codecs.dense import Dense, DenseU8
from softlabel.pipeline.codecs.factored import Factored, Head
from softlabel.pipeline.codecs.topk import TopK
from softlabel.schemas.labelset import CodecName


def make_codec(
    name: CodecName,
    num_classes: int,
    temperatures: Sequence[float],
    *,
    k: int | None = None,
    prior: Sequence[float] | None = None,
    head: Head | None = None,
) -> Codec:
    """The codec called `name`; `k` and `prior` are of `topk`, `head` of `factored`.

    Raises ValueError for impossible values.
    """
    match name:
        case "topk":
            if k is None:
                raise ValueError("codec topk needs k")
            shape = None if prior is None else np.asarray(prior, np.float32)
            return TopK(k, num_classes, temperatures, shape)
        case "factored":
            if head is None:
                raise ValueError("codec factored needs a head")
            return Factored(head, temperatures)
        case "dense-u8":
            return DenseU8(num_classes, temperatures)
        case "dense-f16":
            return Dense("<f2", num_classes, temperatures)
        case "dense-f32":
            return Dense("<f4", num_classes, temperatures)
