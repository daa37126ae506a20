"""Counting and comparing keys by their hashes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabel.pipeline.labelset import keys as module
from softlabel.pipeline.labelset.keys import KeySet, few, miscounted_keys


def columns_of(*columns: str) -> list[pa.StringArray]:
    """A column a word, a key a letter."""
    return [pa.array(list(column), pa.string()) for column in columns]


@given(st.lists(st.text("abcdé", max_size=6), max_size=4), st.integers(1, 3))
def test_miscounted_keys_are_those_that_a_count_finds(words: list[str], times: int) -> None:
    counts = Counter("".join(words))
    wanted = [key for key, count in counts.items() if count != times]
    assert miscounted_keys(lambda: columns_of(*words), times) == wanted


@given(st.lists(st.text("abcdé", max_size=6), max_size=4), st.text("abcdéfg", max_size=9))
def test_others_are_those_that_a_set_lacks(words: list[str], asked: str) -> None:
    wanted = [key for key in dict.fromkeys(asked) if key not in "".join(words)]
    assert KeySet(columns_of(*words)).others(columns_of(asked)[0]).to_pylist() == wanted


def test_keys_that_share_a_hash_are_not_taken_for_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "key_hashes", lambda keys: np.full(len(keys), 7, np.uint64))
    assert miscounted_keys(lambda: columns_of("ab", "c")) == []
    assert miscounted_keys(lambda: columns_of("ab", "cb")) == ["b"]


def test_few_keys_are_all_told_and_many_are_counted() -> None:
    assert few(["a", "b"]) == "'a', 'b'"
    assert few(list("abcde")) == "'a', 'b', 'c' and 2 more"
