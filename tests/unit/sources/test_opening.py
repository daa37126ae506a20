"""Opening a source by its path: folders, files, patterns."""

from __future__ import annotations

from pathlib import Path

import pytest

from softlabel.pipeline.sources.opening import expanded, open_source
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.teacher import Framing
from tests.unit.builders import write_source


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{b,a}-08.tar", ["b-08.tar", "a-08.tar"]),
        ("a-*.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-1?.tar", ["a-10.tar", "a-11.tar"]),
        ("a-0[89].tar", ["a-08.tar", "a-09.tar"]),
        ("{a,b}-0{8..8}.tar", ["a-08.tar", "b-08.tar"]),
        ("{sub,sub2}/*.tar", ["sub/c.tar", "sub2/c.tar"]),
    ],
)
def test_patterns_name_files_in_order(tmp_path: Path, pattern: str, wanted: list[str]) -> None:
    names = ("a-08", "a-09", "a-10", "a-11", "b-08", "sub/c", "sub2/c")
    made(tmp_path, *(f"{name}.tar" for name in names))
    assert [str(file.relative_to(tmp_path)) for file in expanded(tmp_path / pattern)] == wanted


def test_a_part_of_a_pattern_that_names_nothing_is_told(tmp_path: Path) -> None:
    made(tmp_path, "a-08.tar")
    with pytest.raises(ParameterError, match=r"names no file .*a-09\.tar; check the pattern"):
        expanded(tmp_path / "a-{08..09}.tar")


def test_a_file_named_twice_is_told(tmp_path: Path) -> None:
    made(tmp_path, "a-08.tar")
    with pytest.raises(ParameterError, match=r"names .*a-08\.tar twice; check the pattern"):
        expanded(tmp_path / "{a-08,a-*}.tar")


def test_a_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="nowhere: no such source; write one with"):
        open_source(tmp_path / "nowhere")


def test_a_folder_and_the_pattern_of_its_files_hold_the_same(tmp_path: Path) -> None:
    whole = write_source(tmp_path / "train", (3, 2))
    named = open_source(tmp_path / "train" / "*.parquet")
    assert named.files == whole.files
    assert named.rows == 5


def test_arrays_of_another_shape_are_not_scaled(tmp_path: Path) -> None:
    source = write_source(tmp_path / "train", (3,))
    height, width, channels = source.shape
    framing = Framing(height=height + 1, width=width, channels=channels, interpolation="bilinear")
    with pytest.raises(DataError, match=r"train: has pictures of .*, student S takes .*; prepare"):
        source.framed(framing, "student S")
