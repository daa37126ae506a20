"""Opening a source by its path: folders, files, patterns."""

from __future__ import annotations

import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest

from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.patterns import expanded
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.teacher import Framing
from tests.unit.builders import samples, write_source
from tests.unit.encoded import pngs


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
    assert [
        str(Path(file).relative_to(tmp_path)) for file in expanded(tmp_path / pattern)
    ] == wanted


def test_a_part_of_a_pattern_that_names_nothing_is_told(tmp_path: Path) -> None:
    made(tmp_path, "a-08.tar")
    with pytest.raises(ParameterError, match=r"names no file .*a-09\.tar; check the pattern"):
        expanded(tmp_path / "a-{08..09}.tar")


def test_a_file_named_twice_is_told(tmp_path: Path) -> None:
    made(tmp_path, "a-08.tar")
    with pytest.raises(ParameterError, match=r"names .*a-08\.tar twice; check the pattern"):
        expanded(tmp_path / "{a-08,a-*}.tar")


def test_an_empty_range_is_told(tmp_path: Path) -> None:
    made(tmp_path, "a-1.tar", "a-3.tar")
    wanted = r"a-\{3\.\.1\}\.tar: the range \{3\.\.1\} is empty; write the smaller number first"
    with pytest.raises(ParameterError, match=wanted):
        open_source(tmp_path / "a-{3..1}.tar")


def test_a_long_range_ends_at_the_first_missing_name(tmp_path: Path) -> None:
    """In the time and memory of a few names: all of them would take gigabytes."""
    made(tmp_path, "a-0.tar", "a-1.tar")
    with pytest.raises(ParameterError, match=r"names no file .*a-2\.tar; check the pattern"):
        expanded(tmp_path / "a-{0..999999999999999}.tar")


