"""Soft targets over temperatures, and class similarity: worked numbers on small label sets."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from softlabel.pipeline.codecs.codec import shift_rows
from softlabel.pipeline.codecs.numerics import softmax
from softlabel.pipeline.evaluation import soft_targets
from softlabel.pipeline.evaluation.class_means import ClassMeans
from softlabel.pipeline.evaluation.similarity import SHOWN_CLASSES, similarity
from softlabel.pipeline.evaluation.soft_targets import TargetSums, profile_labels
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.progress import Quiet
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.schemas.labelset import CodecName
from tests.unit.blocks import CLASSES as NAMES
from tests.unit.blocks import packing_of
from tests.unit.label_sets import numbered, write_set

CLASSES = len(NAMES)


def write(folder: Path, logits: np.ndarray, hard: list[int | None], codec: CodecName) -> LabelSet:
    packing = packing_of(codec)
    rows = shift_rows(logits.astype(np.float32))
    columns = packing.codec.encode(rows)
    keys, labels = pa.array([""] * len(logits)), pa.array(hard, pa.int32())
    block = LabelBlock(keys, labels, rows.top1, rows.shift, columns, packing.codec)
    half = len(logits) // 2
    return write_set(
        folder, packing, numbered([block.slice(0, half), block.slice(half, len(logits) - half)])
    )


def test_bins_are_low_open_and_high_closed() -> None:
    sums = TargetSums(1.0, 2)
    sums.add(np.log(np.array([[0.5, 0.5], [0.75, 0.25], [0.76, 0.24], [1, 1e-30]], np.float32)))
    found = sums.record()
    # 0.5 ends bin 9, 0.75 bin 14 and 1 bin 19; the largest entropy, ln 2, ends the last one.
    assert [index for index, rows in enumerate(found.top1_rows) if rows] == [9, 14, 15, 19]
    assert (found.entropy_rows[0], found.entropy_rows[-1]) == (1, 1)
    assert found.top1 == pytest.approx((0.5 + 0.75 + 0.76 + 1) / 4)
    entropies = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.5, 0.75, 0.76)]
    assert found.entropy == pytest.approx(sum(entropies) / 4, rel=1e-6)


@pytest.mark.parametrize("codec", ["dense-f32", "topk"])
def test_a_profile_is_that_of_all_rows(tmp_path: Path, codec: CodecName) -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, 2, (40, CLASSES)).astype(np.float32)
    hard = [index % CLASSES if index % 3 else None for index in range(40)]
    labels = write(tmp_path / "labels", logits, hard, codec)
    profile = profile_labels(labels, (0.5, 1.0, 4.0), Quiet())
    assert (profile.rows, profile.of_rows) == (40, 40)
    stored = labels.lookup([f"key-{row}" for row in range(40)])
    ts = [one.temperature for one in profile.temperatures]
    assert ts == ([1.0, 4.0] if codec == "topk" else [0.5, 1.0, 4.0])
    for one in profile.temperatures:
        probs = stored.probs(one.temperature)
        assert one.top1 == pytest.approx(probs.max(axis=1).mean(), rel=1e-6)
        assert sum(one.top1_rows) == sum(one.entropy_rows) == 40
    targets = np.array(
        [top if one is None else one for one, top in zip(hard, stored.top1, strict=True)]
    )
    assert profile.similarity is not None
    for index, row in enumerate(profile.similarity.shares):
        wanted = stored.probs(4.0)[targets == index].mean(axis=0)
        np.testing.assert_allclose(np.asarray(row), wanted, rtol=1e-5)


def test_of_many_rows_every_nth_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_targets, "FEWEST_ROWS", 7)
    monkeypatch.setattr(soft_targets, "MOST_VALUES", 1)
    logits = np.zeros((20, CLASSES))
    logits[::3, 1] = 50
    labels = write(tmp_path / "labels", logits, [None] * 20, "dense-f32")
    profile = profile_labels(labels, (1.0,), Quiet())
    # Rows 0, 3 .. 18 and no other: all of them certain.
    assert (profile.rows, profile.of_rows) == (7, 20)
    assert profile.temperatures[0].top1 == pytest.approx(1)


def test_of_many_classes_the_most_alike_are_shown_as_neighbours() -> None:
    classes = 100
    means = ClassMeans(classes)
    logits = np.full((classes, classes), -9, np.float32)
    np.fill_diagonal(logits, 0)
    for first, second, closeness in ((3, 90, -1.0), (90, 41, -2.0), (8, 7, -3.0)):
        logits[first, second] = logits[second, first] = closeness
    means.add(softmax(logits, 1.0), np.arange(classes))
    found = similarity(means, [f"c{index}" for index in range(classes)], 1.0)
    assert len(found.classes) == SHOWN_CLASSES
    assert found.classes[:3] == ("c3", "c90", "c41")
    assert {"c7", "c8"} <= set(found.classes)
    assert found.shares[0] is not None
    assert found.shares[0][1] == pytest.approx(float(softmax(logits, 1.0)[3, 90]))


def test_a_class_without_a_sample_has_no_shares() -> None:
    means = ClassMeans(3)
    means.add(np.array([[0.5, 0.25, 0.25]], np.float32), np.array([0]))
    found = similarity(means, ("a", "b", "c"), 2.0)
    assert found.shares == ((0.5, 0.25, 0.25), None, None)
