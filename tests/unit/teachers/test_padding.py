"""A teacher of sequences must not hear padding: the check asks it again without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from softlabel.pipeline.teachers.padding import check_padding
from softlabel.schemas.errors import DataError
from softlabel.schemas.sample import POSITIONS, Array, TeacherOutput

PATH = Path("teacher.onnx")


def samples(*lengths: int, width: int = 4, names: tuple[str, ...] = ("input_ids",)) -> Array:
    kinds = [(name, np.int64, (width + (name == "input_ids"),)) for name in names]
    values = np.zeros(len(lengths), [*kinds, (POSITIONS, bool, (width,))])
    values[POSITIONS] = np.arange(width) < np.array(lengths)[:, None]
    for name in names:
        values[name] = 1 + np.arange(values[name].shape[1])
    return values


def by_width(rows: Array) -> TeacherOutput:
    """As many zeros and ones a position as the decoder's, else the only, input is wide."""
    name = (rows.dtype.names or ())[-2]
    said = np.full((len(rows), rows[POSITIONS].shape[1], 2), float(rows[name].shape[1]))
    return TeacherOutput(np.asarray(said[rows[POSITIONS]], np.float32))


def steady(rows: Array) -> TeacherOutput:
    return TeacherOutput(np.ones((int(rows[POSITIONS].sum()), 2), np.float32))


def inside_by_width(rows: Array) -> TeacherOutput:
    return TeacherOutput(steady(rows).logits, by_width(rows).logits)


def never(rows: Array) -> TeacherOutput:
    raise AssertionError("nothing was to be asked")


def test_the_shortest_sequence_is_asked_again_without_its_padding() -> None:
    asked: list[Array] = []

    def run(rows: Array) -> TeacherOutput:
        asked.append(rows)
        return steady(rows)

    batch = samples(4, 2, 0, 3)
    assert check_padding(batch, steady(batch), run, PATH)
    (one,) = asked
    assert one[POSITIONS].tolist() == [[True, True]]
    assert one["input_ids"].tolist() == [[1, 2]]


def test_an_answer_that_padding_changes_is_refused() -> None:
    batch = samples(4, 2)
    with pytest.raises(
        DataError, match=r"teacher.onnx: says something else .* when padding stands"
    ):
        check_padding(batch, by_width(batch), by_width, PATH)


def test_features_that_padding_changes_are_refused() -> None:
    batch = samples(4, 2)
    with pytest.raises(DataError, match=r"\(features differ by 3\)"):
        check_padding(batch, inside_by_width(batch), inside_by_width, PATH)


def test_an_encoder_keeps_its_length() -> None:
    names = ("input_ids", "decoder_input_ids")
    batch = samples(4, 2, names=names)

    def run(rows: Array) -> TeacherOutput:
        assert rows["input_ids"].shape == (1, 5)
        assert rows["decoder_input_ids"].shape == (1, 2)
        return steady(rows)

    assert check_padding(batch, steady(batch), run, PATH)


def test_without_padding_behind_nothing_is_asked() -> None:
    batch = samples(4, 4, 0)
    batch[POSITIONS][1] = [False, True, True, True]
    assert not check_padding(batch, steady(batch), never, PATH)
