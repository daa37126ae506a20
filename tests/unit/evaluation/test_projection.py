"""The penultimate projection: worked planes, the choice of classes, and a stored set's features."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from softlabel.pipeline.evaluation import label_projection, projection
from softlabel.pipeline.evaluation.label_projection import project_labels
from softlabel.pipeline.evaluation.projection import PlaneOfThree, choose_three
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.progress import Quiet
from tests.unit.blocks import CLASSES, HEAD, block_of, packing_of, write_set
from tests.unit.label_sets import numbered

NAMES = ("a", "b", "c", "d")
# A triangle in the plane z = 5, its sides along x and y; class 1 is not one of the three.
TEMPLATES = np.array([[0, 0, 5], [9, 9, 9], [2, 0, 5], [0, 4, 5]], np.float32)


def test_samples_are_seen_along_the_planes_normal() -> None:
    plane = PlaneOfThree(TEMPLATES, (0, 2, 3))
    plane.add(np.array([[1, 1, 70], [3, 1, -8], [0, 0, 0]], np.float32), np.array([2, 3, 1]))
    found = plane.projection(NAMES)
    assert found is not None
    assert (found.classes, found.labels) == (("a", "c", "d"), (1, 2))
    # From the triangle's centre, (2/3, 4/3): z and the class outside have no part.
    assert found.x == pytest.approx((1 / 3, 7 / 3), rel=1e-4)
    assert found.y == pytest.approx((-1 / 3, -1 / 3), rel=1e-4)
    assert found.spread is None


def test_lengths_do_not_change_whichever_way_the_plane_lies() -> None:
    random = np.random.default_rng(3)
    templates, features = random.normal(size=(3, 7)), random.normal(size=(40, 7))
    plane = PlaneOfThree(templates, (0, 1, 2))
    plane.add(features, np.arange(40) % 3)
    found = plane.projection(NAMES)
    assert found is not None
    points = np.stack([found.x, found.y], axis=1)
    order = np.argsort(np.arange(40) % 3, kind="stable")
    sides = np.linalg.qr((templates[1:] - templates[0]).T).Q
    flat = features[order] @ sides
    wanted = np.linalg.norm(flat[:1] - flat, axis=1)
    np.testing.assert_allclose(np.linalg.norm(points[:1] - points, axis=1), wanted, atol=1e-3)


def test_spread_worked() -> None:
    plane = PlaneOfThree(np.array([[0, 0], [4, 0], [0, 3]]), (0, 1, 2))
    features = np.array([[-1, 0], [1, 0], [3, 0], [5, 0], [0, 2], [0, 4]], np.float32)
    plane.add(features, np.array([0, 0, 1, 1, 2, 2]))
    found = plane.projection(NAMES)
    assert found is not None
    # All are 1 from their centres, which are 3, 4 and 5 apart.
    assert found.spread == pytest.approx(1 / 4)


def test_there_are_at_most_so_many_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "SAMPLES_A_CLASS", 2)
    plane = PlaneOfThree(TEMPLATES, (0, 2, 3))
    plane.add(np.zeros((5, 3)), np.array([0, 0, 0, 2, 3]))
    assert not plane.full
    plane.add(np.zeros((3, 3)), np.array([2, 3, 2]))
    assert plane.full
    found = plane.projection(NAMES)
    assert found is not None
    assert sorted(found.labels) == [0, 0, 1, 1, 2, 2]


def test_three_points_on_a_line_span_no_plane() -> None:
    plane = PlaneOfThree(np.array([[0, 0], [1, 1], [3, 3]]), (0, 1, 2))
    plane.add(np.zeros((1, 2)), np.array([0]))
    assert plane.projection(NAMES) is None


def test_two_alike_and_the_one_least_like_both() -> None:
    templates = np.array([[1, 0], [-1, 0.2], [0, 1], [3, 0.3]])
    assert choose_three(templates) == (0, 3, 1)
    assert choose_three(templates[:2]) is None


def test_a_factored_set_shows_its_teacher(tmp_path: Path) -> None:
    packing = packing_of("factored")
    block = block_of(packing, 60)
    labels = open_labelset(write_set(tmp_path / "labels", packing, [block]))
    names = (CLASSES[4], CLASSES[0], CLASSES[2])
    found = project_labels(labels, names, Quiet())
    assert found is not None
    assert found.classes == names
    plane = PlaneOfThree(HEAD.weight, (4, 0, 2))
    hard = block.labels.to_numpy(zero_copy_only=False)
    plane.add(block.payload["features"], np.where(np.isnan(hard), block.top1, hard))
    assert found == plane.projection(CLASSES)
    own = project_labels(labels, ("stranger", *names[:2]), Quiet())
    assert own is not None
    assert own.classes == tuple(CLASSES[index] for index in choose_three(HEAD.weight) or ())


def test_a_set_without_features_shows_none(tmp_path: Path) -> None:
    packing = packing_of("dense-f16")
    labels = open_labelset(write_set(tmp_path / "labels", packing, [block_of(packing, 4)]))
    assert project_labels(labels, (), Quiet()) is None


# The means are (0, 0), (4, 0) and (0, 3); a sample is 1 from its own.
WORKED = np.array([[-1, 0], [3, 0], [0, 2], [0, 4], [5, 0], [1, 0]], np.float16)


def worked_set(folder: Path, hard: Sequence[int | None], top1: Sequence[int]) -> LabelSet:
    """Rows whose features are WORKED, in two shards."""
    packing = packing_of("topk", features=True)
    block = replace(
        block_of(packing, 6),
        labels=pa.array(hard, pa.int32()),
        top1=np.asarray(top1, np.uint16),
        features=WORKED,
    )
    return open_labelset(
        write_set(folder, packing, numbered([block.slice(0, 4), block.slice(4, 2)]))
    )


def test_without_templates_the_plane_is_that_of_the_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_projection, "piece_rows", lambda classes: 4)
    labels = worked_set(tmp_path / "labels", [1, 3, None, 5, 3, None], [0, 0, 5, 0, 0, 1])
    found = project_labels(labels, ("b", "d", "f"), Quiet())
    assert found is not None
    assert (found.classes, found.through) == (("b", "d", "f"), "means")
    points = sorted(zip(found.labels, found.x, found.y, strict=True))
    centre = np.array([4 / 3, 1])
    order = [0, 5, 1, 4, 2, 3]
    assert [label for label, *_ in points] == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose([point[1:] for point in points], WORKED[order] - centre, rtol=1e-4)
    assert found.spread == pytest.approx(1 / 4)
    # Seen from their middle, the first and the third mean lie in the least different directions.
    own = project_labels(labels, (), Quiet())
    assert own is not None
    assert own.classes == ("b", "f", "d")


def test_classes_without_a_sample_have_no_mean(tmp_path: Path) -> None:
    labels = worked_set(tmp_path / "labels", [0, 0, 0, 1, 1, 1], [0] * 6)
    assert project_labels(labels, (), Quiet()) is None
    assert project_labels(labels, ("a", "b", "c"), Quiet()) is None
