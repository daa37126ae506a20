from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from softlabel.pipeline.checking.replay import stored_rows
from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.shards import parquet as parquet_shards
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.packing import Packing
from softlabel.pipeline.shards.parquet_columns import to_block
from tests.unit.builders import numbers_of_logits, numbers_of_pixels, write_labels, write_source


def test_random_rows_with_their_pictures_each_row_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an order that is not the set's: else a shift by one row might change nothing."""
    monkeypatch.setattr(parquet_shards, "ROW_GROUP_BYTES", 500)
    source = write_source(tmp_path / "data", (40, 30))
    folder = write_labels(tmp_path / "labels", source, batch_size=4, shard_rows=32)
    reads = []

    def count(table: pa.Table, packing: Packing) -> LabelBlock:
        reads.append(table)
        return to_block(table, packing)

    monkeypatch.setattr(parquet_shards, "to_block", count)
    pixels, block = stored_rows(open_labelset(folder), source, 50, seed=3)
    found = numbers_of_logits(block.logits())
    assert numbers_of_pixels(pixels).tolist() == found
    assert found == np.random.default_rng(3).permutation(70)[:50].tolist()
    assert found != sorted(found)
    groups = 70 // 6
    whole = [table for table in reads if len(table) > 1]
    assert 1 < len(whole) <= groups + 3
    # A few rows may come by their pages before it pays to read their group.
    assert sum(len(table) for table in reads) <= 1.5 * 70
