"""Turning blocks of stored labels into blocks of another codec, or of some of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from softlabel.pipeline.codecs.codec import Codec, encode_rows
from softlabel.pipeline.codecs.numerics import Floats
from softlabel.pipeline.codecs.topk import TopK
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.choosing import choose_classes, naming_the_key, shifted


@dataclass(frozen=True, slots=True)
class Converter:
    """What happens to each block of a set.

    codec: how the result is packed; None where the columns are copied as they are. classes: ids
    of the classes that are kept, in their new order, int `[C']`; None for all of them.
    """

    codec: Codec | None
    classes: Sequence[int] | None = None

    def convert(self, block: LabelBlock) -> LabelBlock:
        """The block as the new set stores it. Raises DataError, naming a key, where it cannot."""
        if self.codec is None:
            return block
        if self.classes is not None:
            return choose_classes(block, self.classes, self.codec)
        if isinstance(block.codec, TopK) and isinstance(self.codec, TopK):
            with naming_the_key(block):
                payload = block.codec.narrow(block.payload, self.codec.k)
            return replace(block, payload=payload, codec=self.codec)
        return recode(block, self.codec)

    def reference(self, block: LabelBlock, T: float) -> Floats:
        """What the block said before, float32 `[P, C']`, for use at T."""
        logits = block.logits(T)
        return logits if self.classes is None else logits[:, list(self.classes)]


def recode(block: LabelBlock, codec: Codec) -> LabelBlock:
    """The block's full logits in another codec: as `infer` packs them, where they lost nothing.

    Raises DataError, naming the key, where the codec cannot hold a row.
    """
    with naming_the_key(block):
        rows = encode_rows(codec, block.logits())
    return replace(
        block,
        top1=rows.top1,
        shift=shifted(block.shift, rows.shift),
        payload=rows.columns,
        codec=codec,
    )
