"""Complete label sets of any packing, written from blocks of rows as a finished run does."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.labelset.closing import close
from softlabel.pipeline.labelset.folder import publish_head
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.publish import publish_bytes
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.shards.layouts import writing_shard
from softlabel.pipeline.shards.packing import Packing, make_packing
from softlabel.pipeline.shards.tally import Tally
from softlabel.schemas.labelset import (
    PLAN_FILE,
    Plan,
    Segment,
    ShardPlan,
    SourceFile,
    canonical_json,
)


def write_set(
    folder: Path, packing: Packing, blocks: Sequence[LabelBlock], source: str = "samples"
) -> LabelSet:
    """A set with a shard a block, aligned with a source shard `source` of as many rows."""
    views = packing.identity.views
    rows = sum(len(block) for block in blocks)
    file = SourceFile(name=source, rows=rows // views, bytes=rows)
    identity = packing.identity.model_copy(update={"source": (file,)})
    codec = packing.codec
    head = codec.head if isinstance(codec, Factored) else None
    packing = make_packing(identity, packing.layout, head=head)
    shards, first = [], 0
    for index, block in enumerate(blocks):
        samples = len(block) // views
        segment = Segment(source=source, first=first, rows=samples)
        name = f"part-{index:05d}"
        shards.append(ShardPlan(name=name, rows=len(block), segments=(segment,)))
        first += samples
    plan = Plan(identity=identity, execution=None, layout=packing.layout, shards=tuple(shards))
    folder.mkdir(parents=True)
    publish_bytes(folder / PLAN_FILE, canonical_json(plan))
    if head is not None:
        publish_head(folder, head)
    for shard, block in zip(shards, blocks, strict=True):
        tally = Tally(identity.temperatures, 1024)
        tally.add(block, block.logits)
        with writing_shard(folder, shard.name, packing) as writer:
            writer.append(block)
            written = writer.finish()
        receipt = tally.receipt(shard, identity.digest(), written, ())
        publish_bytes(folder / f"{shard.name}.json", canonical_json(receipt))
    close(folder, plan)
    return open_labelset(folder)


def numbered(blocks: Sequence[LabelBlock], views: int = 1) -> list[LabelBlock]:
    """The blocks with keys `key-0`, `key-1` and so on over all of them; samples have `views`."""
    result, first = [], 0
    for block in blocks:
        keys = [f"key-{(first + row) // views}" for row in range(len(block))]
        result.append(replace(block, keys=pa.array(keys, pa.string())))
        first += len(block)
    return result


def all_rows(labels: LabelSet) -> LabelBlock:
    """Every row of a set, in its order."""
    return concat_blocks(list(labels.batches(len(labels))))
