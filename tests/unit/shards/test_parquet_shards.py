import contextlib
import gc
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabel.pipeline.shards import parquet as parquet_shards
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.shards.layouts import ShardReader, ShardWriter, open_shard, writing_shard
from softlabel.pipeline.shards.packing import make_packing
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import SHARD_METADATA_KEY, Identity
from softlabel.schemas.sample import SampleBlock
from softlabel.schemas.teacher import Preprocess
from tests.unit.builders import TEMPERATURES, Half, encode_half, samples, teacher

IDENTITY = Identity(
    teacher_sha256=("0" * 64,),
    preprocess=Preprocess(height=2, width=3, channels=1, mean=(0.5,), std=(0.5,)),
    classes=("ant", "bee", "cat", "dog"),
    class_map=None,
    output="logits",
    output_kind="logits",
    source=(),
    temperatures=TEMPERATURES,
    codec="dense-f16",
)
# 4 logits, 2 log-sums and what the writer reckons for the rest.
ROW_BYTES = 2 * 4 + 4 * 2 + 64


def encoded(rows: int, first: int = 0) -> Half:
    return encode_half(teacher(samples(rows, first).inputs), TEMPERATURES)


def writing(
    path: Path, identity: Identity = IDENTITY
) -> contextlib.AbstractContextManager[ShardWriter]:
    return writing_shard(path.parent, path.stem, make_packing(identity))


def opened(path: Path) -> ShardReader:
    return open_shard(path.parent, path.stem, make_packing(IDENTITY))


def labelled(block: SampleBlock, half: Half) -> LabelBlock:
    codec = make_packing(IDENTITY).codec
    return LabelBlock(block.keys, block.labels, half.top1, half.shift, half.columns, codec)


def write(path: Path, pieces: tuple[int, ...], identity: Identity = IDENTITY) -> tuple[int, str]:
    with writing(path, identity) as writer:
        first = 0
        for rows in pieces:
            block = samples(rows, first)
            writer.append(labelled(block, encoded(rows, first)))
            first += rows
        assert writer.rows == first
        return writer.finish()


def read(path: Path, first: int = 0, rows: int | None = None) -> LabelBlock:
    reader = opened(path)
    return concat_blocks(list(reader.read(first, reader.rows if rows is None else rows)))


