import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.sources.idx import open_idx, read_idx, read_idx_pair
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Segment
from tests.unit.encoded import same, segments, whole


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


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def parts(folder: Path, suffix: str = "") -> Source:
    """Two parts of 3 and 2 pictures, opened."""
    write_pair(folder, "t10k", PICTURES, LABELS, suffix)
    write_pair(folder, "train", idx((3, 3, 2), bytes(range(18))), idx((3,), b"\1\2\3"), suffix)
    return open_idx(folder, files_of(folder))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_source_names_samples_as_a_pair_does(tmp_path: Path, suffix: str) -> None:
    source = parts(tmp_path, suffix)
    assert (source.rows, source.classes, source.shape) == (5, (), (3, 2, 1))
    assert [file.name for file in source.files] == [
        f"t10k-images-idx3-ubyte{suffix}", f"train-images-idx3-ubyte{suffix}"
    ]  # fmt: skip
    for file, part in zip(source.files, ("t10k", "train"), strict=True):
        segment = Segment(source=file.name, first=0, rows=file.rows)
        assert same(source.read([segment]), read_idx_pair(tmp_path, part))
    assert source.keys(segments(source)).equals(whole(source).keys)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_segments_of_a_source_come_in_the_order_asked_for(tmp_path: Path, suffix: str) -> None:
    source = parts(tmp_path, suffix)
    wanted = [("train", 1, 2), ("t10k", 1, 1), ("train", 0, 1)]
    block = source.read(
        [
            Segment(source=f"{part}-images-idx3-ubyte{suffix}", first=first, rows=rows)
            for part, first, rows in wanted
        ]
    )
    assert block.keys.to_pylist() == ["train-00001", "train-00002", "t10k-00001", "train-00000"]
    assert block.inputs[:, 0, 0, 0].tolist() == [6, 12, 6, 0]
    assert block.labels.to_pylist() == [2, 3, 4, 1]


def test_plain_pictures_are_mapped_and_gzipped_ones_let_go_on_close(tmp_path: Path) -> None:
    for suffix, kind in (("", np.memmap), (".gz", np.ndarray)):
        folder = tmp_path / f"folder{suffix}"
        folder.mkdir()
        shard = next(iter(parts(folder, suffix)._shards.values()))
        (before,) = shard.read(0, 2)
        assert type(shard._loaded[0]) is kind  # type: ignore[attr-defined]
        shard.close()
        assert shard._loaded is None  # type: ignore[attr-defined]
        (after,) = shard.read(0, 2)
        assert np.array_equal(np.asarray(before.pictures), np.asarray(after.pictures))


def test_the_rows_of_a_gzipped_file_are_known_without_its_values(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 50 * 100 * 100, np.uint8).tobytes()
    packed = gzip.compress(idx((50, 100, 100), pixels))
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(packed[: len(packed) // 2])
    source = open_idx(path, [path])
    assert (source.rows, source.files[0].bytes) == (50, len(packed) // 2)
    with pytest.raises(DataError, match=r"\.gz: cannot be read: .*; fetch the file again"):
        whole(source)


def test_pictures_without_labels_have_unknown_ones(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", PICTURES, LABELS)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    source = open_idx(tmp_path, files_of(tmp_path))
    assert whole(source).labels.to_pylist() == [None, None]
    assert source.files[0].bytes == len(PICTURES)


def test_plain_goes_before_gzipped_in_a_source_too(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", PICTURES, LABELS)
    write_pair(tmp_path, "train", idx((1, 3, 2), bytes(6)), idx((1,), b"\0"), ".gz")
    source = open_idx(tmp_path, files_of(tmp_path))
    assert [(file.name, file.rows) for file in source.files] == [("train-images-idx3-ubyte", 2)]
    path = tmp_path / "train-images-idx3-ubyte.gz"
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    assert open_idx(path, [path]).rows == 1


def test_digests_are_of_pictures_and_labels(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", PICTURES, LABELS)
    name = "train-images-idx3-ubyte"
    digest = open_idx(tmp_path, files_of(tmp_path)).digest(name)
    assert digest.bytes == len(PICTURES) + len(LABELS)
    lines = "".join(
        f"{file_sha256(tmp_path / file)}  {file}\n" for file in (name, "train-labels-idx1-ubyte")
    )
    assert digest.sha256 == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("pictures", "labels", "problem"),
    [
        (LABELS, LABELS, r"expected 3 dimensions, got \[2\]; check the file names"),
        (PICTURES, PICTURES, r"expected 1 dimensions, got \[2, 3, 2\]; check the file names"),
        (PICTURES, idx((3,), bytes(3)), "has 2 pictures, .* has 3 labels; save one label a"),
        (PICTURES, b"", r"labels-idx1-ubyte.*: (is no IDX file|cannot be read)"),
        (b"\x89PNG" + bytes(20), LABELS, "is no IDX file"),
        (PICTURES[:10], LABELS, "ends inside its header"),
        (PICTURES[:-1], LABELS, "holds 11 values, its header says 12"),
        (PICTURES + b"!", LABELS, "holds 13 values, its header says 12"),
        (idx((2, 0, 3), b""), LABELS, r"expected pictures \[N, height, width\]"),
        (idx((2, 3, 2), bytes(48), 0x0D), LABELS, "holds IDX type 0x0d; only uint8"),
    ],
)
def test_a_source_of_damaged_files_is_refused(
    tmp_path: Path, pictures: bytes, labels: bytes, problem: str, suffix: str
) -> None:
    write_pair(tmp_path, "train", pictures, labels, suffix)
    with pytest.raises(DataError, match=problem):
        whole(open_idx(tmp_path, files_of(tmp_path)))


def test_parts_of_different_shapes_are_told(tmp_path: Path) -> None:
    write_pair(tmp_path, "t10k", PICTURES, LABELS)
    write_pair(tmp_path, "train", idx((2, 2, 3), bytes(12)), LABELS)
    wanted = r"train-images-idx3-ubyte has pictures of \[2, 3, 1\], t10k-images-idx3-ubyte of \[3,"
    with pytest.raises(DataError, match=wanted):
        open_idx(tmp_path, files_of(tmp_path))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_part_without_rows_is_passed_over(tmp_path: Path, suffix: str) -> None:
    write_pair(tmp_path, "t10k", idx((0, 3, 2), b""), idx((0,), b""), suffix)
    with pytest.raises(DataError, match="the source is empty"):
        open_idx(tmp_path, files_of(tmp_path))
    write_pair(tmp_path, "train", PICTURES, LABELS, suffix)
    source = open_idx(tmp_path, files_of(tmp_path))
    assert [file.rows for file in source.files] == [0, 2]
    assert same(whole(source), read_idx_pair(tmp_path, "train"))


def test_files_of_other_names_are_no_pictures(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", PICTURES, LABELS)
    with pytest.raises(DataError, match=r"has no file \*-images-idx3-ubyte or \*-images-idx3-ub"):
        open_idx(tmp_path, [tmp_path / "train-labels-idx1-ubyte"])
    absent = tmp_path / "t10k-images-idx3-ubyte"
    with pytest.raises(ParameterError, match="t10k-images-idx3-ubyte: no such source"):
        open_idx(absent, [absent])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_source_that_changed_is_told(tmp_path: Path, suffix: str) -> None:
    write_pair(tmp_path, "train", PICTURES, LABELS, suffix)
    source = open_idx(tmp_path, files_of(tmp_path))
    write_pair(tmp_path, "train", idx((1, 3, 2), bytes(6)), LABELS, suffix)
    with pytest.raises(DataError, match="has another shape now; the file changed, start again"):
        whole(source)