@pytest.mark.parametrize("pattern", ["*.tar", "{a,x}.tar", "x*"])
def test_a_pattern_that_names_a_folder_is_told(tmp_path: Path, pattern: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    (tmp_path / "x.tar").mkdir()
    with pytest.raises(ParameterError, match=r"x\.tar: is a folder, and a pattern names files; gi"):
        open_source(tmp_path / pattern)


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


UUID = "0f3a9d2c-11aa-4b5c-8d7e-000102030405"
# The files of one split each.
SPLITS = [
    ("train-00000-of-00002-6f1b2c3d4e5f6071", "train-00001-of-00002-a0b1c2d3e4f56789"),
    ("test-00000-of-00001-0123456789abcdef",),
    ("validation-00000-of-00001",),
    ("part_0_of_2", "part_1_of_2"),
    (f"part-00000-{UUID}-c000.snappy", f"part-00001-{UUID}-c000.snappy"),
    ("part-0", "part-1", "part-10"),
    ("cifar10.train",),
    ("cifar10.test",),
    ("cifar100.test",),
    ("2024-train-7", "2024-train-8"),
    ("train-extra-0", "train-extra-1"),
    ("train-0-clean", "train-1-clean"),
    ("train1", "train2"),
    ("a[1]-0", "a[1]-1"),
]


@pytest.mark.parametrize("names", SPLITS)
@pytest.mark.parametrize("ending", [".tar", ".parquet"])
def test_the_files_of_one_split_are_one_source(
    tmp_path: Path, names: tuple[str, ...], ending: str
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(names):
        if ending == ".parquet":
            whole = write_source(tmp_path / str(number), (number + 1,))
            (tmp_path / str(number) / whole.files[0].name).rename(folder / f"{name}{ending}")
        else:
            with tarfile.open(folder / f"{name}{ending}", "w"):
                pass
    if ending == ".parquet":
        assert len(open_source(folder).files) == len(names)
    else:
        # Empty tars are a source of no rows, and no several splits.
        with pytest.raises(DataError, match="is empty"):
            open_source(folder)


@pytest.mark.parametrize("first", SPLITS)
@pytest.mark.parametrize("ending", [".tar", ".parquet", ".npz", ".npy"])
def test_several_splits_are_told_and_the_pattern_names_one(
    tmp_path: Path, first: tuple[str, ...], ending: str
) -> None:
    """Whichever is beside it: the pattern names all files of a split and no others."""
    for number, second in enumerate(names for names in SPLITS if names != first):
        folder = made(tmp_path / str(number), *(f"{name}{ending}" for name in first + second))
        with pytest.raises(ParameterError, match="holds files of several splits") as caught:
            open_source(folder)
        pattern = Path(str(caught.value).partition("such as ")[2])
        files = [pattern] if pattern.exists() else expanded(pattern)
        found = {file.name.removesuffix(ending) for file in files}
        assert found in (set(first), set(second))


def test_splits_of_arrays_are_told_apart_but_not_from_their_labels(tmp_path: Path) -> None:
    pictures, labels = np.zeros((2, 3, 4), np.uint8), np.arange(2)
    for name, other in itertools.product(("images", "part-0", "part-1"), (".npy", ".labels.npy")):
        folder = tmp_path / name.partition("-")[0]
        folder.mkdir(exist_ok=True)
        if name == "images" and other != ".npy":
            np.save(folder / "labels.npy", labels)
        else:
            np.save(folder / f"{name}{other}", pictures if other == ".npy" else labels)
    assert open_source(tmp_path / "images").rows == 2
    assert open_source(tmp_path / "part").rows == 4
    names = ("train-0.npy", "train-0.labels.npy", "train-1.npy", "val.npy", "val.labels.npy")
    folder = made(tmp_path / "both", *names)
    wanted = r"splits \('train-', 'val'\); give a pattern of one, such as .*both/train-\*\.npy$"
    with pytest.raises(ParameterError, match=wanted):
        open_source(folder)


def pictures(folder: Path, *names: str) -> Path:
    made(folder, *names)
    for name in names:
        (folder / name).write_bytes(pngs(samples(1))[0])
    return folder


@pytest.mark.parametrize(
    ("names", "held"),
    [
        (("test/a.parquet", "train/a.parquet"), "data files"),
        (("test/a.tar", "train/a-0.tar", "train/a-1.tar"), "data files"),
        (("test/state.json", "train/state.json"), "data files"),
        (("test/images.npy", "train/x/1.png"), "data files and folders of pictures"),
        (("train/ant/1.png", "test/bee/deep/2.PNG"), "folders of pictures"),
        (("train/ant/1.png", "test/bee/2.png", "notes/read.txt"), "folders of pictures"),
    ],
)
def test_a_folder_of_sources_is_told(tmp_path: Path, names: tuple[str, ...], held: str) -> None:
    made(tmp_path, *names)
    wanted = rf"its folders hold {held}; give one of them \('test', 'train'\), such as .*/test$"
    with pytest.raises(ParameterError, match=wanted):
        open_source(tmp_path)


def test_of_many_folders_some_are_named(tmp_path: Path) -> None:
    made(tmp_path, *(f"{number}/a/1.png" for number in range(9)))
    with pytest.raises(ParameterError, match=r"\('0', '1', '2', '3', '4', and so on\), such as"):
        open_source(tmp_path)


def test_class_folders_may_hold_folders(tmp_path: Path) -> None:
    """Beside pictures, in themselves or in another class; an empty class is one too."""
    folder = pictures(tmp_path, "ant/1.png", "ant/more/2.png", "bee/more/3.png", ".git/a.tar")
    made(folder, "ant/a.npy", "cat/.hidden/x.png")
    source = open_source(folder)
    assert source.classes == ("ant", "bee", "cat")
    assert source.rows == 3


def test_hidden_folders_are_no_sources(tmp_path: Path) -> None:
    made(tmp_path, "ant/.cache/1.png", "ant/.a.parquet", ".cache/a.parquet")
    with pytest.raises(DataError, match="the source is empty"):
        open_source(tmp_path)


@pytest.mark.parametrize("spelt", ["train", "train/part-00000.parquet", "train/*.parquet"])
def test_a_shard_is_named_where_people_find_it(tmp_path: Path, spelt: str) -> None:
    write_source(tmp_path / "train", (3,))
    source = open_source(tmp_path / spelt)
    assert source.place("part-00000.parquet") == str(tmp_path / "train/part-00000.parquet")
