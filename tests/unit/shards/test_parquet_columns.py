import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import softlabel
from softlabel.pipeline.shards import parquet as parquet_shards
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.shards.layouts import open_shard, writing_shard
from softlabel.pipeline.shards.packing import Packing
from softlabel.pipeline.shards.parquet_columns import shard_header, shard_schema, to_batch, to_block
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import SHARD_METADATA_KEY, CodecName, Layout
from tests.unit.blocks import CODECS, FEATURES, HEAD, block_of, packing_of, same, write_set

LAYOUTS: tuple[Layout, ...] = ("packed", "lists")
# Empty rows first, between others and last.
LENGTHS = (0, 2, 0, 3, 1, 0)


def written(folder: Path, packing: Packing, *blocks: LabelBlock) -> Path:
    with writing_shard(folder, "part", packing) as writer:
        for block in blocks:
            writer.append(block)
        writer.finish()
    return folder / "part.parquet"


def read(folder: Path, packing: Packing, first: int = 0, rows: int | None = None) -> LabelBlock:
    reader = open_shard(folder, "part", packing)
    return concat_blocks(list(reader.read(first, reader.rows if rows is None else rows)))


def shapes(codec: CodecName, layout: Layout) -> list[tuple[Packing, LabelBlock]]:
    """Plain rows, views, sequences, features, and all of them together."""
    found = []
    # The features of a factored set are its payload.
    for features in (False,) if codec == "factored" else (False, True):
        for views in (1, 2):
            for positions in (False, True):
                packing = packing_of(
                    codec, layout, views=views, positions=positions, features=features
                )
                found.append((packing, block_of(packing, 6, LENGTHS if positions else None)))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS)
def test_what_was_written_is_read(tmp_path: Path, codec: CodecName, layout: Layout) -> None:
    for packing, block in shapes(codec, layout):
        written(tmp_path, packing, block)
        same(read(tmp_path, packing), block)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS)
def test_any_row_range_is_read(tmp_path: Path, codec: CodecName, layout: Layout) -> None:
    packing, block = shapes(codec, layout)[-1]
    written(tmp_path, packing, block)
    for first in range(6):
        for rows in range(1, 7 - first):
            same(read(tmp_path, packing, first, rows), block.slice(first, rows))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS)
