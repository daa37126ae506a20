import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from softlabel.pipeline.sources.idx import read_idx, read_idx_pair
from softlabel.schemas.errors import DataError, ParameterError


def idx(shape: tuple[int, ...], values: bytes, kind: int = 0x08) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values


PICTURES = idx((2, 3, 2), bytes(range(12)))
LABELS = idx((2,), bytes([9, 4]))


def write_pair(folder: Path, part: str, pictures: bytes, labels: bytes, suffix: str = "") -> None:
    for name, data in (("images-idx3", pictures), ("labels-idx1", labels)):
        packed = gzip.compress(data) if suffix else data
        (folder / f"{part}-{name}-ubyte{suffix}").write_bytes(packed)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("part", ["train", "t10k"])
def test_a_pair_is_read(tmp_path: Path, part: str, suffix: str) -> None:
    write_pair(tmp_path, part, PICTURES, LABELS, suffix)
    block = read_idx_pair(tmp_path, part)
    assert block.keys.to_pylist() == [f"{part}-00000", f"{part}-00001"]
    assert block.inputs.dtype == np.uint8
    assert np.array_equal(block.inputs, np.arange(12).reshape(2, 3, 2, 1))
    assert block.labels.to_pylist() == [9, 4]
    assert block.hard_labels().dtype == np.int32


def test_plain_goes_before_gzipped(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", PICTURES, LABELS)
    write_pair(tmp_path, "train", idx((1, 1, 1), b"x"), idx((1,), b"\0"), ".gz")
    assert len(read_idx_pair(tmp_path, "train")) == 2


def test_dimensions_are_big_endian(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(idx((300, 1), bytes(300)))
    assert read_idx(tmp_path / "file").shape == (300, 1)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is no IDX file"),
        (b"\0\0\x08", "is no IDX file"),
        (b"\x89PNG" + bytes(20), "is no IDX file"),
        (idx((2,), bytes(8), kind=0x0D), "holds IDX type 0x0d; only uint8"),
        (PICTURES[:10], "ends inside its header"),
        (PICTURES[:-1], "holds 11 values, its header says 12; fetch"),
        (PICTURES + b"!", "holds 13 values, its header says 12; fetch"),
        (idx((2**32 - 1, 2**32 - 1), b""), "holds 0 values, its header says 18446744065119617025"),
        (idx((1,) * 100, b"x"), "file: "),
        (idx((0, 2**32 - 1, 2**32 - 1), b""), "file: "),
    ],
    ids=[
        "empty",
        "three bytes",
        "another format",
        "float32",
        "header cut",
        "values cut",
        "values left over",
        "a size beyond memory",
        "a hundred dimensions",
        "nothing of a size beyond memory",
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(DataError, match=problem):
        read_idx(path)


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    packed = gzip.compress(PICTURES)
    flipped = packed[:20] + bytes([packed[20] ^ 0xFF]) + packed[21:]
    for damaged in (b"", packed[:-9], flipped, packed[:-6] + b"\0\0" + packed[-4:], PICTURES):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"file\.gz: (cannot be read|is no IDX file)"):
            read_idx(path)


def test_counts_that_differ_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", PICTURES, idx((3,), bytes(3)))
    wanted = r"has 2 pictures, train-labels-idx1-ubyte has 3 labels; take both from one release"
    with pytest.raises(DataError, match=wanted):
        read_idx_pair(tmp_path, "train")


@pytest.mark.parametrize(
    ("pictures", "labels"),
    [(LABELS, LABELS), (PICTURES, PICTURES), (idx((2, 6), bytes(12)), LABELS)],
)
def test_files_of_another_shape_are_refused(tmp_path: Path, pictures: bytes, labels: bytes) -> None:
    write_pair(tmp_path, "train", pictures, labels)
    with pytest.raises(DataError, match=r"expected \[N, height, width\] pictures and \[N\] labels"):
        read_idx_pair(tmp_path, "train")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", PICTURES, LABELS)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    wanted = r"has neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte\.gz; check prepare"
    with pytest.raises(ParameterError, match=wanted):
        read_idx_pair(tmp_path, "train")
