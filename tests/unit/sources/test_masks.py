"""Masks as hard labels of positions: which pixel a position has, and what is no label."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError
from softlabel.schemas.teacher import Framing, Grid
from tests.unit.encoded import whole

Numbers = npt.NDArray[Any]


def drawn(rows: int, height: int, width: int, classes: int = 200) -> tuple[Numbers, Numbers]:
    random = np.random.default_rng(height * width)
    pixels = random.integers(0, 256, (rows, height, width, 3), np.uint8)
    return pixels, random.integers(0, classes, (rows, height, width))


def encoded(pixels: Numbers, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def nearest(masks: Numbers, grid: Grid) -> list[list[int]]:
    """PyTorch's labels at the centres of positions."""
    tensor = torch.from_numpy(masks.astype(np.float64))[None]
    return interpolate(tensor, grid, mode="nearest-exact")[0].flatten(1).long().tolist()


def parquet(folder: Path, **columns: Any) -> Source:
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    return open_source(folder)


@pytest.mark.parametrize("grid", [(8, 12), (4, 6), (3, 5), (16, 24), (1, 1)])
def test_a_position_has_the_pixel_at_its_centre(tmp_path: Path, grid: Grid) -> None:
    pixels, masks = drawn(4, 16, 24)
    np.save(tmp_path / "x.npy", pixels)
    np.save(tmp_path / "x.labels.npy", masks)
    source = open_source(tmp_path / "x.npy").on_grid(grid)
    assert whole(source).labels.to_pylist() == nearest(masks, grid)


def test_what_is_cropped_away_has_no_position(tmp_path: Path) -> None:
    pixels, masks = drawn(1, 40, 60)
    given = {"image": [encoded(pixels[0])], "mask": [encoded(masks[0].astype(np.uint8))]}
    source = parquet(tmp_path / "rows", **given)
    # Scaled to 20x30, the middle 16 rows and columns are kept: those of 32 and 32 of the picture.
    framing = Framing(height=16, width=16, channels=3, resize=20, interpolation="bilinear")
    seen = whole(source.framed(framing, "the teacher").on_grid((8, 8)))
    assert seen.labels.to_pylist() == nearest(masks[:, 4:36, 14:46], (8, 8))
    assert seen.lengths is not None
    assert seen.lengths.tolist() == [64]
    # In half the size it is the same part.
    half = Framing(height=8, width=8, channels=3, resize=10, interpolation="bilinear")
    assert half.part_of_picture == framing.part_of_picture
    smaller = whole(source.framed(half, "the student").on_grid((8, 8)))
    assert smaller.labels.equals(seen.labels)


@pytest.mark.parametrize(("classes", "border"), [(255, None), (256, 255), (0, None)])
def test_255_is_no_label_but_where_it_is_a_class(
    tmp_path: Path, classes: int, border: int | None
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 3, 3), np.uint8))
    np.save(tmp_path / "x.labels.npy", np.array([[[255, -1, -100], [0, 7, 254]]]))
    names = [str(number) for number in range(classes)]
    source = open_source(tmp_path / "x.npy").on_grid((2, 3)).naming(names)
    assert whole(source).labels.to_pylist() == [[border, None, None, 0, 7, 254]]


@pytest.mark.parametrize("wrong", [3, -2, 2**40])
def test_a_number_that_is_no_class_is_told_of(tmp_path: Path, wrong: int) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 2, 3), np.uint8))
    np.save(tmp_path / "x.labels.npy", np.array([[[0, 1], [1, 2]], [[0, 0], [wrong, 0]]]))
    source = open_source(tmp_path / "x.npy").on_grid((2, 2)).naming(("a", "b", "c"))
    with pytest.raises(DataError, match=r"key 'x-00000001' has label .*, outside 0\.\.2"):
        whole(source)


@pytest.mark.parametrize(("kind", "name"), [(np.uint16, "PNG"), (np.int32, "TIFF")])
def test_masks_of_more_than_256_classes(
    tmp_path: Path, kind: type[np.integer[Any]], name: str
) -> None:
    pixels, masks = drawn(1, 6, 4, classes=900)
    given = {"image": [encoded(pixels[0])], "annotation": [encoded(masks[0].astype(kind), name)]}
    source = parquet(tmp_path / "rows", **given).on_grid((6, 4))
    names = [str(number) for number in range(900)]
    assert whole(source.naming(names)).labels.to_pylist() == nearest(masks, (6, 4))


def test_labels_of_whole_pictures_are_none_of_positions(tmp_path: Path) -> None:
    pixels, masks = drawn(2, 6, 4)
    pictures = [encoded(one) for one in pixels]
    labelled = {
        "image": pictures,
        "label": [0, 1],
        "mask": [encoded(one.astype(np.uint8)) for one in masks],
    }
    source = parquet(tmp_path / "rows", **labelled)
    assert whole(source).labels.to_pylist() == [0, 1]
    assert whole(source.on_grid((1, 2))).labels.to_pylist() == [[None] * 2] * 2
    # Nor is a mask a label of a whole picture.
    del labelled["label"]
    masked = parquet(tmp_path / "masked", **labelled)
    assert whole(masked).labels.to_pylist() == [None, None]


def test_files_that_differ_in_their_masks(tmp_path: Path) -> None:
    pixels, masks = drawn(2, 6, 4)
    for part in (0, 1):
        np.save(tmp_path / f"part-{part}.npy", pixels)
    np.save(tmp_path / "part-1.labels.npy", masks)
    with pytest.raises(DataError, match=r"part-1\.npy has masks for labels, part-0\.npy has none"):
        open_source(tmp_path)
    np.save(tmp_path / "part-0.labels.npy", masks[:, :3])
    with pytest.raises(DataError, match=r"masks of 6x4, as large as the pictures"):
        open_source(tmp_path)
