"""Rows of lists as sequences: which column has the positions, and what padding looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import POSITIONS, SampleBlock
from softlabel.schemas.teacher import NumberInput, TeacherSpec

SENTENCES = [[1, 2, 3], [4], [], [5, 6]]
TRANSLATIONS = [[7, 8], [9, 10, 11, 12], [13], []]


def spec(*names: str, length: int = -1) -> TeacherSpec:
    inputs = tuple(NumberInput(name=name, dtype="int64", shape=(length,)) for name in names)
    return TeacherSpec(inputs=inputs, classes=("a", "b"), output="logits", positions=True)


def source(folder: Path, **columns: object) -> Source:
    pq.write_table(pa.table({"key": list("wxyz")} | columns), folder / "rows.parquet")
    return open_source(folder / "rows.parquet")


def read(opened: Source, first: int = 0, rows: int = 4) -> SampleBlock:
    return opened.read([Segment(source="rows.parquet", first=first, rows=rows)])


def test_a_decoder_has_the_positions_and_its_encoder_another_length(tmp_path: Path) -> None:
    opened = source(tmp_path, input_ids=SENTENCES, decoder_input_ids=TRANSLATIONS)
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    block = read(opened.fed(spec(*names), "the teacher"))
    assert block.lengths is not None
    assert block.lengths.tolist() == [2, 4, 1, 0]
    assert block.inputs["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0], [0, 0, 0], [5, 6, 0]]
    assert block.inputs["attention_mask"].sum(axis=1).tolist() == [3, 1, 0, 2]
    assert block.inputs["decoder_input_ids"][1].tolist() == [9, 10, 11, 12]
    there = block.inputs[POSITIONS]
    assert there.sum(axis=1).tolist() == [2, 4, 1, 0]
    np.testing.assert_array_equal(block.inputs["decoder_attention_mask"] == 1, there)


def test_a_batch_is_as_long_as_its_longest_sequence(tmp_path: Path) -> None:
    opened = source(tmp_path, tokens=TRANSLATIONS).fed(spec("tokens"), "the teacher")
    assert read(opened).inputs["tokens"].shape == (4, 4)
    assert read(opened, first=2, rows=2).inputs["tokens"].tolist() == [[13], [0]]
    parts = [Segment(source="rows.parquet", first=row, rows=1) for row in (2, 1)]
    assert opened.read(parts).inputs["tokens"].tolist() == [[13, 0, 0, 0], [9, 10, 11, 12]]


def test_hard_labels_of_padding_and_of_unknown_positions(tmp_path: Path) -> None:
    opened = source(
        tmp_path,
        input_ids=[[1, 2, 3]] * 4,
        attention_mask=[[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 1]],
        labels=[[0, -100, 1], [1, 1, -1], [0, 0, 0], [0, None, 1]],
    )
    block = read(opened.fed(spec("input_ids"), "the teacher"))
    assert block.labels.to_pylist() == [[0, None, 1], [1, None], [], [None, 1]]
    assert block.hard_labels().tolist() == [0, -1, 1, 1, -1, -1, 1]


def test_one_of_several_lists_is_named(tmp_path: Path) -> None:
    opened = source(tmp_path, left=SENTENCES, right=SENTENCES)
    with pytest.raises(DataError, match=r"'left' and 'right', and which .* call that one 'input_"):
        opened.fed(spec("left", "right"), "the teacher")
    with pytest.raises(DataError, match=r"takes 'weight' beside its sequences.*'left', 'right'"):
        opened.fed(spec("left", "weight"), "the teacher")


def test_lists_beside_the_sequence_are_as_long(tmp_path: Path) -> None:
    opened = source(tmp_path, input_ids=SENTENCES, token_type_ids=TRANSLATIONS)
    fed = opened.fed(spec("input_ids", "token_type_ids"), "the teacher")
    with pytest.raises(DataError, match=r"key 'w': column 'token_type_ids' holds 2 values, .* 3"):
        read(fed)


def test_lists_of_labels_are_of_sequences_alone(tmp_path: Path) -> None:
    opened = source(tmp_path, ids=[[1, 2]] * 4, label=[[0, 1]] * 4)
    plain = spec("ids", length=2).model_copy(update={"positions": None})
    with pytest.raises(DataError, match=r"'label' has lists of labels, and a sample has one"):
        read(opened.fed(plain, "the teacher"))
