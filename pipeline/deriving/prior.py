"""The class prior of a `topk` set that is made from the full logits of another set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from softlabel.pipeline.codecs.codec import shift_rows
from softlabel.pipeline.inference.prior import PRIOR_ROWS, TailPrior, spread_rows
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.labelset.portions import RowReader
from softlabel.pipeline.shards.choosing import naming_the_key
from softlabel.schemas.labelset import SourceFile


def stored_prior(labels: LabelSet, k: int, classes: Sequence[int] | None) -> tuple[float, ...]:
    """A logit a class, from up to 4,096 rows spread over the set, of the classes that are kept.

    The rows are those that `infer` takes, so from `dense-f32` it is the prior that `infer` finds.
    Raises DataError, naming the key, where all of a row's classes are masked.
    """
    chosen = np.arange(labels.num_classes) if classes is None else np.asarray(classes)
    prior = TailPrior(len(chosen), k)
    reader = RowReader(labels)
    shards = {shard.name: shard for shard in labels.manifest.shards}
    files = [SourceFile(name=shard.name, rows=shard.rows, bytes=0) for shard in shards.values()]
    for segment in spread_rows(files, PRIOR_ROWS):
        for block in reader.shard(shards[segment.source]).read(segment.first, segment.rows):
            with naming_the_key(block, "choose other classes"):
                prior.add(shift_rows(np.ascontiguousarray(block.logits()[:, chosen])).d)
    return prior.logits()
