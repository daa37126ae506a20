"""Which source rows go into which label shard: a pure function of the source and the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from softlabel.schemas.errors import ParameterError
from softlabel.schemas.labelset import Plan, Segment, ShardPlan, SourceFile

GROUP_BATCHES = 16


def plan_shards(
    source: Sequence[SourceFile],
    batch_size: int,
    shard_rows: int,
    views: int = 1,
    *,
    first: int = 0,
) -> tuple[ShardPlan, ...]:
    """One label shard a source shard, in source order; `views` label rows a sample.

    A source shard of more than `shard_rows` rows is split into ranges of that many, rounded up to
    whole batches; consecutive ones of fewer than 16 batches are grouped until they reach 16. A
    batch holds all views of its samples. first: number of the first label shard.
    """
    samples = batch_samples(batch_size, views)
    limit = -(-shard_rows // samples) * samples
    enough = min(GROUP_BATCHES * samples, limit)
    shards: list[tuple[Segment, ...]] = []
    group: list[Segment] = []
    for segment in _ranges(source, limit):
        rows = sum(member.rows for member in group)
        if group and (segment.rows >= enough or rows + segment.rows > limit):
            shards.append(tuple(group))
            group, rows = [], 0
        group.append(segment)
        if rows + segment.rows >= enough:
            shards.append(tuple(group))
            group = []
    if group:
        shards.append(tuple(group))
    return tuple(
        ShardPlan(
            name=f"part-{index:05d}",
            rows=views * sum(segment.rows for segment in segments),
            segments=segments,
        )
        for index, segments in enumerate(shards, first)
    )


def share_of(plan: Plan, share: tuple[int, int] | None) -> Plan:
    """The plan with the shards of part `i` of `n` alone: every n-th from the i-th on; None: all."""
    if share is None:
        return plan
    index, parts = share
    return plan.model_copy(update={"shards": plan.shards[index::parts]})


def limited(source: Sequence[SourceFile], rows: int | None) -> tuple[SourceFile, ...]:
    """The source shards as if they ended after `rows` samples in all; all of them for None."""
    if rows is None:
        return tuple(source)
    kept = []
    for file in source:
        kept.append(file.model_copy(update={"rows": min(file.rows, rows)}))
        rows -= kept[-1].rows
    return tuple(kept)


def batch_samples(batch_size: int, views: int) -> int:
    """Samples in a batch of `batch_size` label rows at most.

    Raises ParameterError where the views of one do not fit.
    """
    if views > batch_size:
        raise ParameterError(
            f"the {views} views of a sample do not fit into a batch of {batch_size}; pass "
            f"--batch-size {views} or more"
        )
    return batch_size // views


def batches(shard: ShardPlan, batch_size: int, views: int = 1) -> Iterator[tuple[Segment, ...]]:
    """The shard's source rows in batches of `batch_size` label rows; only the last may be smaller.

    Where the batch size is no multiple of `views`, all of them are smaller by the rest.
    """
    batch_size = batch_samples(batch_size, views)
    batch: list[Segment] = []
    room = batch_size
    for segment in shard.segments:
        first, left = segment.first, segment.rows
        while left:
            rows = min(left, room)
            batch.append(Segment(source=segment.source, first=first, rows=rows))
            first, left, room = first + rows, left - rows, room - rows
            if room == 0:
                yield tuple(batch)
                batch, room = [], batch_size
    if batch:
        yield tuple(batch)


def _ranges(source: Sequence[SourceFile], limit: int) -> Iterator[Segment]:
    for file in source:
        for first in range(0, file.rows, limit):
            yield Segment(source=file.name, first=first, rows=min(limit, file.rows - first))