def expect(block: LabelBlock, rows: int, first: int = 0) -> None:
    wanted, given = encoded(rows, first), samples(rows, first)
    assert block.keys.equals(given.keys)
    assert block.labels.equals(given.labels)
    for got, right in (
        (block.payload["logits"], wanted.payload),
        (block.shift, wanted.shift),
        (block.top1, wanted.top1),
        (block.payload["lse"], wanted.lse),
    ):
        assert got.dtype == right.dtype
        assert np.array_equal(got, right)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of three rows."""
    monkeypatch.setattr(parquet_shards, "ROW_GROUP_BYTES", 3 * ROW_BYTES)


def groups(path: Path) -> list[int]:
    meta = pq.read_metadata(path)
    return [meta.row_group(index).num_rows for index in range(meta.num_row_groups)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "part.parquet", (4, 4, 2))
    assert groups(tmp_path / "part.parquet") == [10]
    expect(read(tmp_path / "part.parquet"), 10)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("pieces", [(10,), (1,) * 10, (4, 4, 2), (3, 3, 3, 1), (2, 8)])
def test_row_groups_are_cut_by_bytes_and_not_by_batches(
    tmp_path: Path, pieces: tuple[int, ...]
) -> None:
    write(tmp_path / "part.parquet", pieces)
    assert groups(tmp_path / "part.parquet") == [3, 3, 3, 1]
    expect(read(tmp_path / "part.parquet"), 10)
    write(tmp_path / "whole.parquet", (10,))
    whole = (tmp_path / "whole.parquet").read_bytes()
    assert (tmp_path / "part.parquet").read_bytes() == whole


def test_pages_are_not_cut_by_batches_either(tmp_path: Path) -> None:
    # 3 MB of logits: several pages a column.
    classes = tuple(f"class {index}" for index in range(1000))
    identity = IDENTITY.model_copy(update={"classes": classes})
    logits = np.random.default_rng(0).normal(size=(1500, 1000)).astype(np.float32)
    block = samples(1500)
    digests = set()
    for size in (1500, 700, 64):
        with writing(tmp_path / "part.parquet", identity) as writer:
            for first in range(0, 1500, size):
                piece = block.slice(first, min(size, 1500 - first))
                rows = encode_half(logits[first : first + size], TEMPERATURES)
                writer.append(labelled(piece, rows))
            digests.add(writer.finish())
    assert len(digests) == 1


@pytest.mark.usefixtures("small_groups")
def test_row_groups_that_end_with_the_shard_leave_no_empty_one(tmp_path: Path) -> None:
    write(tmp_path / "part.parquet", (4, 2))
    assert groups(tmp_path / "part.parquet") == [3, 3]


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("first", range(10))
def test_any_row_range_is_read(tmp_path: Path, first: int) -> None:
    write(tmp_path / "part.parquet", (10,))
    for rows in range(1, 11 - first):
        expect(read(tmp_path / "part.parquet", first, rows), rows, first)


@pytest.mark.usefixtures("small_groups")
def test_blocks_do_not_cross_row_groups(tmp_path: Path) -> None:
    write(tmp_path / "part.parquet", (10,))
    reader = opened(tmp_path / "part.parquet")
    assert [len(block) for block in reader.read(1, 8)] == [2, 3, 3]
    assert reader.rows == 10


def test_labels_may_be_unknown(tmp_path: Path) -> None:
    with writing(tmp_path / "part.parquet") as writer:
        writer.append(
            replace(labelled(samples(3), encoded(3)), labels=pa.array([2, None, 0], pa.int32()))
        )
        writer.finish()
    assert read(tmp_path / "part.parquet").labels.to_pylist() == [2, None, 0]


def test_keys_of_all_rows(tmp_path: Path) -> None:
    write(tmp_path / "part.parquet", (4, 2))
    keys = opened(tmp_path / "part.parquet").keys()
    assert keys.to_pylist() == samples(6).keys.to_pylist()


def test_size_and_digest_are_those_of_the_file(tmp_path: Path) -> None:
    size, digest = write(tmp_path / "part.parquet", (4, 2))
    data = (tmp_path / "part.parquet").read_bytes()
    assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "one.parquet", (5,)) == write(tmp_path / "two.parquet", (5,))


def test_other_tools_find_the_columns_of_the_format(tmp_path: Path) -> None:
    write(tmp_path / "part.parquet", (5,))
    schema = pq.read_schema(tmp_path / "part.parquet")
    types = {field.name: (str(field.type), field.nullable) for field in schema}
    assert types == {
        "key": ("string", False),
        "label": ("int32", True),
        "top1": ("uint16", False),
        "shift": ("float", False),
        "logits": ("fixed_size_binary[8]", False),
        "lse": ("fixed_size_binary[8]", False),
    }
    assert schema.field("logits").metadata[b"dtype"] == b"float16"
    assert schema.field("logits").metadata[b"shape"] == b"[4]"
    assert schema.field("lse").metadata[b"dtype"] == b"float32"
    assert schema.field("lse").metadata[b"shape"] == b"[2]"
    header = schema.metadata[SHARD_METADATA_KEY]
    assert IDENTITY.digest().encode() in header
    row = pq.read_table(tmp_path / "part.parquet")["logits"][3].as_py()
    assert np.frombuffer(row, "<f2").tolist() == encoded(5).payload[3].tolist()


def test_another_sets_shard_is_refused(tmp_path: Path) -> None:
    other = IDENTITY.model_copy(update={"seed": 1})
    write(tmp_path / "part.parquet", (3,), other)
    wanted = r"part\.parquet: it belongs to another label set; run 'softlabel verify --repair"
    with pytest.raises(DataError, match=wanted):
        opened(tmp_path / "part.parquet")


def test_a_parquet_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "part.parquet")
    with pytest.raises(DataError, match=r"part\.parquet: it is no label shard"):
        opened(tmp_path / "part.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1PAR1", b"hello world, this is text"])
def test_what_is_no_parquet_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "part.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"part\.parquet: .*then 'softlabel infer' again") as caught:
        opened(tmp_path / "part.parquet")
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"part\.parquet"):
        opened(tmp_path / "part.parquet")


def footer_of(data: bytes) -> int:
    """Where the footer begins."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << at * 3 % 8)]) + data[at + 1 :]


@pytest.mark.parametrize(("first", "rows", "share"), [(0, 12, 0.9), (2, 7, 0.8)])
def test_a_flipped_bit_in_the_pages_is_noticed_or_without_effect(
    tmp_path: Path, first: int, rows: int, share: float
) -> None:
    """Read whole, and by pages."""
    path = tmp_path / "part.parquet"
    write(path, (12,))
    data = path.read_bytes()
    noticed = 0
    for at in range(footer_of(data)):
        path.write_bytes(flipped(data, at))
        try:
            expect(read(path, first, rows), rows, first)
        except DataError:
            noticed += 1
    assert noticed > share * footer_of(data)


def test_a_flipped_bit_in_the_keys_is_noticed_when_keys_alone_are_read(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    write(path, (12,))
    data = path.read_bytes()
    path.write_bytes(flipped(data, data.index(b"n7")))
    with pytest.raises(DataError, match=r"part\.parquet"):
        opened(path).keys()


def test_a_flipped_bit_in_the_footer_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    write(path, (12,))
    data = path.read_bytes()
    raised: dict[str, int] = {}
    for at in range(footer_of(data), len(data), 3):
        path.write_bytes(flipped(data, at))
        try:
            read(path, 0, 12)
        except DataError:
            pass
        except Exception as error:
            raised[type(error).__name__] = raised.get(type(error).__name__, 0) + 1
    assert raised == {}


def test_a_failure_leaves_no_shard_and_says_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda info: unraisable.append(repr(info.exc_value)))

    def fail() -> None:
        with writing(tmp_path / "part.parquet") as writer:
            writer.append(labelled(samples(3), encoded(3)))
            raise DataError("logits hold NaN")

    with pytest.raises(DataError, match="logits hold NaN"):
        fail()
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert unraisable == []
