from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import xxhash

from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.packing import folder_packing, make_packing
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.parquet import write_source_shard
from softlabel.pipeline.sources.shard import ShardRows
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.sources.views import augmentation_here
from softlabel.pipeline.training import join
from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.spans import Span
from softlabel.schemas.augment import HorizontalFlip
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import SampleBlock
from tests.unit.blocks import write_set
from tests.unit.builders import (
    CLASSES,
    TEMPERATURES,
    encode_half,
    make_identity,
    numbers_of_keys,
    numbers_of_logits,
    numbers_of_pixels,
    samples,
    teacher,
    write_labels,
    write_source,
)

SHARDS = (10, 3, 12, 7)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_source(tmp_path / "data", SHARDS)


@pytest.fixture
def folder(tmp_path: Path, source: Source) -> Path:
    return write_labels(tmp_path / "labels", source, batch_size=2, shard_rows=4)


def joined(source: Source, folder: Path) -> JoinedSamples:
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


def test_labels_follow_their_keys(source: Source, folder: Path) -> None:
    samples_with_labels = joined(source, folder)
    assert samples_with_labels.rows == sum(SHARDS)
    for batch in samples_with_labels.epoch(seed=3, epoch=1, batch_size=5, shuffle_rows=16):
        expect_aligned(batch)


def test_units_of_a_large_shard_are_joined_too(
    source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "UNIT_ROWS", 4)
    batches = list(joined(source, folder).epoch(seed=3, epoch=1, batch_size=5, shuffle_rows=8))
    for batch in batches:
        expect_aligned(batch)
    seen = [number for batch in batches for number in numbers_of_keys(batch.keys)]
    assert sorted(seen) == list(range(sum(SHARDS)))


