"""Pictures in .npy and .npz files."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.sources import arrays, mapped
from softlabel.pipeline.sources.arrays import open_arrays
from softlabel.pipeline.sources.mapped import MappedRows
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.shard import joined, taken
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import SampleBlock
from softlabel.schemas.teacher import Framing
from tests.unit.builders import samples
from tests.unit.encoded import same, segments, whole

Pixels = npt.NDArray[Any]


def pictures(rows: int, *shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape), np.uint8)


def npy(path: Path, pixels: Pixels, labels: Pixels | None = None) -> Path:
    np.save(path, pixels)
    if labels is not None:
        np.save(path.with_name(f"{path.stem}.labels.npy"), labels)
    return path


def opened(*files: Path) -> Source:
    return open_arrays(files[0].parent, files)


def keys(stem: str, rows: int) -> pa.StringArray:
    return pa.array([f"{stem}-{row:08d}" for row in range(rows)], pa.string())


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 3), (2, 3, 5)])
def test_npy_files_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    one, two = pictures(5, *shape), pictures(3, *shape, seed=1)
    files = [
        npy(tmp_path / "a.npy", one, np.arange(5)),
        npy(tmp_path / "b.npy", two, np.ones(3, int)),
    ]
    source = opened(*files, tmp_path / "a.labels.npy", tmp_path / "b.labels.npy")
    channels = shape[2] if len(shape) == 3 else 1
    assert (source.rows, source.classes, source.shape) == (8, (), (2, 3, channels))
    block = whole(source)
    assert np.array_equal(block.inputs, np.concatenate([one, two]).reshape(8, 2, 3, channels))
    assert block.labels.equals(pa.array([0, 1, 2, 3, 4, 1, 1, 1], pa.int32()))
    assert block.keys.equals(pa.concat_arrays([keys("a", 5), keys("b", 3)]))
    assert source.keys(segments(source)).equals(block.keys)


def test_images_and_labels_belong_together(tmp_path: Path) -> None:
    npy(tmp_path / "images.npy", pictures(3, 2, 2))
    np.save(tmp_path / "labels.npy", np.array([5, 6, 7], np.uint8))
    source = opened(tmp_path / "images.npy", tmp_path / "labels.npy")
    assert [file.name for file in source.files] == ["images.npy"]
    assert whole(source).labels.to_pylist() == [5, 6, 7]
    np.save(tmp_path / "images.labels.npy", np.array([1, 2, 3]))
    assert whole(opened(tmp_path / "images.npy")).labels.to_pylist() == [1, 2, 3]


def test_labels_of_a_column_and_unknown_ones_are_read(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", pictures(3, 2, 2), np.array([[4], [-1], [0]], np.int8))
    assert whole(opened(path)).labels.equals(pa.array([4, None, 0], pa.int32()))


def test_without_labels_all_are_unknown(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.arange(3))
    assert whole(opened(npy(tmp_path / "a.npy", pictures(3, 2, 2)))).labels.null_count == 3


def save_npz(path: Path, packed: bool, **members: Pixels) -> Path:
    (np.savez_compressed if packed else np.savez)(path, **members)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("x_train", "y_train")])
def test_npz_files_are_read(
    tmp_path: Path, names: tuple[str, str], order: Any, packed: bool
) -> None:
    pixels = pictures(4, 2, 3, 3)
    members = {names[0]: np.asarray(pixels, order=order), names[1]: np.array([3, 2, 1, 0])}
    path = save_npz(tmp_path / "a.npz", packed, **members, x_test=pictures(9, 1, 1))
    source = opened(path)
    block = whole(source)
    assert np.array_equal(block.inputs, pixels)
    assert block.inputs.flags.c_contiguous
    assert block.labels.to_pylist() == [3, 2, 1, 0]
    assert block.keys.equals(keys("a", 4))
    assert same(whole(source.reopen()), block)


def test_a_stored_member_is_not_held_in_memory(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz", False, images=pictures(4, 2, 3))
    shard = opened(path)._shards["a.npz"]
    assert isinstance(shard._pictures.loaded(), np.memmap)  # type: ignore[attr-defined]


def test_fortran_order_is_read(tmp_path: Path) -> None:
    pixels = pictures(5, 3, 2, 3)
    block = whole(opened(npy(tmp_path / "a.npy", np.asfortranarray(pixels))))
    assert np.array_equal(block.inputs, pixels)
    assert block.inputs.flags.c_contiguous


@pytest.mark.parametrize(("first", "rows"), [(0, 10), (0, 1), (3, 2), (3, 6), (9, 1)])
def test_any_row_range_is_read(tmp_path: Path, first: int, rows: int) -> None:
    pixels = pictures(10, 2, 3, 1)
    source = opened(npy(tmp_path / "a.npy", pixels, np.arange(10)))
    block = source.read([Segment(source="a.npy", first=first, rows=rows)])
    wanted = SampleBlock(keys("a", 10), pixels, pa.array(np.arange(10, dtype=np.int32)))
    assert same(block, wanted.slice(first, rows))
    # What is handed on is read already.
    assert not isinstance(block.inputs, np.memmap)
    assert block.inputs.flags.owndata


def test_segments_come_in_the_order_asked_for(tmp_path: Path) -> None:
    one, two = samples(5), samples(5, 5)
    source = opened(npy(tmp_path / "a.npy", one.inputs), npy(tmp_path / "b.npy", two.inputs))
    wanted = [("b.npy", 2, 3), ("a.npy", 4, 1)]
    block = source.read([Segment(source=n, first=f, rows=r) for n, f, r in wanted])
    assert block.inputs[:, 0, 0, 0].tolist() == [7, 8, 9, 4]


def test_rows_of_long_files_are_chosen_before_they_are_read(tmp_path: Path) -> None:
    one, two = pictures(1100, 2, 3), pictures(1000, 2, 3, seed=1)
    chosen = np.array([1050, 1, 7]), np.array([999, 3])
    wanted = np.concatenate([one[chosen[0]], two[chosen[1]]])[..., None]
    for name, stays in (("rows", True), ("columns", False), ("short", False), ("packed", False)):
        folder = tmp_path / name
        folder.mkdir()
        files = [npy(folder / "a.npy", one), npy(folder / "b.npy", two)]
        if name == "columns":
            np.save(files[1], np.asfortranarray(two))
        elif name == "packed":
            files[1] = folder / "b.npz"
            np.savez_compressed(files[1], images=two)
        elif name == "short":
            files.append(npy(folder / "c.npy", one[:20]))
        source = opened(*files)
        parts = [
            source.read_stored([segment], np.sort(rows))
            for segment, rows in zip(segments(source), chosen, strict=False)
        ]
        stored = joined([part.pictures for part in parts])
        assert isinstance(stored, MappedRows) == stays
        order = np.array([2, 0, 1, 4, 3])
        again = joined([taken(stored, order[:2]), taken(stored, order[2:])])
        read = source.pictures(keys("a", 5), again)
        assert np.array_equal(read, wanted)
        assert read.flags.owndata


def test_what_will_be_read_is_announced_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = pictures(2000, 2, 3)
    path = npy(tmp_path / "a.npy", pixels)
    asked: list[bytes] = []

    def noted(_: int, begin: int, size: int, advice: int) -> None:
        asked.append(path.read_bytes()[begin : begin + size])

    monkeypatch.setattr(os, "posix_fadvise", noted)
    monkeypatch.setattr(mapped, "READ_AROUND", 60)
    rows = np.array([3, 4, 14, 25, 1999])
    source = opened(path)
    source.read_stored(segments(source), rows)
    assert asked == [
        pixels[first:end].tobytes() for first, end in ((3, 15), (25, 26), (1999, 2000))
    ]


def test_arrays_are_not_scaled(tmp_path: Path) -> None:
    source = opened(npy(tmp_path / "a.npy", pictures(2, 4, 4)))
    with pytest.raises(DataError, match="has pictures of 4x4 with 1 channel, the model takes 5x4"):
        source.framed(Framing(height=5, width=4, channels=1, interpolation="bilinear"), "the model")


def test_digests_are_of_all_files(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", pictures(2, 2, 2))
    assert opened(path).digest("a.npy").sha256 == file_sha256(path)
    npy(path, pictures(2, 2, 2), np.arange(2))
    digest = opened(path).digest("a.npy")
    labels = tmp_path / "a.labels.npy"
    lines = f"{file_sha256(path)}  a.npy\n{file_sha256(labels)}  a.labels.npy\n"
    assert digest.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert digest.bytes == path.stat().st_size + labels.stat().st_size
    np.save(labels, np.array([1, 0]))
    assert opened(path).digest("a.npy").sha256 != digest.sha256


@pytest.mark.parametrize("label", [-2, 2**31 - 1, 2**31, -(2**40), 2**63])
def test_a_label_that_is_none_names_its_key(tmp_path: Path, label: int) -> None:
    path = npy(
        tmp_path / "a.npy",
        pictures(3, 2, 2),
        np.array([0, label, 1], np.uint64 if label == 2**63 else np.int64),
    )
    source = opened(path)
    with pytest.raises(DataError, match=rf"key 'a-00000001' has label {label}"):
        whole(source)


def test_a_label_outside_the_classes_names_its_key(tmp_path: Path) -> None:
    source = opened(npy(tmp_path / "a.npy", pictures(3, 2, 2), np.array([0, 1, 2])))
    with pytest.raises(DataError, match="key 'a-00000002' has label 2, outside"):
        whole(source.naming(["ant", "bee"]))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("pixels", "problem"),
    [
        (np.zeros((2, 4, 4), np.float32), r"holds pictures of float32, only uint8 .* np\.rint\(x"),
        (np.zeros((2, 4, 4), np.float16), "holds pictures of float16, only uint8 is read; save"),
        (np.zeros((2, 4, 4), np.int64), "holds pictures of int64, only uint8 is read; save values"),
        (np.zeros((2, 4, 4), np.int8), "holds pictures of int8, only uint8"),
        (np.zeros((2, 4, 4), bool), "holds pictures of bool, only uint8"),
        (np.zeros((2, 16), np.uint8), r"expected pictures \[N, height, width\] or .*got \[2, 16\]"),
        (np.zeros((), np.uint8), r"expected pictures .* got \[\]"),
        (np.zeros((2, 1, 2, 2, 3), np.uint8), r"expected pictures .* got \[2, 1, 2, 2, 3\]"),
        (np.zeros((2, 0, 4), np.uint8), r"expected pictures .* got \[2, 0, 4\]"),
        (np.array([None, None]), r"is no usable \.np[yz] file: .*; save it again"),
    ],
)
def test_pictures_of_another_kind_are_told(
    tmp_path: Path, suffix: str, pixels: Pixels, problem: str
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, pixels)
    else:
        np.savez(path, images=pixels)
    with pytest.raises(DataError, match=rf"a{suffix}.*: {problem}"):
        opened(path)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (np.zeros(3, np.float64), "holds labels of float64; save the classes' numbers as integers"),
        (np.zeros(3, bool), "holds labels of bool; save"),
        (np.array(["a", "b", "c"]), "holds labels of <U1; save"),
        (np.zeros(2, int), r"a\.npy: has 3 pictures, .*a\.labels\.npy has 2 labels; save one"),
        (np.zeros((3, 2), int), r"expected labels \[N\], got \[3, 2\]; save one a picture"),
        (np.zeros((3, 1, 1), int), r"expected labels \[N\], got \[3, 1, 1\]"),
        (np.zeros((), int), r"expected labels \[N\], got \[\]"),
        (np.array([None] * 3), r"a\.labels\.npy: is no usable \.npy file"),
    ],
)
def test_labels_of_another_kind_are_told(tmp_path: Path, labels: Pixels, problem: str) -> None:
    path = npy(tmp_path / "a.npy", pictures(3, 2, 2), labels)
    with pytest.raises(DataError, match=problem):
        opened(path)


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        (["images", "x"], r"a\.npz: the pictures may be in 'images' and 'x'; keep one of them"),
        (["x", "y", "labels"], r"a\.npz: the labels may be in 'labels' and 'y'; keep one of them"),
        (["data", "y"], r"has none of 'images', 'x', 'x_train', it has 'data', 'y'; name the"),
    ],
)
def test_members_that_cannot_be_told_are_named(
    tmp_path: Path, members: list[str], problem: str
) -> None:
    given = {
        name: np.zeros(2, int) if name in ("y", "labels") else pictures(2, 2, 2) for name in members
    }
    with pytest.raises(DataError, match=problem):
        opened(save_npz(tmp_path / "a.npz", False, **given))


def test_files_that_do_not_go_together_are_told(tmp_path: Path) -> None:
    one, two = (
        npy(tmp_path / "a.npy", pictures(2, 2, 2)),
        npy(tmp_path / "b.npy", pictures(2, 2, 3)),
    )
    with pytest.raises(
        DataError, match=r"b\.npy has pictures of \[2, 3, 1\], a\.npy of \[2, 2, 1\]"
    ):
        opened(one, two)
    same_stem = save_npz(tmp_path / "a.npz", False, x=pictures(2, 2, 2))
    with pytest.raises(DataError, match=r"a\.npy and .*a\.npz would give their rows the same keys"):
        opened(one, same_stem)


def test_a_file_without_rows_is_passed_over_and_nothing_but_such_refused(tmp_path: Path) -> None:
    empty = npy(tmp_path / "a.npy", pictures(0, 2, 2), np.zeros(0, int))
    packed = save_npz(tmp_path / "c.npz", True, x=pictures(0, 2, 2))
    source = opened(empty, npy(tmp_path / "b.npy", pictures(3, 2, 2)), packed)
    assert [file.rows for file in source.files] == [0, 3, 0]
    assert len(whole(source)) == 3
    with pytest.raises(DataError, match="the source is empty"):
        opened(empty)


def test_files_that_are_not_there_are_parameter_errors(tmp_path: Path) -> None:
    for name in ("absent.npy", "absent.npz"):
        with pytest.raises(ParameterError, match=rf"{name}: no such source"):
            opened(tmp_path / name)
    np.save(tmp_path / "labels.npy", np.arange(3))
    with pytest.raises(DataError, match="holds labels and no pictures; name the file of pictures"):
        opened(tmp_path / "labels.npy")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "text": lambda data: b"hello world, this is text",
    "header cut": lambda data: data[:40],
    "values cut": lambda data: data[:-1],
    "values left over": lambda data: data + b"!",
    "version": lambda data: data[:6] + b"\x09" + data[7:],
    "header no dictionary": lambda data: data.replace(b"{'descr'", b"['descr'"),
    "a shape beyond memory": lambda data: data.replace(b"(3, 2, 2)", b"(9999999999,)"),
    "a negative shape": lambda data: data.replace(b"(3, 2, 2)", b"(-3,-2,2)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_npy_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = npy(tmp_path / "a.npy", pictures(3, 2, 2))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(DataError, match=r"a\.npy: (is no usable \.npy file: .*; save it|expected)"):
        opened(path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_npz_file_is_no_traceback(tmp_path: Path, packed: bool) -> None:
    path = save_npz(tmp_path / "a.npz", packed, x=pictures(3, 2, 2), y=np.arange(3))
    data = path.read_bytes()
    damaged = [
        data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :] for at in range(len(data))
    ]
    damaged += [data[:at] for at in range(0, len(data), 7)]
    raised = {}
    for each in damaged:
        path.write_bytes(each)
        try:
            whole(opened(path))
        except DataError as error:
            assert "\n" not in str(error)
        except Exception as error:
            raised[repr(error)] = error
    assert raised == {}


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_nothing_pickled_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bomb = np.empty(2, object)
    bomb[:] = [Bomb(), Bomb()]
    member = io.BytesIO()
    np.save(member, bomb)
    (tmp_path / "a.npy").write_bytes(member.getvalue())
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("x.npy", member.getvalue())
    for name in ("a.npy", "b.npy", "c.npz"):
        with pytest.raises(DataError, match=rf"{name}: is no usable"):
            opened(tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"!"])
def test_a_member_of_another_size_than_its_header_says_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], packing: int
) -> None:
    member = io.BytesIO()
    np.save(member, pictures(3, 2, 2))
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("x.npy", change(member.getvalue()))
    with pytest.raises(
        DataError, match=r"it holds 1[13] bytes of values, its header says \[3, 2, "
    ):
        whole(opened(path))


def test_a_member_larger_than_allowed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "MAX_BYTES", 10)
    path = save_npz(tmp_path / "a.npz", True, x=pictures(3, 2, 2))
    with pytest.raises(DataError, match=r"x has more than 0 GiB: use np\.savez"):
        whole(opened(path))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_file_that_changed_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save = np.save if suffix == ".npy" else np.savez
    save(path, pictures(3, 2, 2)) if suffix == ".npy" else np.savez(path, x=pictures(3, 2, 2))
    source = opened(path)
    save(path, pictures(2, 2, 2)) if suffix == ".npy" else np.savez(path, x=pictures(2, 2, 2))
    with pytest.raises(DataError, match="has another shape now; the file changed, start again"):
        whole(source)


def test_what_is_held_is_let_go_on_close(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz", True, x=pictures(3, 2, 2))
    shard = opened(path)._shards["a.npz"]
    (before,) = shard.read(0, 3)
    shard.close()
    assert shard._loaded is None  # type: ignore[attr-defined]
    (after,) = shard.read(0, 3)
    assert np.array_equal(np.asarray(before.pictures), np.asarray(after.pictures))


def test_rows_in_another_order_are_another_source(tmp_path: Path) -> None:
    pictures = np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3)
    np.save(tmp_path / "x.npy", pictures)
    before = open_source(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", pictures[::-1])
    after = open_source(tmp_path / "x.npy")
    assert before.files != after.files
    assert before.reopen().files == before.files
