"""Laws of the join: every sample once, with its own label, in an order that is a pure function."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.spans import Steps, batch_shares
from tests.unit.builders import (
    CLASSES,
    numbers_of_keys,
    numbers_of_logits,
    numbers_of_pixels,
    write_labels,
    write_source,
)

ROWS = 42
SEEDS = st.integers(0, 2**40)
EPOCHS = st.integers(0, 1000)
BATCHES = st.integers(1, ROWS + 5)
SHUFFLES = st.one_of(st.integers(1, ROWS + 5), st.just(65536))


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> JoinedSamples:
    root = tmp_path_factory.mktemp("joined")
    source = write_source(root / "data", (10, 1, 19, 5, 7))
    folder = write_labels(root / "labels", source, batch_size=3, shard_rows=6)
    return JoinedSamples(source, open_labelset(folder))


def numbers(batches: list[TrainingBatch]) -> list[int]:
    return [number for batch in batches for number in numbers_of_keys(batch.keys)]


@given(SEEDS, EPOCHS, BATCHES, SHUFFLES)
def test_an_epoch_is_every_sample_once_in_full_batches(
    joined: JoinedSamples, seed: int, epoch: int, batch_size: int, shuffle_rows: int
) -> None:
    batches = list(joined.epoch(seed, epoch, batch_size, shuffle_rows))
    assert sorted(numbers(batches)) == list(range(ROWS))
    *whole, last = [len(batch.keys) for batch in batches]
    assert all(size == batch_size for size in whole)
    assert 0 < last <= batch_size


@given(SEEDS, EPOCHS, BATCHES, SHUFFLES)
def test_a_label_belongs_to_its_key(
    joined: JoinedSamples, seed: int, epoch: int, batch_size: int, shuffle_rows: int
) -> None:
    for batch in joined.epoch(seed, epoch, batch_size, shuffle_rows):
        keys = numbers_of_keys(batch.keys)
        assert batch.teacher is not None
        assert numbers_of_logits(batch.teacher) == keys
        assert numbers_of_pixels(batch.pixels).tolist() == keys
        assert batch.labels.tolist() == [key % len(CLASSES) for key in keys]


@given(SEEDS, EPOCHS, BATCHES, BATCHES, SHUFFLES)
def test_the_order_is_a_pure_function_of_seed_and_epoch(
    joined: JoinedSamples, seed: int, epoch: int, one: int, other: int, shuffle_rows: int
) -> None:
    first = numbers(list(joined.epoch(seed, epoch, one, shuffle_rows)))
    again = numbers(list(joined.epoch(seed, epoch, other, shuffle_rows)))
    assert first == again


@given(SEEDS, EPOCHS, BATCHES, SHUFFLES, st.integers(0, ROWS), st.integers(1, 3))
def test_ranks_share_the_order_from_any_position_on(
    joined: JoinedSamples,
    seed: int,
    epoch: int,
    batch_size: int,
    shuffle_rows: int,
    start: int,
    ranks: int,
) -> None:
    whole = numbers(list(joined.epoch(seed, epoch, batch_size, shuffle_rows)))
    steps = Steps(ROWS, start, batch_size, ranks)
    for rank in range(ranks):
        batches = joined.batches(seed, epoch, shuffle_rows, steps.spans(rank))
        for span, batch in zip(steps.spans(rank), batches, strict=True):
            keys = numbers_of_keys(batch.keys)
            assert keys == whole[span.first : span.end]
            assert numbers_of_pixels(batch.pixels).tolist() == keys
            assert batch.block is not None
            assert numbers_of_logits(batch.block.logits()) == keys


@given(SEEDS, EPOCHS, BATCHES, SHUFFLES, st.integers(0, ROWS + 1))
def test_an_epoch_can_begin_at_any_batch(
    joined: JoinedSamples, seed: int, epoch: int, batch_size: int, shuffle_rows: int, first: int
) -> None:
    whole = list(joined.epoch(seed, epoch, batch_size, shuffle_rows))
    rest = list(joined.epoch(seed, epoch, batch_size, shuffle_rows, first))
    assert [batch.keys for batch in rest] == [batch.keys for batch in whole[first:]]
    for batch in rest:
        assert batch.teacher is not None
        assert numbers_of_logits(batch.teacher) == numbers_of_keys(batch.keys)


@given(st.integers(1, 60), BATCHES, st.integers(0, 4), st.integers(1, 5))
def test_ranks_divide_each_batch(rows: int, batch_size: int, first: int, ranks: int) -> None:
    steps = zip(
        *(batch_shares(rows, batch_size, first, (rank, ranks)) for rank in range(ranks)),
        strict=True,
    )
    begin = first * batch_size
    for step in steps:
        end = min(begin + batch_size, rows)
        own = [span for span, share in step if share]
        assert [position for span in own for position in range(*span)] == list(range(begin, end))
        assert sum(share for _, share in step) == pytest.approx(1)
        for span, share in step:
            assert share == 0 or share == (span.end - span.first) / (end - begin)
            assert begin <= span.first < span.end <= end
        begin = end
    assert begin >= rows
