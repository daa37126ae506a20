from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from softlabel.pipeline import join
from softlabel.pipeline.join import JoinedSamples, TrainingBatch
from softlabel.pipeline.labelset import open_labelset
from softlabel.pipeline.sources.parquet import ParquetSource, write_source_shard
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import SampleBlock
from tests.unit.builders import (
    CLASSES,
    numbers_of_keys,
    numbers_of_logits,
    numbers_of_pixels,
    samples,
    write_labels,
    write_source,
)

SHARDS = (10, 3, 12, 7)


@pytest.fixture
def source(tmp_path: Path) -> ParquetSource:
    return write_source(tmp_path / "data", SHARDS)


@pytest.fixture
def folder(tmp_path: Path, source: ParquetSource) -> Path:
    return write_labels(tmp_path / "labels", source, batch_size=2, shard_rows=4)


def joined(source: ParquetSource, folder: Path) -> JoinedSamples:
    return JoinedSamples(source, open_labelset(folder))


def order(joined: JoinedSamples, seed: int = 0, epoch: int = 0, rows: int = 65536) -> list[int]:
    batches = joined.epoch(seed, epoch, 4, rows)
    return [number for batch in batches for number in numbers_of_keys(batch.keys)]


def expect_aligned(batch: TrainingBatch) -> None:
    numbers = numbers_of_keys(batch.keys)
    assert numbers_of_pixels(batch.pixels).tolist() == numbers
    assert batch.labels.dtype == np.int64
    assert batch.labels.tolist() == [number % len(CLASSES) for number in numbers]
    assert batch.teacher is not None
    assert numbers_of_logits(batch.teacher) == numbers


def test_labels_follow_their_keys(source: ParquetSource, folder: Path) -> None:
    samples_with_labels = joined(source, folder)
    assert samples_with_labels.rows == sum(SHARDS)
    for batch in samples_with_labels.epoch(seed=3, epoch=1, batch_size=5, shuffle_rows=16):
        expect_aligned(batch)


def test_units_of_a_large_shard_are_joined_too(
    source: ParquetSource, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "UNIT_ROWS", 4)
    batches = list(joined(source, folder).epoch(seed=3, epoch=1, batch_size=5, shuffle_rows=8))
    for batch in batches:
        expect_aligned(batch)
    seen = [number for batch in batches for number in numbers_of_keys(batch.keys)]
    assert sorted(seen) == list(range(sum(SHARDS)))


@pytest.mark.parametrize("shuffle_rows", [1, 16, 65536])
def test_every_epoch_and_seed_has_an_order_of_its_own(
    source: ParquetSource, folder: Path, shuffle_rows: int
) -> None:
    both = joined(source, folder)
    orders = [
        tuple(order(both, seed, epoch, shuffle_rows)) for seed in range(4) for epoch in range(4)
    ]
    assert len(set(orders)) == 16
    assert tuple(range(sum(SHARDS))) not in orders


def test_a_large_window_mixes_the_shards(source: ParquetSource, folder: Path) -> None:
    first = order(joined(source, folder), rows=65536)[:16]
    assert len({number // 10 for number in first}) > 1
    small = order(joined(source, folder), rows=1)
    starts = np.cumsum([0, *SHARDS])
    places = np.searchsorted(starts, small, side="right")
    assert np.count_nonzero(np.diff(places)) == len(SHARDS) - 1


def test_hard_training_sees_the_same_batches(source: ParquetSource, folder: Path) -> None:
    hard = JoinedSamples(source, None).epoch(5, 2, 4, 16)
    soft = joined(source, folder).epoch(5, 2, 4, 16)
    for one, other in zip(hard, soft, strict=True):
        assert one.teacher is None
        assert one.keys.equals(other.keys)
        assert np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.labels, other.labels)


def test_the_last_batch_alone_may_be_small(source: ParquetSource, folder: Path) -> None:
    sizes = [len(batch.keys) for batch in joined(source, folder).epoch(0, 0, 5, 8)]
    assert sizes == [5] * 6 + [2]


def test_a_part_of_what_was_labelled_may_be_trained_on(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "data/part-00001.parquet").unlink()
    part = joined(ParquetSource(tmp_path / "data"), folder)
    assert sorted(order(part)) == [n for n in range(sum(SHARDS)) if n not in range(10, 13)]
    for batch in part.epoch(0, 0, 4, 8):
        expect_aligned(batch)


def test_the_labels_of_another_source_are_refused(tmp_path: Path, folder: Path) -> None:
    other = write_source(tmp_path / "other", SHARDS, first=1)
    wanted = r"labels does not hold the labels of .*other/part-00000\.parquet as it is now; run"
    with pytest.raises(DataError, match=wanted):
        joined(other, folder)


def test_a_source_that_changed_is_refused(tmp_path: Path, folder: Path) -> None:
    block = samples(12, first=13)
    pixels = block.inputs.copy()
    pixels[0, 1, 2, 0] = 1
    changed = SampleBlock(block.keys, pixels, block.labels)
    write_source_shard(tmp_path / "data/part-00002.parquet", changed, CLASSES)
    with pytest.raises(DataError, match=r"part-00002\.parquet as it is now; run 'softlabel infer'"):
        joined(ParquetSource(tmp_path / "data"), folder)


def test_a_source_that_grew_is_refused(tmp_path: Path, folder: Path) -> None:
    write_source_shard(tmp_path / "data/part-00004.parquet", samples(2, first=32), CLASSES)
    with pytest.raises(DataError, match=r"part-00004\.parquet as it is now"):
        joined(ParquetSource(tmp_path / "data"), folder)


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        (CLASSES[::-1], "order their classes differently; label this source again"),
        ((*CLASSES[:3], "eel"), "lacks classes of source .*: 'eel'"),
        ((*CLASSES, "eel"), "has 4 classes, source .* has 5"),
    ],
)
def test_other_classes_are_refused(
    tmp_path: Path, folder: Path, classes: tuple[str, ...], problem: str
) -> None:
    other = write_source(tmp_path / "other", SHARDS, classes)
    with pytest.raises(DataError, match=f"label set .*labels.*{problem}"):
        joined(other, folder)


class Shifted(ParquetSource):
    """A source whose keys are off by one against its pictures: labels made from it lie."""

    def read(self, segments: Sequence[Segment]) -> SampleBlock:
        block = super().read(segments)
        keys = [f"n{number + 1}" for number in numbers_of_keys(block.keys)]
        return SampleBlock(pa.array(keys), block.inputs, block.labels)


def test_labels_shifted_by_one_row_are_refused_by_key(
    tmp_path: Path, source: ParquetSource
) -> None:
    folder = write_labels(tmp_path / "shifted", Shifted(source.path))
    wanted = r"shifted: sample 'n(\d+)' meets the label of 'n\d+'; the source changed since"
    with pytest.raises(DataError, match=wanted):
        order(joined(source, folder))


def test_a_sample_without_a_hard_label_is_named(tmp_path: Path) -> None:
    block = samples(3)
    unlabelled = SampleBlock(block.keys, block.inputs, pa.array([0, None, 2], pa.int32()))
    (tmp_path / "bare").mkdir()
    write_source_shard(tmp_path / "bare/part-00000.parquet", unlabelled, CLASSES)
    with pytest.raises(DataError, match="bare: key 'n1' has no hard label; training needs one"):
        order(JoinedSamples(ParquetSource(tmp_path / "bare"), None))
