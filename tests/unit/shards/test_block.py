from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.schemas.labelset import CodecName
from tests.unit.blocks import CLASSES, CODECS, KEPT, block_of, packing_of

LENGTHS = (2, 0, 3, 1)
STORED = {
    "dense-f32": ["logits", "lse"],
    "dense-f16": ["logits", "lse"],
    "dense-u8": ["logits", "range", "lse"],
    "topk": ["ids", "logits", "tail_lse"],
    "factored": ["features", "lse"],
}


def sequences(codec: CodecName, lengths: Sequence[int] = LENGTHS) -> LabelBlock:
    return block_of(packing_of(codec, positions=True), len(lengths), lengths)


@pytest.mark.parametrize("codec", CODECS)
def test_a_slice_is_the_rows_it_names_and_no_copy(codec: CodecName) -> None:
    block = block_of(packing_of(codec, views=2), 6)
    part = block.slice(1, 4)
    assert part.to_arrow().equals(block.to_arrow().slice(1, 4))
    assert np.array_equal(part.probs(2.0), block.probs(2.0)[1:5])
    for name, values in part.payload.items():
        assert np.shares_memory(values, block.payload[name])


@pytest.mark.parametrize("codec", CODECS)
def test_a_slice_of_sequences(codec: CodecName) -> None:
    block = sequences(codec)
    for starts in (None, block.starts()):
        part = block.slice(1, 2, starts)
        assert part.lengths is not None
        assert part.lengths.tolist() == [0, 3]
        assert part.to_arrow().equals(block.to_arrow().slice(1, 2))
        assert np.array_equal(part.probs(1.0), block.probs(1.0)[2:5])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rows", [[2, 0, 2, 1], [1], []])
def test_rows_in_any_order_and_twice(codec: CodecName, rows: list[int]) -> None:
    number = np.asarray(rows, np.int64)
    for block in (block_of(packing_of(codec, views=2), 4), sequences(codec)):
        taken = block.take(number)
        assert taken.to_arrow().equals(block.to_arrow().take(pa.array(number)))


@pytest.mark.parametrize("codec", CODECS)
def test_blocks_joined_are_the_block_that_was_cut(codec: CodecName) -> None:
    for block in (block_of(packing_of(codec, views=2), 6), sequences(codec)):
        rows = len(block)
        joined = concat_blocks([block.slice(0, 1), block.slice(1, 2), block.slice(3, rows - 3)])
        assert joined.to_arrow().equals(block.to_arrow())
        assert np.array_equal(joined.probs(1.0), block.probs(1.0))


def test_features_follow_their_rows() -> None:
    block = block_of(packing_of("dense-f16", features=True), 5)
    assert block.features is not None
    for part in (block.slice(2, 2), block.take(np.array([2, 3]))):
        assert part.features is not None
        assert np.array_equal(part.features, block.features[2:4])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("T", [1.0, 1.7, 4.0])
@pytest.mark.parametrize("k", [1, 2, KEPT])
def test_sparse_targets_are_those_of_the_softmax(codec: CodecName, T: float, k: int) -> None:
    block = block_of(packing_of(codec), 40)
    sparse = block.sparse(T, k)
    probs = block.probs(T).astype(np.float64)
    assert sparse.ids.shape == sparse.logits.shape == (40, k)
    assert sparse.logits.dtype == sparse.tail_lse.dtype == sparse.tail_mass.dtype == np.float32
    assert sparse.ids.dtype == np.uint16
    kept = np.take_along_axis(probs, sparse.ids.astype(np.int64), axis=1)
    assert (sparse.ids[:, 0] == block.top1).all()
    assert (np.diff(sparse.logits, axis=1) <= 0).all()
    assert np.allclose(kept.sum(axis=1) + sparse.tail_mass, 1, atol=1e-6)
    scaled = np.exp(sparse.logits.astype(np.float64) / T)
    whole = scaled.sum(axis=1) + np.exp(sparse.tail_lse.astype(np.float64))
    assert np.allclose(scaled / whole[:, None], kept, atol=1e-6)


