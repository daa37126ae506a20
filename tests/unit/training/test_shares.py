"""Disjoint parts of a source: every sample in one of them, in batches that are full."""

from pathlib import Path

import pytest
import xxhash

from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.shares import Share
from softlabel.schemas.errors import DataError
from tests.unit.builders import numbers_of_keys, numbers_of_pixels, write_source


def test_the_parts_are_disjoint_and_make_the_whole(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (30, 20))
    samples = JoinedSamples(source, None)
    seen = []
    for index in range(3):
        share = Share(index, 3)
        batches = list(share.batches(samples.epoch(0, 0, 8, 16), 8))
        sizes = [len(batch.keys) for batch in batches]
        assert sizes[:-1] == [8] * (len(sizes) - 1)
        assert 0 < sizes[-1] <= 8
        assert sum(sizes) == share.rows(source)
        numbers = [number for batch in batches for number in numbers_of_keys(batch.keys)]
        for batch in batches:
            assert numbers_of_pixels(batch.pixels).tolist() == numbers_of_keys(batch.keys)
            assert batch.labels.tolist() == [n % 4 for n in numbers_of_keys(batch.keys)]
        hashes = [xxhash.xxh3_64_intdigest(f"n{number}".encode()) for number in numbers]
        assert {value % 3 for value in hashes} == {index}
        seen += numbers
    assert sorted(seen) == list(range(50))


def test_a_part_without_samples_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (1,))
    empty = 1 - xxhash.xxh3_64_intdigest(b"n0") % 2
    wanted = "data: has 1 samples, too few for 2 members with parts of their own; pass"
    with pytest.raises(DataError, match=wanted):
        Share(empty, 2).rows(source)
