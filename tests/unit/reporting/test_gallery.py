"""The choice of the samples that a report shows."""

import base64
import io
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from PIL import Image

from softlabel.pipeline.codecs.codec import shift_rows
from softlabel.pipeline.codecs.make import make_codec
from softlabel.pipeline.codecs.numerics import softmax
from softlabel.pipeline.reporting import gallery
from softlabel.pipeline.reporting.gallery import (
    Candidate,
    Pair,
    choose_pairs,
    png_data_uri,
    total_variation,
)
from softlabel.pipeline.reporting.gallery_view import card, live_data, share, shown_classes
from softlabel.pipeline.shards.block import LabelBlock


class Rows:
    """A label set in memory."""

    def __init__(self, logits: npt.ArrayLike, labels: Sequence[int | None]) -> None:
        values = np.asarray(logits, np.float32)
        codec, rows = make_codec("dense-f16", values.shape[1], (1.0,)), shift_rows(values)
        keys = pa.array([f"key-{index}" for index in range(len(values))])
        hard = pa.array(labels, pa.int32())
        self.num_classes = values.shape[1]
        self.block = LabelBlock(keys, hard, rows.top1, rows.shift, codec.encode(rows), codec)

    def batches(self, rows: int) -> Iterator[LabelBlock]:
        for first in range(0, len(self.block), rows):
            yield self.block.slice(first, min(rows, len(self.block) - first))


def random_rows(rows: int, classes: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) * 4
    logits[np.arange(rows), labels] += 6
    return Rows(logits, labels.tolist())


def keys(pairs: Sequence[Pair]) -> list[str]:
    return [member.key for pair in pairs for member in pair.members]


def test_a_two_like_a_three_stands_beside_a_two_like_a_seven() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 10
    logits = rng.normal(size=(100, 10)) * 0.1
    logits[np.arange(100), labels] = 25
    logits[42, 3] = logits[72, 7] = 24
    first, *_ = choose_pairs(Rows(logits, labels.tolist()), 12)
    assert [member.key for member in first.members] == ["key-42", "key-72"]
    assert [member.rival for member in first.members] == [3, 7]
    expected = total_variation(softmax(logits[42], 4), softmax(logits[72], 4))
    assert first.distance == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("samples", [1, 2, 5, 12, 31])
def test_as_many_as_asked_for_each_once(samples: int) -> None:
    chosen = keys(choose_pairs(random_rows(300, 10, 1), samples))
    assert len(chosen) == len(set(chosen)) == samples


def test_pairs_share_a_class_and_the_most_different_come_first() -> None:
    pairs = choose_pairs(random_rows(300, 5, 2), 10)
    assert all(len({member.target for member in pair.members}) == 1 for pair in pairs)
    assert all(len({member.rival for member in pair.members}) == 2 for pair in pairs)
    assert len({pair.members[0].target for pair in pairs}) == 5
    distances = [pair.distance or 0 for pair in pairs]
    assert all(one >= other for one, other in pairwise(distances))


def test_the_choice_does_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(500, 6, 3)
    whole = choose_pairs(rows, 12)
    for values in (6, 60, 600):
        monkeypatch.setattr(gallery, "BATCH_VALUES", values)
        assert keys(choose_pairs(rows, 12)) == keys(whole)


def test_memory_is_bounded_by_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "POOL_BYTES", 40 * 2 * 50)
    monkeypatch.setattr(gallery, "BATCH_VALUES", 20 * 50)
    held: list[int] = []
    prune = gallery._prune

    def spy(pool: gallery.Pool, limit: int) -> None:
        prune(pool, limit)
        held.append(sum(len(members) for group, members in pool.items() if group[1] >= 0))

    monkeypatch.setattr(gallery, "_prune", spy)
    assert len(keys(choose_pairs(random_rows(2000, 50, 4), 10))) == 10
    assert max(held) <= 40


def test_two_classes_pair_doubtful_with_sure() -> None:
    logits: list[list[float]] = [[9, 0], [5, 4.9], [7, 0], [0, 9], [4.9, 5]]
    first, second = choose_pairs(Rows(logits, [0, 0, 0, 1, 1]), 4)
    assert {keys([first])[0], keys([first])[1]} == {"key-0", "key-1"}
    assert set(keys([second])) == {"key-3", "key-4"}


def test_unknown_labels_take_top1_and_masked_classes_stay_out() -> None:
    logits: list[list[float]] = [[5, 1, -np.inf], [5, 2, -np.inf], [1, 5, 2]]
    members = [m for pair in choose_pairs(Rows(logits, [None, 0, None]), 3) for m in pair.members]
    assert {(m.key, m.target, m.labelled) for m in members} == {
        ("key-0", 0, False),
        ("key-1", 0, True),
        ("key-2", 1, False),
    }
    assert next(m for m in members if m.key == "key-0").rival == 1


def test_more_samples_than_rows_shows_what_there_is() -> None:
    assert set(keys(choose_pairs(random_rows(7, 3, 5), 50))) <= {f"key-{i}" for i in range(7)}


def test_a_sample_of_many_classes_shows_its_target_its_rival_and_the_rest() -> None:
    logits = np.linspace(0, -30, 1000).astype(np.float16)
    sample = Candidate(0, "k", 990, True, 0, 0, 0.1, logits)
    shown = shown_classes(sample)
    assert shown == [0, 1, 2, 3, 4, 5, 990]
    names = [f"class {index}" for index in range(1000)]
    view = card(sample, names, {T: softmax(sample.logits, T) for T in (1.0, 4.0)}, None)
    assert view.rows[-1].name == "993 others"
    for column in range(2):
        assert sum(row.soft[column] for row in view.rows) == pytest.approx(1, abs=1e-5)
    assert [row.role for row in view.rows] == ["rival", "", "", "", "", "", "target", "rest"]
    assert not view.agrees


def test_live_data_is_the_stored_row() -> None:
    logits = np.asarray([0, -1.5, -np.inf], np.float16)
    sample = Candidate(0, "k", 0, True, 0, 1, 0.1, logits)
    (record,) = live_data([Pair((sample,), None)])
    stored = np.frombuffer(base64.b64decode(record["logits"]), "<f2")
    np.testing.assert_array_equal(stored, logits)
    assert record["shown"] == [0, 1, 2]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_survive_the_data_uri(channels: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    uri = png_data_uri(picture)
    assert uri == png_data_uri(picture)
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    expected = picture if channels >= 3 else picture[:, :, 0]
    np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "100"), (0.996, "100"), (0.42, "42"), (0.031, "3.1"), (0.0004, "0"), (0, "0")],
)
def test_share(value: float, text: str) -> None:
    assert share(value) == text