def test_topk_gives_what_it_stored_unless_told_otherwise() -> None:
    block = block_of(packing_of("topk"), 9)
    sparse = block.sparse(2.0)
    assert np.array_equal(sparse.ids, block.payload["ids"])
    assert np.array_equal(sparse.logits, block.payload["logits"].astype(np.float32))
    assert np.array_equal(sparse.tail_lse, block.payload["tail_lse"][:, 1])


def test_a_worked_row() -> None:
    packing = packing_of("dense-f32")
    block = block_of(packing, 1)
    d = np.log(np.asarray([[1, 8, 4, 2, 0.5, 0.5]], np.float32) / 8)
    row = LabelBlock(
        block.keys, block.labels, block.top1, block.shift, {"logits": d}, packing.codec
    )
    sparse = row.sparse(1.0, 2)
    assert sparse.ids.tolist() == [[1, 2]]
    assert sparse.logits[0].tolist() == pytest.approx([0, np.log(0.5)])
    assert sparse.tail_lse[0] == pytest.approx(np.log(0.5))
    assert sparse.tail_mass[0] == pytest.approx(4 / 16)


def test_masked_classes_have_no_tail() -> None:
    packing = packing_of("dense-f16")
    block = block_of(packing, 1)
    d = np.full((1, 6), -np.inf, np.float16)
    d[0, [2, 4]] = [0, -1]
    row = LabelBlock(
        block.keys, block.labels, block.top1, block.shift, {"logits": d}, packing.codec
    )
    sparse = row.sparse(1.0, 2)
    assert sparse.ids.tolist() == [[2, 4]]
    assert sparse.tail_lse.tolist() == [-np.inf]
    assert sparse.tail_mass.tolist() == [0]
    assert row.sparse(1.0, len(CLASSES)).tail_mass.tolist() == [0]


@pytest.mark.parametrize(
    ("codec", "k", "problem"),
    [
        ("dense-f16", None, "not stored as topk: say how many classes to keep, k"),
        ("dense-f16", 0, "k must be from 1 to 6, the number of classes; got 0"),
        ("factored", 7, "k must be from 1 to 6, the number of classes; got 7"),
        ("topk", 4, "k must be from 1 to 3, which this topk set stored; got 4"),
        ("topk", 0, "k must be from 1 to 3, which this topk set stored; got 0"),
    ],
)
def test_an_impossible_k_is_refused(codec: CodecName, k: int | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        block_of(packing_of(codec)).sparse(1.0, k)


@pytest.mark.parametrize("T", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(T: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be .*, got {T}"):
        block_of(packing_of("topk")).sparse(T)
    with pytest.raises(ValueError, match=r"temperature 0\.5 is below 1"):
        block_of(packing_of("topk")).sparse(0.5)


@pytest.mark.parametrize("codec", CODECS)
def test_a_table_has_real_lists(codec: CodecName) -> None:
    block = block_of(packing_of(codec), 4)
    table = block.to_arrow()
    assert table.column_names == ["key", "label", "top1", "shift", *STORED[codec]]
    frame = table.to_pandas()
    assert frame["key"].tolist() == block.keys.to_pylist()
    assert table["label"].to_pylist() == block.labels.to_pylist()
    assert None in table["label"].to_pylist()
    for name, values in block.payload.items():
        assert np.array_equal(np.stack(frame[name].to_list()), values)


@pytest.mark.parametrize("codec", CODECS)
def test_a_table_of_sequences_has_lists_of_lists(codec: CodecName) -> None:
    block = sequences(codec)
    table = block.to_arrow()
    labels = block.labels.to_pylist()
    assert table["label"].to_pylist() == [labels[:2], [], labels[2:5], labels[5:]]
    for row, first, stop in ((0, 0, 2), (1, 2, 2), (2, 2, 5), (3, 5, 6)):
        for name, values in block.payload.items():
            assert table[name][row].as_py() == values[first:stop].tolist()
    assert len(table.to_pandas()["shift"][2]) == 3


def test_a_table_says_views_and_features() -> None:
    block = block_of(packing_of("dense-f16", views=2, features=True), 4)
    table = block.to_arrow()
    assert table.column_names[:2] == ["key", "view"]
    assert table["view"].to_pylist() == [0, 1, 0, 1]
    assert block.features is not None
    assert table["features"].to_pylist() == block.features.tolist()
