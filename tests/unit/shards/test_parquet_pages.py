from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabel.pipeline.codecs.codec import encode_rows
from softlabel.pipeline.shards import parquet_pages
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.shards.layouts import ShardReader, open_shard, writing_shard
from softlabel.pipeline.shards.packing import Packing, make_packing
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import CodecName
from tests.unit.blocks import packing_of, same

# Pages of at least 1 MiB, cut every 1,024 rows: three of the logits, one of all else.
CLASSES, ROWS = 1000, 2500
RANGES = [(0, 1), (0, 1025), (1023, 900), (1024, 1024), (2000, 500), (2499, 1)]


def packing(codec: CodecName) -> Packing:
    identity = packing_of(codec).identity
    classes = tuple(f"c{number}" for number in range(CLASSES))
    return make_packing(identity.model_copy(update={"classes": classes}))


def write(folder: Path, made: Packing) -> LabelBlock:
    """One row group."""
    logits = np.random.default_rng(0).normal(0, 4, (ROWS, CLASSES)).astype(np.float32)
    rows = encode_rows(made.codec, logits)
    keys = pa.array([f"n{row}" for row in range(ROWS)])
    labels = pa.array(np.arange(ROWS, dtype=np.int32) % CLASSES)
    block = LabelBlock(keys, labels, rows.top1, rows.shift, rows.columns, made.codec)
    with writing_shard(folder, "part", made) as writer:
        writer.append(block)
        writer.finish()
    return block


def read(reader: ShardReader, first: int, rows: int) -> LabelBlock:
    return concat_blocks(list(reader.read(first, rows)))


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The row ranges that are read by pages."""
    ranges = []
    plain = parquet_pages.GroupPages.read

    def noted(self: parquet_pages.GroupPages, first: int, rows: int) -> Any:
        ranges.append((first, rows))
        return plain(self, first, rows)

    monkeypatch.setattr(parquet_pages.GroupPages, "read", noted)
    return ranges


@pytest.mark.parametrize("codec", ["dense-f32", "dense-f16", "dense-u8", "topk"])
@pytest.mark.parametrize(("first", "rows"), RANGES)
def test_a_few_rows_are_those_of_the_group(
    tmp_path: Path, paged: list[tuple[int, int]], codec: CodecName, first: int, rows: int
) -> None:
    made = packing(codec)
    whole = write(tmp_path, made)
    same(read(open_shard(tmp_path, "part", made), first, rows), whole.slice(first, rows))
    if codec.startswith("dense-f"):
        assert paged == [(first, rows)]


def test_pages_without_wanted_rows_are_not_read(tmp_path: Path) -> None:
    made = packing("dense-f16")
    whole = write(tmp_path, made)
    path = tmp_path / "part.parquet"
    data = bytearray(path.read_bytes())
    data[data.index(whole.payload["logits"][2100].tobytes()) + 7] ^= 4
    path.write_bytes(data)
    reader = open_shard(tmp_path, "part", made)
    same(read(reader, 100, 1500), whole.slice(100, 1500))
    with pytest.raises(DataError, match=r"part\.parquet: .*CRC.*; run 'softlabel verify --repair"):
        read(reader, 2048, 1)


def test_small_steps_do_not_read_a_page_for_each(
    tmp_path: Path, paged: list[tuple[int, int]]
) -> None:
    made = packing("dense-f16")
    whole = write(tmp_path, made)
    reader = open_shard(tmp_path, "part", made)
    for first in range(0, ROWS, 50):
        same(read(reader, first, 50), whole.slice(first, 50))
    assert len(paged) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"compression": "zstd"},
        {"use_dictionary": ["logits"]},
        {"data_page_version": "2.0"},
        {"write_page_checksum": False},
        {"write_statistics": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_pages_of_other_kinds_are_left_to_arrow(tmp_path: Path, settings: dict[str, Any]) -> None:
    made = packing("dense-f16")
    whole = write(tmp_path, made)
    path = tmp_path / "part.parquet"
    table = pq.read_table(path)
    ours = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(table, path, **ours | settings)
    same(read(open_shard(tmp_path, "part", made), 1000, 700), whole.slice(1000, 700))
