"""A model that is fed columns by the names of its arguments."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softlabel.pipeline.teachers.sequence_model import (
    SequenceModel,
    check_said,
    taken_inputs,
    tensors,
)
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.sample import POSITIONS, Array
from softlabel.schemas.teacher import NumberInput

OFFERED = [
    NumberInput(name=name, dtype="int64", shape=(-1,))
    for name in ("input_ids", "segments", "attention_mask")
]


class Doubled(nn.Module):
    """Logits (token, mask) of each position, as a model of transformers returns them."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: None = None) -> object:
        return SimpleNamespace(logits=torch.stack([input_ids, attention_mask], dim=2).float())


class Other(nn.Module):
    def forward(self, words: Tensor, input_ids: Tensor) -> Tensor:
        return words


def samples() -> Array:
    kinds = [("input_ids", np.int64, (3,)), ("attention_mask", np.int64, (3,))]
    values = np.zeros(2, [*kinds, (POSITIONS, bool, (3,))])
    values["input_ids"] = [[7, 8, 9], [5, 0, 0]]
    values[POSITIONS] = values["attention_mask"] = [[1, 1, 1], [1, 0, 0]]
    return values


def test_it_says_what_stands_at_positions_that_are_no_padding() -> None:
    taken = taken_inputs(Doubled(), "a:b", OFFERED)
    assert [one.name for one in taken] == ["input_ids", "attention_mask"]
    model = SequenceModel(Doubled(), [one.name for one in taken])
    check_said(model, "a:b", samples(), 2)
    assert model(tensors(samples())).tolist() == [[7, 1], [8, 1], [9, 1], [5, 1]]


def test_arguments_that_are_no_columns() -> None:
    with pytest.raises(ParameterError, match=r"model 'a:b': forward takes 'words', .* 'segments'"):
        taken_inputs(Other(), "a:b", OFFERED)
    with pytest.raises(ParameterError, match="forward takes 'input', "):
        taken_inputs(nn.Embedding(3, 2), "a:b", OFFERED)


def test_a_model_of_other_shape_or_that_fails() -> None:
    model = SequenceModel(Doubled(), ["input_ids", "attention_mask"])
    with pytest.raises(ParameterError, match=r"makes \[2, 3, 2\] of 2 .*, must make \[2, 3, 5\]"):
        check_said(model, "a:b", samples(), 5)
    with pytest.raises(ParameterError, match=r"does not take 'input_ids' .* TypeError: "):
        check_said(SequenceModel(Doubled(), ["input_ids"]), "a:b", samples(), 2)
