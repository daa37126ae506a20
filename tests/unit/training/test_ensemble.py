"""Label sets averaged as they are read: by key, view and class, or refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pytest
from torch.utils.data import DataLoader

from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.training.ensemble import LabelEnsemble
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import TeacherOutput
from softlabel.torch import DistillationDataset
from tests.unit.builders import numbers_of_keys, write_labels, write_source
from tests.unit.training.test_join import aligned, of_views, shifted

SHARDS = (10, 3, 12, 7)
# A worker is a fork of this process, where other tests have left threads that wait.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_source(tmp_path / "data", SHARDS)


@pytest.fixture
def one(tmp_path: Path, source: Source) -> LabelSet:
    return open_labelset(write_labels(tmp_path / "one", source, batch_size=2, shard_rows=4))


def another(folder: Path, source: Source, logits: Sequence[float]) -> LabelSet:
    """A set in shards of its own that says the same of every sample."""

    def teach(pixels: npt.NDArray[np.uint8]) -> TeacherOutput:
        return TeacherOutput(np.tile(np.asarray(logits, np.float32), (len(pixels), 1)))

    return open_labelset(write_labels(folder, source, batch_size=8, teach=teach))


def said(labels: LabelEnsemble, source: Source) -> dict[int, list[float]]:
    """The logits of every sample, by number."""
    joined = JoinedSamples(source, labels)
    rows: dict[int, list[float]] = {}
    for batch in joined.epoch(seed=1, epoch=2, batch_size=5, shuffle_rows=16):
        assert batch.teacher is not None
        rows |= zip(numbers_of_keys(batch.keys), batch.teacher.tolist(), strict=True)
    assert len(rows) == joined.rows
    return rows


def test_every_sample_meets_the_mean_of_its_own_labels(
    tmp_path: Path, source: Source, one: LabelSet
) -> None:
    two = another(tmp_path / "two", source, [0, -4, -8, -40])
    rows = said(LabelEnsemble([one, two], (3.0, 1.0)), source)
    for number, logits in rows.items():
        own = [0, -1 - number, -1, -1 - number % 7]
        expected = 0.75 * np.asarray(own) + 0.25 * np.asarray([0, -4, -8, -40])
        assert logits == pytest.approx(expected)


def test_of_views_the_same_ones_are_averaged(tmp_path: Path, source: Source) -> None:
    numbers = list(range(sum(SHARDS)))
    beside = aligned(of_views(source, tmp_path / "beside", numbers), source)
    mixed = of_views(source, tmp_path / "mixed", numbers[::-1])
    both = said(LabelEnsemble([mixed, beside]), source)
    alone = said(LabelEnsemble([beside, beside]), source)
    assert both == alone
    assert len({round(-1 - row[1]) // 100 for row in both.values()}) == 3


def test_labels_of_another_key_are_refused_by_name(
    tmp_path: Path, source: Source, one: LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_labelset(write_labels(tmp_path / "shifted", shifted(source, monkeypatch)))
    with pytest.raises(DataError, match=r"shifted: sample 'n\d+' meets the label of 'n\d+'"):
        said(LabelEnsemble([one, other]), source)


def test_labels_of_another_hard_label_are_refused_by_name(
    tmp_path: Path, source: Source, one: LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = open_labelset(write_labels(tmp_path / "two", source))
    read = two.read_source

    def turned(segment: Segment) -> LabelBlock:
        block = read(segment)
        return replace(block, labels=pc.subtract(3, block.labels))

    monkeypatch.setattr(two, "read_source", turned)
    with pytest.raises(DataError, match=r"two: sample 'n\d+' has hard label \d, and"):
        said(LabelEnsemble([one, two]), source)


def test_a_mean_without_any_class_left_is_refused(tmp_path: Path, source: Source) -> None:
    nothing = -np.inf
    one = another(tmp_path / "one", source, [0, -1, nothing, nothing])
    two = another(tmp_path / "two", source, [nothing, nothing, 0, -1])
    with pytest.raises(DataError, match=r"one and .*two: rule out every class of a sample"):
        said(LabelEnsemble([one, two]), source)
    rows = said(LabelEnsemble([one, two], temperature=1.0), source)
    assert rows[0] == pytest.approx([0, -1, 0, -1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_gives_the_same_means(
    tmp_path: Path,
    source: Source,
    one: LabelSet,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    another(tmp_path / "two", source, [0, -4, -8, -40])
    ensemble = LabelEnsemble([one, tmp_path / "two"], (3.0, 1.0))
    dataset = DistillationDataset(source.path, ensemble, batch_size=5)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    rows: dict[int, list[float]] = {}
    for batch in loader:
        numbers = [int(key.removeprefix("n")) for key in batch.keys]
        rows |= zip(numbers, batch.targets.tolist(), strict=True)
    assert rows == said(ensemble, source)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"weights": (1.0,)}, r"weights are \[1.0\] for 2 label sets"),
        ({"weights": (1.0, 0.0)}, "give one above 0 each"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(
    one: LabelSet, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ParameterError, match=problem):
        LabelEnsemble([one, one], **settings)
    with pytest.raises(ParameterError, match="has no label sets"):
        LabelEnsemble([])
