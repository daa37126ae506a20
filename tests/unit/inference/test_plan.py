from softlabel.pipeline.inference.plan import batches, plan_shards
from softlabel.schemas.labelset import Segment, ShardPlan, SourceFile


def source(*rows: int) -> list[SourceFile]:
    return [SourceFile(name="abcdefgh"[i], rows=n, bytes=1) for i, n in enumerate(rows)]


def shape(shards: tuple[ShardPlan, ...]) -> list[list[tuple[str, int, int]]]:
    return [[(s.source, s.first, s.rows) for s in shard.segments] for shard in shards]


def test_one_label_shard_a_source_shard() -> None:
    plan = plan_shards(source(160, 200), batch_size=10, shard_rows=1000)
    assert shape(plan) == [[("a", 0, 160)], [("b", 0, 200)]]


def test_a_large_source_shard_is_split_into_whole_batches() -> None:
    plan = plan_shards(source(450), batch_size=10, shard_rows=195)
    assert shape(plan) == [[("a", 0, 200)], [("a", 200, 200)], [("a", 400, 50)]]


def test_small_source_shards_are_grouped_until_they_have_16_batches() -> None:
    plan = plan_shards(source(80, 79, 1, 80), batch_size=10, shard_rows=1000)
    assert shape(plan) == [[("a", 0, 80), ("b", 0, 79), ("c", 0, 1)], [("d", 0, 80)]]


def test_a_group_ends_before_a_source_shard_that_is_large_enough_alone() -> None:
    plan = plan_shards(source(5, 160, 5), batch_size=10, shard_rows=1000)
    assert shape(plan) == [[("a", 0, 5)], [("b", 0, 160)], [("c", 0, 5)]]


def test_a_group_stays_within_the_longest_shard() -> None:
    plan = plan_shards(source(6, 6, 6), batch_size=2, shard_rows=16)
    assert shape(plan) == [[("a", 0, 6), ("b", 0, 6)], [("c", 0, 6)]]


def test_empty_source_shards_take_part_in_nothing() -> None:
    assert shape(plan_shards(source(0, 3, 0), 2, 100)) == [[("b", 0, 3)]]
    assert plan_shards(source(), 2, 100) == ()


def test_batches_run_across_segments_and_not_past_the_shard() -> None:
    shard = ShardPlan(
        name="part-00000",
        rows=7,
        segments=(Segment(source="a", first=7, rows=3), Segment(source="b", first=0, rows=4)),
    )
    cut = [[(s.source, s.first, s.rows) for s in batch] for batch in batches(shard, 4)]
    assert cut == [[("a", 7, 3), ("b", 0, 1)], [("b", 1, 3)]]
