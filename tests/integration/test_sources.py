"""The same pictures in every kind of source get the same labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

import softlabel
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.params import InferParams, VerifyParams
from softlabel.stages import infer, verify
from tests.integration.source_kinds import (
    as_dataset_on_disk,
    as_idx,
    as_image_folder,
    as_npy,
    as_npz,
    as_parquet,
    as_tars,
)

if TYPE_CHECKING:
    from tests.conftest import Project


def logits_by_key(labels: Path) -> dict[str, bytes]:
    """The stored logits by the last part of the key, without a picture's suffix."""
    return {
        Path(key).stem: logits.tobytes() + shift.tobytes()
        for block in softlabel.open(labels).batches(1000)
        for key, logits, shift in zip(
            block.keys.to_pylist(), block.logits(), block.shift, strict=True
        )
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", [as_image_folder, as_tars])
def test_encoded_pictures_get_the_logits_of_the_arrays(
    make_project: Callable[[], Project],
    make: Callable[[Source, Path], Path],
    channels: int,
) -> None:
    project = make_project()
    shape = (8, 8, channels)
    arrays = project.source(shards=(70, 50), shape=shape)
    teacher = project.teacher(shape=shape)
    (project.root / "pictures").mkdir()
    folder = make(open_source(arrays), project.root / "pictures")
    logits = []
    for source in (arrays, folder):
        labels = project.root / f"labels-{source.name}"
        report = infer.run(InferParams(teacher=teacher, source=source, output=labels, batch_size=4))
        assert report.rows == 120
        assert report.teacher_accuracy is not None and report.teacher_accuracy > 0.5
        checked = verify.run(VerifyParams(labels=labels, source=source, teacher=teacher))
        assert checked.problems == ()
        assert "replay" in checked.checks
        logits.append(logits_by_key(labels))
    assert len(logits[0]) == 120
    assert logits[0] == logits[1]


def stored_logits(labels: Path) -> npt.NDArray[np.float32]:
    return np.concatenate(
        [block.logits() + block.shift[:, None] for block in softlabel.open(labels).batches(1000)]
    )


@pytest.mark.parametrize(
    ("write", "first_key"),
    [
        (as_parquet, "sample-000000"),
        (as_dataset_on_disk, "sample-000000"),
        (as_npy, "part-00000-00000000"),
        (as_npz, "part-00000-00000000"),
        (as_idx, "part-00000-00000"),
    ],
)
def test_tables_and_arrays_get_the_logits_of_the_canonical_source(
    make_project: Callable[[], Project],
    write: Callable[[Source, Path], Path],
    first_key: str,
) -> None:
    project = make_project()
    canonical, teacher = project.source(shards=(70, 50)), project.teacher()
    folder = project.root / "other"
    folder.mkdir()
    other = write(open_source(canonical), folder)
    found = []
    for number, source in enumerate((canonical, other)):
        labels = project.root / f"labels-{number}"
        report = infer.run(InferParams(teacher=teacher, source=source, output=labels, batch_size=4))
        assert report.rows == 120
        assert report.teacher_accuracy is not None and report.teacher_accuracy > 0.5
        checked = verify.run(VerifyParams(labels=labels, source=source, teacher=teacher))
        assert checked.problems == ()
        assert "replay" in checked.checks
        found.append(stored_logits(labels))
    assert found[0].tobytes() == found[1].tobytes()
    first = next(softlabel.open(labels).batches(1))
    assert first.keys[0].as_py() == first_key