def test_the_order_is_that_of_every_release(
    source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint made by an older one goes on with what its epoch had left."""
    monkeypatch.setattr(join, "UNIT_ROWS", 4)
    first = [7, 4, 6, 20, 15, 17, 18, 5, 19, 14, 8, 13, 16, 9]
    second = [22, 25, 27, 2, 23, 3, 21, 24, 0, 1, 26, 29, 31, 28]
    windows = [*first, *second, 30, 11, 12, 10]
    assert order(joined(source, folder), seed=3, epoch=1, rows=16) == windows


@pytest.mark.parametrize("shuffle_rows", [1, 16, 65536])
def test_every_epoch_and_seed_has_an_order_of_its_own(
    source: Source, folder: Path, shuffle_rows: int
) -> None:
    both = joined(source, folder)
    orders = [
        tuple(order(both, seed, epoch, shuffle_rows)) for seed in range(4) for epoch in range(4)
    ]
    assert len(set(orders)) == 16
    assert tuple(range(sum(SHARDS))) not in orders


def test_a_large_window_mixes_the_shards(source: Source, folder: Path) -> None:
    first = order(joined(source, folder), rows=65536)[:16]
    assert len({number // 10 for number in first}) > 1
    small = order(joined(source, folder), rows=1)
    starts = np.cumsum([0, *SHARDS])
    places = np.searchsorted(starts, small, side="right")
    assert np.count_nonzero(np.diff(places)) == len(SHARDS) - 1


def test_hard_training_sees_the_same_batches(source: Source, folder: Path) -> None:
    hard = JoinedSamples(source, None).epoch(5, 2, 4, 16)
    soft = joined(source, folder).epoch(5, 2, 4, 16)
    for one, other in zip(hard, soft, strict=True):
        assert one.teacher is None
        assert one.keys.equals(other.keys)
        assert np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.labels, other.labels)


def test_the_last_batch_alone_may_be_small(source: Source, folder: Path) -> None:
    sizes = [len(batch.keys) for batch in joined(source, folder).epoch(0, 0, 5, 8)]
    assert sizes == [5] * 6 + [2]


def test_a_part_of_what_was_labelled_may_be_trained_on(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "data/part-00001.parquet").unlink()
    part = joined(open_source(tmp_path / "data"), folder)
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
        joined(open_source(tmp_path / "data"), folder)


def test_a_source_that_grew_is_refused(tmp_path: Path, folder: Path) -> None:
    write_source_shard(tmp_path / "data/part-00004.parquet", samples(2, first=32), CLASSES)
    with pytest.raises(DataError, match=r"part-00004\.parquet as it is now"):
        joined(open_source(tmp_path / "data"), folder)


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


def shifted(source: Source, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A source whose keys are off by one against its pictures: labels made from it lie."""
    other = source.reopen()
    read = other.read

    def off_by_one(segments: Sequence[Segment]) -> SampleBlock:
        block = read(segments)
        keys = [f"n{number + 1}" for number in numbers_of_keys(block.keys)]
        return SampleBlock(pa.array(keys), block.inputs, block.labels)

    monkeypatch.setattr(other, "read", off_by_one)
    return other


def test_labels_shifted_by_one_row_are_refused_by_key(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_labels(tmp_path / "shifted", shifted(source, monkeypatch))
    wanted = r"shifted: sample 'n(\d+)' meets the label of 'n\d+'; the source changed since"
    with pytest.raises(DataError, match=wanted):
        order(joined(source, folder))


def test_a_sample_without_a_hard_label_is_named(tmp_path: Path) -> None:
    block = samples(3)
    unlabelled = SampleBlock(block.keys, block.inputs, pa.array([0, None, 2], pa.int32()))
    (tmp_path / "bare").mkdir()
    write_source_shard(tmp_path / "bare/part-00000.parquet", unlabelled, CLASSES)
    with pytest.raises(DataError, match="bare: key 'n1' has no hard label; training needs one"):
        order(JoinedSamples(open_source(tmp_path / "bare"), None))


VIEWS = 3


def shuffled(folder: Path, target: Path) -> LabelSet:
    """The rows of the set in `folder` in another order and other shards: aligned with nothing."""
    labels = open_labelset(folder)
    packing = folder_packing(folder, labels.manifest)
    (whole,) = labels.batches(len(labels))
    mixed = whole.take(np.random.default_rng(1).permutation(len(whole)))
    shards = [mixed.slice(0, 5), mixed.slice(5, 20), mixed.slice(25, len(mixed) - 25)]
    return open_labelset(write_set(target, packing, shards))


def of_views(source: Source, target: Path, order: Sequence[int]) -> LabelSet:
    """Three views of each sample, in this order of samples; logits say `sample + 100 * view`."""
    # Views like the pictures themselves: their numbers can still be read.
    augment = augmentation_here((HorizontalFlip(p=0),))
    update = {"views": VIEWS, "augment": augment}
    identity = make_identity(source).model_copy(update=update)
    packing = make_packing(identity)
    numbers = [number + 100 * view for number in order for view in range(VIEWS)]
    pixels = np.concatenate([samples(1, number).inputs for number in numbers])
    half = encode_half(teacher(pixels), TEMPERATURES)
    block = LabelBlock(
        keys=pa.array([f"n{number % 100}" for number in numbers]),
        labels=pa.array([number % 100 % 4 for number in numbers], pa.int32()),
        top1=half.top1,
        shift=half.shift,
        payload=half.columns,
        codec=packing.codec,
        views=np.tile(np.arange(VIEWS, dtype=np.uint16), len(order)),
    )
    return open_labelset(write_set(target, packing, [block]))


def aligned(labels: LabelSet, source: Source) -> LabelSet:
    """The set whose only shard holds all samples of the source, in order, saying so."""
    segments = tuple(Segment(source=file.name, first=0, rows=file.rows) for file in source.files)
    (shard,) = labels.manifest.shards
    update = {"aligned": True, "shards": (shard.model_copy(update={"segments": segments}),)}
    return LabelSet(labels.folder, labels.manifest.model_copy(update=update))


def expect_same(one: JoinedSamples, other: JoinedSamples, epoch: int) -> list[int]:
    """Both give the same batches; what the logits of all rows say."""
    said: list[int] = []
    batches = zip(one.epoch(5, epoch, 4, 16), other.epoch(5, epoch, 4, 16), strict=True)
    for first, second in batches:
        assert first.keys.equals(second.keys)
        assert np.array_equal(first.pixels, second.pixels)
        assert np.array_equal(first.labels, second.labels)
        assert first.teacher is not None
        assert second.teacher is not None
        assert np.array_equal(first.teacher, second.teacher)
        numbers = numbers_of_logits(first.teacher)
        assert [number % 100 for number in numbers] == numbers_of_keys(first.keys)
        said += numbers
    return said


def test_labels_in_another_order_join_the_same(
    tmp_path: Path, source: Source, folder: Path
) -> None:
    mixed = shuffled(folder, tmp_path / "mixed")
    assert not mixed.manifest.aligned
    said = expect_same(joined(source, folder), JoinedSamples(source, mixed), epoch=2)
    assert sorted(said) == list(range(sum(SHARDS)))


def test_a_key_without_a_label_is_named(tmp_path: Path, source: Source) -> None:
    known = [number for number in range(sum(SHARDS)) if number != 17]
    labels = of_views(source, tmp_path / "views", known)
    with pytest.raises(DataError, match="views: has no label for key 'n17'; run 'softlabel infer'"):
        order(JoinedSamples(source, labels))


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_takes_one_view_of_each_sample(tmp_path: Path, source: Source, epoch: int) -> None:
    numbers = list(range(sum(SHARDS)))
    beside = aligned(of_views(source, tmp_path / "aligned", numbers), source)
    mixed = of_views(source, tmp_path / "mixed", numbers[::-1])
    said = expect_same(JoinedSamples(source, beside), JoinedSamples(source, mixed), epoch)
    wanted = [
        number + 100 * ((epoch + xxhash.xxh3_64_intdigest(f"n{number}".encode())) % VIEWS)
        for number in numbers
    ]
    assert sorted(said) == sorted(wanted)
    assert len({number // 100 for number in said}) == VIEWS


def test_views_in_another_order_than_the_sets_are_refused(tmp_path: Path, source: Source) -> None:
    numbers = list(range(sum(SHARDS)))
    labels = of_views(source, tmp_path / "views", numbers)
    (whole,) = labels.batches(1000)
    turned = whole.take(np.arange(len(whole)).reshape(-1, VIEWS)[:, ::-1].ravel())
    packing = folder_packing(labels.folder, labels.manifest)
    other = aligned(open_labelset(write_set(tmp_path / "turned", packing, [turned])), source)
    with pytest.raises(DataError, match=r"the views of sample 'n\d+' do not stand in their order"):
        order(JoinedSamples(source, other))


@pytest.mark.parametrize("aligned", [True, False])
def test_a_sample_whose_hard_label_changed_is_named(
    tmp_path: Path, source: Source, aligned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where numbered rows were put into another order: keys, sizes and counts stay."""
    labels = open_labelset(write_labels(tmp_path / "labels", source))
    if not aligned:
        unaligned = labels.manifest.model_copy(update={"aligned": False})
        monkeypatch.setattr(labels, "manifest", unaligned)
    read = source.read_stored

    def other_labels(segments: Sequence[Segment], numbers: npt.NDArray[np.int64]) -> ShardRows:
        rows = read(segments, numbers)
        turned = [(label + 1) % len(CLASSES) for label in rows.labels.to_pylist()]
        return ShardRows(rows.keys, rows.pictures, pa.array(turned, pa.int32()))

    monkeypatch.setattr(source, "read_stored", other_labels)
    wanted = r"labels: sample 'n\d+' has hard label \d, and \d when it was labelled; the source ch"
    with pytest.raises(DataError, match=wanted):
        order(JoinedSamples(source, labels))


def test_only_the_samples_asked_for_are_read(
    source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = source.read_stored

    def counted(segments: Sequence[Segment], numbers: npt.NDArray[np.int64]) -> ShardRows:
        asked.append(len(numbers))
        return read(segments, numbers)

    monkeypatch.setattr(source, "read_stored", counted)
    both = joined(source, folder)
    whole = order(both, rows=1)
    asked.clear()
    two = list(both.epoch(0, 0, 3, 1, first_batch=1, batches=2))
    assert [numbers_of_keys(batch.keys) for batch in two] == [whole[3:6], whole[6:9]]
    assert sum(asked) == 6
    asked.clear()
    spans = [Span(0, 2), Span(sum(SHARDS) - 3, sum(SHARDS))]
    batches = list(both.batches(0, 0, 1, spans))
    assert [numbers_of_keys(batch.keys) for batch in batches] == [whole[:2], whole[-3:]]
    assert asked == [2, 3]
