"""Blocks in another codec, blocks of some classes, and the cutting of rows into shards."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from softlabel.pipeline.codecs.codec import encode_rows
from softlabel.pipeline.codecs.make import make_codec
from softlabel.pipeline.deriving.conversion import Converter, recode
from softlabel.pipeline.deriving.subset import KeyList, read_class_list
from softlabel.pipeline.labelset.portions import RowReader, whole_portions
from softlabel.pipeline.shards.block import PIECE_ROWS, LabelBlock, concat_blocks
from softlabel.pipeline.shards.choosing import choose_classes
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import CodecName
from tests.unit.blocks import block_of, packing_of, same
from tests.unit.label_sets import all_rows, numbered, write_set


def exact(logits: np.ndarray, lengths: list[int] | None = None) -> LabelBlock:
    """Raw logits `[P, 6]` as a block in dense-f32."""
    packing = packing_of("dense-f32", positions=lengths is not None)
    rows = encode_rows(packing.codec, logits.astype(np.float32))
    count = len(logits) if lengths is None else len(lengths)
    return LabelBlock(
        keys=pa.array([f"key-{row}" for row in range(count)]),
        labels=pa.array(np.arange(len(logits), dtype=np.int32) % 6),
        top1=rows.top1,
        shift=rows.shift,
        payload=rows.columns,
        codec=packing.codec,
        lengths=None if lengths is None else np.asarray(lengths, np.uint32),
    )


RAW = np.random.default_rng(5).normal(0, 4, (40, 6)).astype(np.float32)


@pytest.mark.parametrize("codec", ["dense-f32", "dense-f16", "dense-u8", "topk"])
def test_exact_logits_are_packed_as_the_teachers_own(codec: CodecName) -> None:
    target = packing_of(codec).codec
    block, rows = recode(exact(RAW), target), encode_rows(target, RAW)
    for name, values in rows.columns.items():
        assert block.payload[name].tobytes() == values.tobytes()
    assert block.shift.tobytes() == rows.shift.tobytes()
    assert block.top1.tobytes() == rows.top1.tobytes()


def test_a_shift_of_minus_zero_stays() -> None:
    block = exact(np.asarray([[-0.0, -1, -2, -3, -4, -5]]))
    assert np.signbit(block.shift[0])
    assert np.signbit(recode(block, packing_of("dense-f16").codec).shift[0])


def test_without_a_codec_nothing_is_touched() -> None:
    block = exact(RAW)
    assert Converter(None).convert(block) is block


def test_lossy_logits_keep_their_arg_max_and_their_shift() -> None:
    half = recode(exact(RAW), packing_of("dense-f16").codec)
    for codec in ("dense-f32", "dense-u8", "topk"):
        again = recode(half, packing_of(codec).codec)
        np.testing.assert_array_equal(again.top1, half.top1)
        np.testing.assert_array_equal(again.shift, half.shift)


def test_chosen_classes_come_under_their_own_maximum() -> None:
    raw = np.asarray([[9, 1, 2, 3, 4, 5], [0, 9, 9, 1, -np.inf, 2]], np.float32)
    block = choose_classes(exact(raw), [4, 2, 1], make_codec("dense-f32", 3, (1.0,)))
    np.testing.assert_array_equal(block.payload["logits"], [[0, -2, -3], [-np.inf, 0, 0]])
    np.testing.assert_array_equal(block.shift, [4, 9])
    np.testing.assert_array_equal(block.top1, [0, 1])
    assert block.labels.to_pylist() == [None, 2]
    sums = np.log(1 + np.exp(-2) + np.exp(-3)), np.log(2)
    np.testing.assert_allclose(block.payload["lse"][:, 0], sums, rtol=1e-6)


def test_an_unknown_label_stays_unknown() -> None:
    block = exact(RAW[:3])
    block = replace(block, labels=pa.array([None, 5, 0], pa.int32()))
    chosen = choose_classes(block, [5, 3], make_codec("dense-f32", 2, (1.0,)))
    assert chosen.labels.to_pylist() == [None, 0, None]


@pytest.mark.parametrize(("position", "key"), [(0, "key-0"), (2, "key-1"), (3, "key-3")])
def test_a_refused_position_names_the_key_of_its_sequence(position: int, key: str) -> None:
    """Sequences of 2, 1, 0 and 2 positions."""
    raw = RAW[:5].copy()
    raw[position, 1] = -np.inf
    with pytest.raises(DataError, match=f"-inf.* for key '{key}'; take another codec"):
        recode(exact(raw, [2, 1, 0, 2]), packing_of("dense-u8", positions=True).codec)


@pytest.mark.parametrize("shape", [{}, {"views": 2}, {"positions": True}])
def test_row_ranges_across_shards(tmp_path: Path, shape: dict[str, int]) -> None:
    packing = packing_of("dense-f16", **shape)  # type: ignore[arg-type]
    lengths = ([1, 2, 1, 3], [2, 1], [1] * 6) if "positions" in shape else (None,) * 3
    blocks = [
        block_of(packing, rows, length, seed=rows)
        for rows, length in zip((4, 2, 6), lengths, strict=True)
    ]
    labels = write_set(tmp_path / "labels", packing, numbered(blocks, packing.identity.views))
    every, reader = all_rows(labels), RowReader(labels)
    for first in range(12):
        for stop in range(first + 1, 13):
            found = concat_blocks(list(reader.read(first, stop)))
            same(found, every.slice(first, stop - first))


def test_blocks_are_bounded(tmp_path: Path) -> None:
    packing = packing_of("dense-f16")
    labels = write_set(tmp_path / "labels", packing, numbered([block_of(packing, PIECE_ROWS + 10)]))
    sizes = [len(block) for block in RowReader(labels).read(5, PIECE_ROWS + 10)]
    assert sizes == [PIECE_ROWS, 5]


def test_portions_are_the_whole_set(tmp_path: Path) -> None:
    packing = packing_of("dense-f16", views=2)
    blocks = numbered([block_of(packing, rows) for rows in (6, 10, 4)], 2)
    labels = write_set(tmp_path / "labels", packing, blocks)
    kept = [portion.shard for portion in whole_portions(labels.manifest, None)]
    assert [(s.name, s.rows, s.segments) for s in kept] == [
        (s.name, s.rows, s.segments) for s in labels.manifest.shards
    ]
    cut = whole_portions(labels.manifest, 4)
    assert [(portion.first, portion.stop) for portion in cut] == [(0, 8), (8, 16), (16, 20)]
    found = [[(part.first, part.rows) for part in portion.shard.segments] for portion in cut]
    assert found == [[(0, 4)], [(4, 4)], [(8, 2)]]


def test_key_lists(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes("b\nü x\r\nd".encode())
    mask = KeyList(path).mask(pa.array(["a", "b", "ü x\r", "ü x"]))
    assert mask.tolist() == [False, True, True, False]
    path.write_bytes(b"\xff\n")
    with pytest.raises(ParameterError, match="the keys cannot be read"):
        KeyList(path)
    with pytest.raises(ParameterError, match="the keys cannot be read"):
        KeyList(tmp_path)


def test_class_lists(tmp_path: Path) -> None:
    packing = packing_of("dense-f16")
    labels = write_set(tmp_path / "labels", packing, numbered([block_of(packing)]))
    path = tmp_path / "classes"
    path.write_text("f\na\n")
    assert read_class_list(path, labels) == (5, 0)
    path.write_text("f\n\na\n")
    with pytest.raises(DataError, match="line 2 is blank"):
        read_class_list(path, labels)
