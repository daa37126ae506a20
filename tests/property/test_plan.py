"""Laws of the plan: every row once, in order, in batches that do not cross shards."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from softlabel.pipeline.inference.plan import batches, plan_shards
from softlabel.schemas.labelset import Segment, SourceFile

SOURCES = st.lists(st.integers(0, 120), max_size=8).map(
    lambda sizes: [
        SourceFile(name=f"source-{index}", rows=rows, bytes=1) for index, rows in enumerate(sizes)
    ]
)
BATCHES = st.integers(1, 9)
SHARD_ROWS = st.integers(1, 200)

Row = tuple[str, int]


def rows_of(segments: Iterable[Segment]) -> list[Row]:
    return [
        (segment.source, row)
        for segment in segments
        for row in range(segment.first, segment.first + segment.rows)
    ]


def all_rows(source: Sequence[SourceFile]) -> list[Row]:
    return [(file.name, row) for file in source for row in range(file.rows)]


def longest(batch_size: int, shard_rows: int) -> int:
    """`shard_rows`, rounded up to whole batches."""
    return next(rows for rows in range(shard_rows, shard_rows + 99) if rows % batch_size == 0)


@given(SOURCES, BATCHES, SHARD_ROWS)
def test_every_row_is_in_exactly_one_shard_and_in_order(
    source: list[SourceFile], batch_size: int, shard_rows: int
) -> None:
    shards = plan_shards(source, batch_size, shard_rows)
    planned = [row for shard in shards for row in rows_of(shard.segments)]
    assert planned == all_rows(source)
    assert all(shard.rows == len(rows_of(shard.segments)) > 0 for shard in shards)
    names = [shard.name for shard in shards]
    assert names == [f"part-{index:05d}" for index in range(len(shards))]


@given(SOURCES, BATCHES, SHARD_ROWS)
def test_the_plan_is_a_pure_function(
    source: list[SourceFile], batch_size: int, shard_rows: int
) -> None:
    again = plan_shards(tuple(source), batch_size, shard_rows)
    assert plan_shards(source, batch_size, shard_rows) == again


@given(SOURCES, BATCHES, SHARD_ROWS)
def test_batches_are_full_but_for_a_shards_last(
    source: list[SourceFile], batch_size: int, shard_rows: int
) -> None:
    for shard in plan_shards(source, batch_size, shard_rows):
        cut = [rows_of(batch) for batch in batches(shard, batch_size)]
        assert [row for batch in cut for row in batch] == rows_of(shard.segments)
        *whole, last = [len(batch) for batch in cut]
        assert all(size == batch_size for size in whole)
        assert 0 < last <= batch_size


@given(SOURCES, BATCHES, SHARD_ROWS)
def test_no_shard_is_longer_than_asked_for_in_whole_batches(
    source: list[SourceFile], batch_size: int, shard_rows: int
) -> None:
    limit = longest(batch_size, shard_rows)
    assert all(shard.rows <= limit for shard in plan_shards(source, batch_size, shard_rows))


@given(SOURCES, BATCHES, SHARD_ROWS)
def test_only_small_pieces_share_a_shard(
    source: list[SourceFile], batch_size: int, shard_rows: int
) -> None:
    for shard in plan_shards(source, batch_size, shard_rows):
        if len(shard.segments) > 1:
            assert all(segment.rows < 16 * batch_size for segment in shard.segments)


@given(SOURCES, BATCHES, SHARD_ROWS)
def test_a_small_shard_had_no_room_for_what_follows(
    source: list[SourceFile], batch_size: int, shard_rows: int
) -> None:
    limit = longest(batch_size, shard_rows)
    shards = plan_shards(source, batch_size, shard_rows)
    for shard, following in pairwise(shards):
        next_rows = following.segments[0].rows
        small = shard.rows < min(16 * batch_size, limit)
        if small and next_rows < 16 * batch_size:
            assert shard.rows + next_rows > limit


@given(SOURCES, BATCHES, SHARD_ROWS)
def test_a_source_shard_of_fitting_size_has_a_label_shard_of_its_own(
    source: list[SourceFile], batch_size: int, shard_rows: int
) -> None:
    shards = {shard.segments for shard in plan_shards(source, batch_size, shard_rows)}
    for file in source:
        if 16 * batch_size <= file.rows <= shard_rows:
            assert (Segment(source=file.name, first=0, rows=file.rows),) in shards