def test_blocks_cut_at_an_offset_are_written_as_they_are(
    tmp_path: Path, codec: CodecName, layout: Layout
) -> None:
    for packing, block in shapes(codec, layout):
        whole = written(tmp_path, packing, block).read_bytes()
        pieces = [block.slice(0, 1), block.slice(1, 3), block.slice(4, 2)]
        assert written(tmp_path, packing, *pieces).read_bytes() == whole


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_of_a_table_is_read_from_its_own_offset(layout: Layout) -> None:
    for codec in CODECS:
        for packing, block in shapes(codec, layout):
            table = pa.Table.from_batches([to_batch(block, packing, shard_schema(packing))])
            same(to_block(table.slice(2, 3), packing), block.slice(2, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("positions", [False, True])
def test_no_label_is_known(tmp_path: Path, layout: Layout, positions: bool) -> None:
    packing = packing_of("dense-f16", layout, positions=positions)
    block = block_of(packing, 3, (2, 0, 1) if positions else None)
    unknown = LabelBlock(
        block.keys,
        pa.nulls(3, pa.int32()),
        block.top1,
        block.shift,
        block.payload,
        block.codec,
        lengths=block.lengths,
    )
    written(tmp_path, packing, unknown)
    assert read(tmp_path, packing).labels.to_pylist() == [None] * 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sequences_without_a_single_position(tmp_path: Path, layout: Layout) -> None:
    for codec in CODECS:
        packing = packing_of(codec, layout, positions=True)
        block = block_of(packing, 3, (0, 0, 0))
        written(tmp_path, packing, block)
        same(read(tmp_path, packing), block)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS)
def test_the_file_has_the_schema_of_its_packing(
    tmp_path: Path, codec: CodecName, layout: Layout
) -> None:
    for packing, block in shapes(codec, layout):
        schema = pq.read_schema(written(tmp_path, packing, block))
        assert schema.equals(shard_schema(packing), check_metadata=True)
        assert json.loads(schema.metadata[SHARD_METADATA_KEY]) == shard_header(packing)


def columns(packing: Packing) -> dict[str, tuple[str, bool, dict[bytes, bytes] | None]]:
    return {
        field.name: (str(field.type), field.nullable, field.metadata)
        for field in shard_schema(packing)
    }


def said(dtype: str, *shape: int) -> dict[bytes, bytes]:
    return {b"dtype": dtype.encode(), b"shape": json.dumps(list(shape)).encode()}


def test_packed_columns() -> None:
    assert columns(packing_of("topk", views=2, features=True)) == {
        "key": ("string", False, None),
        "view": ("uint16", False, None),
        "label": ("int32", True, None),
        "top1": ("uint16", False, None),
        "shift": ("float", False, None),
        "ids": ("fixed_size_binary[6]", False, said("uint16", 3)),
        "logits": ("fixed_size_binary[6]", False, said("float16", 3)),
        "tail_lse": ("fixed_size_binary[12]", False, said("float32", 3)),
        "features": ("fixed_size_binary[4]", False, said("float16", FEATURES)),
    }


def test_packed_columns_of_sequences() -> None:
    assert columns(packing_of("dense-u8", positions=True)) == {
        "key": ("string", False, None),
        "length": ("uint32", False, None),
        "label": ("large_binary", False, said("int32", -1)),
        "top1": ("large_binary", False, said("uint16", -1)),
        "shift": ("large_binary", False, said("float32", -1)),
        "logits": ("large_binary", False, said("uint8", -1, 6)),
        "range": ("large_binary", False, said("float32", -1)),
        "lse": ("large_binary", False, said("float32", -1, 3)),
    }


def test_lists_are_lists() -> None:
    types = {name: kind for name, (kind, _, _) in columns(packing_of("factored", "lists")).items()}
    assert types["features"] == "fixed_size_list<element: halffloat not null>[3]"
    assert types["lse"] == "fixed_size_list<element: float not null>[3]"
    assert types["label"] == "int32"


def test_lists_of_sequences_have_a_list_a_row_and_a_value_a_position(tmp_path: Path) -> None:
    packing = packing_of("dense-f32", "lists", positions=True)
    block = block_of(packing, 3, (2, 0, 1))
    table = pq.read_table(written(tmp_path, packing, block))
    values = block.payload["logits"].tolist()
    assert table["logits"].to_pylist() == [values[:2], [], values[2:]]
    assert table["label"].to_pylist()[0] == [block.labels[0].as_py(), block.labels[1].as_py()]
    assert table["label"].to_pylist()[2] == [-1]
    assert table["length"].to_pylist() == [2, 0, 1]


def test_packed_bytes_are_little_endian_values_in_order(tmp_path: Path) -> None:
    packing = packing_of("topk", positions=True)
    block = block_of(packing, 3, (1, 0, 2))
    table = pq.read_table(written(tmp_path, packing, block))
    last = table["ids"][2].as_py()
    assert np.frombuffer(last, "<u2").reshape(-1, 3).tolist() == block.payload["ids"][1:].tolist()
    assert table["ids"][1].as_py() == b""


def test_a_big_endian_array_is_stored_little_endian(tmp_path: Path) -> None:
    packing = packing_of("dense-f32")
    block = block_of(packing)
    swapped = {name: values.astype(">f4") for name, values in block.payload.items()}
    turned = LabelBlock(block.keys, block.labels, block.top1, block.shift, swapped, block.codec)
    written(tmp_path, packing, turned)
    same(read(tmp_path, packing), block)


def groups(path: Path) -> list[int]:
    meta = pq.read_metadata(path)
    return [meta.row_group(index).num_rows for index in range(meta.num_row_groups)]


def test_row_groups_of_sequences_are_bounded_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row group ends before the sequence that would overfill it; a longer one stands alone."""
    packing = packing_of("dense-f32", positions=True)
    position = 6 * 4 + 3 * 4 + 10
    monkeypatch.setattr(parquet_shards, "ROW_GROUP_BYTES", 3 * 64 + 6 * position)
    lengths = (2, 2, 2, 1, 50, 0, 0, 0, 0, 3)
    block = block_of(packing, len(lengths), lengths)
    path = written(tmp_path, packing, block)
    assert groups(path) == [3, 1, 1, 5]
    same(read(tmp_path, packing), block)
    one_by_one = [block.slice(row, 1) for row in range(len(lengths))]
    assert written(tmp_path, packing, *one_by_one).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lengths_that_are_not_those_of_the_values_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout
) -> None:
    """As a faulty writer would have it: the sum is right, and so are the checksums."""

    def swap(block: LabelBlock, packing: Packing, schema: pa.Schema) -> pa.RecordBatch:
        wrong = pa.array([1, 3, 2, 4], pa.uint32())
        return to_batch(block, packing, schema).set_column(1, schema.field("length"), wrong)

    packing = packing_of("topk", layout, positions=True)
    monkeypatch.setattr(parquet_shards, "to_batch", swap)
    folder = write_set(tmp_path / "labels", packing, [block_of(packing, 4, [1, 2, 3, 4])])
    labels = softlabel.open(folder, "full")
    sizes = "8 bytes of label where 12" if layout == "packed" else "2 values of label where 3"
    said = rf"part-00000\.parquet: key 's/1\.é' has length 3, but {sizes} belong to it; run"
    with pytest.raises(DataError, match=said):
        list(labels.batches(4))
    with pytest.raises(DataError, match=said):
        labels.lookup(["s/0.é"])


def test_views_of_a_sample_lie_side_by_side(tmp_path: Path) -> None:
    packing = packing_of("dense-f16", views=3)
    block = block_of(packing, 6)
    table = pq.read_table(written(tmp_path, packing, block))
    assert table["view"].to_pylist() == [0, 1, 2, 0, 1, 2]
    assert table["key"].to_pylist() == ["s/0.é"] * 3 + ["s/1.é"] * 3


def test_the_head_is_no_column() -> None:
    names = shard_schema(packing_of("factored")).names
    assert names == ["key", "label", "top1", "shift", "features", "lse"]
    assert shard_header(packing_of("factored"))["head_sha256"] == HEAD.digest()
