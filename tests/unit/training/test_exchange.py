"""Who teaches in which epoch, and what a batch hears of several label sets."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from softlabel.pipeline.codecs.factored import Factored, FactoredRows, Head
from softlabel.pipeline.codecs.numerics import softmax
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.training.exchange import Exchange, taught
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.memory import LabelMemory
from softlabel.schemas.errors import DataError
from tests.unit.builders import make_identity, write_source


def test_after_every_epoch_the_one_before_teaches() -> None:
    exchange = Exchange()
    assert [exchange.taught_by(epoch) for epoch in range(4)] == [None, 0, 1, 2]
    assert all(exchange.publishes(epoch) for epoch in range(4))


def test_predictions_grow_old_between_publications() -> None:
    exchange = Exchange(burn_in=2, every=3)
    assert [epoch for epoch in range(10) if exchange.publishes(epoch)] == [1, 4, 7]
    heard = [exchange.taught_by(epoch) for epoch in range(10)]
    assert heard == [None, None, 1, 1, 1, 4, 4, 4, 7, 7]


def test_an_epoch_after_the_burn_in_is_cut_into_as_many_spans_for_all() -> None:
    exchange = Exchange(burn_in=2, steps=3)
    assert exchange.spans(1, own=8, most=8) == [(0, 8)]
    assert exchange.spans(2, own=8, most=8) == [(0, 2), (2, 5), (5, 8)]
    assert exchange.spans(2, own=7, most=8) == [(0, 2), (2, 4), (4, 7)]
    assert exchange.spans(2, own=2, most=8) == [(0, 0), (0, 1), (1, 2)]
    assert Exchange(burn_in=2, steps=9).spans(5, own=8, most=8) == [(0, 8)]


def speaker(folder: Path, source: Source, odds: Sequence[float]) -> LabelSet:
    """A set that says log-odds `odds` of every sample, times 2."""
    memory = LabelMemory(folder, make_identity(source))
    filling = memory.begin(0)
    for batch in JoinedSamples(source, None).epoch(0, 0, 4, 100):
        with np.errstate(divide="ignore"):
            logits = np.tile(2 * np.log(np.asarray(odds, np.float32)), (len(batch.keys), 1))
        filling.add(batch.keys, batch.labels, logits)
    filling.publish()
    return memory.labels(0)


def test_the_teacher_is_the_mean_of_probabilities_at_the_temperature(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (3,))
    one = speaker(tmp_path / "one", source, [3, 1, 0, 0])
    two = speaker(tmp_path / "two", source, [1, 3, 4, 0])
    (batch,) = JoinedSamples(source, None).epoch(0, 0, 4, 100)
    both = taught(batch, [one, two], T=2.0).teacher
    assert both is not None
    # (3/4, 1/4, 0, 0) and (1/8, 3/8, 1/2, 0)
    assert softmax(both, 2.0) == pytest.approx(
        np.tile([7 / 16, 5 / 16, 1 / 4, 0], (3, 1)), abs=1e-4
    )
    alone = taught(batch, [two], T=2.0).teacher
    assert alone is not None
    wanted = np.tile([1 / 8, 3 / 8, 1 / 2, 0], (3, 1))
    assert softmax(alone, 2.0) == pytest.approx(wanted, abs=1e-4)


def test_what_was_stored_of_the_batch_is_heard_no_more(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (3,))
    one = speaker(tmp_path / "one", source, [3, 1, 0, 0])
    (batch,) = JoinedSamples(source, None).epoch(0, 0, 4, 100)
    head = Head(np.ones((4, 2), np.float32), np.zeros(4, np.float32))
    rows = np.zeros(3, np.uint16)
    stored = FactoredRows(Factored(head, (1.0,)), np.ones((3, 2), np.float16), rows)
    heard = taught(replace(batch, factored=stored), [one], T=1.0)
    assert heard.factored is None
    assert heard.teacher is not None


def test_a_key_that_nobody_spoke_of_is_named(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (3,))
    one = speaker(tmp_path / "one", source, [3, 1, 0, 0])
    (batch,) = JoinedSamples(source, None).epoch(0, 0, 4, 100)
    other = replace(batch, keys=pa.array(["n0", "n9", "n2"]))
    with pytest.raises(DataError, match="has no label for key 'n9'"):
        taught(other, [one], 1.0)
