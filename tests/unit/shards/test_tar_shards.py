import contextlib
import hashlib
import io
import itertools
import json
import tarfile
import tempfile
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softlabel.pipeline.shards import tar as tar_shards
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.shards.layouts import open_shard, writing_shard
from softlabel.pipeline.shards.packing import Packing
from softlabel.pipeline.shards.parquet_columns import shard_header
from softlabel.pipeline.shards.tar import TarReader, TarWriter
from softlabel.pipeline.shards.tar_members import tar_groups
from softlabel.pipeline.shards.tar_samples import escaped_key
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import CodecName, Layout
from tests.unit.blocks import CODECS, block_of, packing_of, same

LAYOUTS: tuple[Layout, ...] = ("sidecar", "merged")
LENGTHS = (0, 2, 0, 3, 1, 0)
ROWS = len(LENGTHS)
PAYLOAD = {
    "dense-f32": ".softlabel.logits.npy",
    "dense-f16": ".softlabel.logits.npy",
    "dense-u8": ".softlabel.u8.npz",
    "topk": ".softlabel.topk.npz",
    "factored": ".softlabel.features.npy",
}
Members = list[tuple[str, bytes]]


def with_keys(block: LabelBlock, keys: Sequence[str]) -> LabelBlock:
    return replace(block, keys=pa.array(keys, pa.string()))


def numbered(block: LabelBlock) -> LabelBlock:
    """The block under keys that may name members as they are."""
    order = {key: f"d/s{index}" for index, key in enumerate(dict.fromkeys(keys_of(block)))}
    return with_keys(block, [order[key] for key in keys_of(block)])


def keys_of(block: LabelBlock) -> list[str]:
    return cast("list[str]", block.keys.to_pylist())


def pictures(block: LabelBlock) -> list[Members]:
    """Members of a source for each sample of the block."""
    samples = [key for key, _ in itertools.groupby(keys_of(block))]
    if block.views is None:
        samples = keys_of(block)
    return [[(".JPG", f"picture {key}".encode() * 50), (".seg.png", b"")] for key in samples]


def write(path: Path, packing: Packing, *blocks: LabelBlock) -> tuple[int, str]:
    with open(path, "wb") as file:
        writer = TarWriter(file, packing)
        for block in blocks:
            writer.append(block, pictures(block) if packing.layout == "merged" else None)
        assert writer.rows == sum(map(len, blocks))
        return writer.finish()


def read(
    path: Path, packing: Packing, first: int = 0, rows: int | None = None, sha256: str | None = None
) -> LabelBlock:
    reader = TarReader(path, packing, sha256)
    return concat_blocks(list(reader.read(first, reader.rows if rows is None else rows)))


def shapes(codec: CodecName, layout: Layout) -> Iterator[tuple[Packing, LabelBlock]]:
    """Plain rows, views, sequences, features, and all of them together."""
    # The features of a factored set are its payload.
    for features in (False,) if codec == "factored" else (False, True):
        for views, positions in itertools.product((1, 2), (False, True)):
            packing = packing_of(codec, layout, views=views, positions=positions, features=features)
            block = block_of(packing, ROWS, LENGTHS if positions else None)
            yield packing, numbered(block) if layout == "merged" else block


def plain(layout: Layout = "sidecar", codec: CodecName = "dense-f16") -> tuple[Packing, LabelBlock]:
    packing = packing_of(codec, layout)
    return packing, numbered(block_of(packing, ROWS))


def in_memory(packing: Packing, block: LabelBlock) -> dict[str, bytes]:
    """Every member of a shard by its name, as Python's own library reads them."""
    file = io.BytesIO()
    writer = TarWriter(file, packing)
    writer.append(block)
    writer.finish()
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        return {m.name: cast("Any", tar.extractfile(m)).read() for m in tar}


def documents(packing: Packing, block: LabelBlock) -> list[dict[str, Any]]:
    members = in_memory(packing, block)
    return [json.loads(data) for name, data in members.items() if name.endswith(".softlabel.json")]


def webdataset_samples(path: Path) -> list[dict[str, Any]]:
    import webdataset

    with warnings.catch_warnings():
        # It leaves its file to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        return list(webdataset.WebDataset(str(path), shardshuffle=False).decode())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS)
def test_what_was_written_is_read(tmp_path: Path, codec: CodecName, layout: Layout) -> None:
    for packing, block in shapes(codec, layout):
        with writing_shard(tmp_path, "part", packing) as writer:
            assert isinstance(writer, TarWriter)
            writer.append(block, pictures(block) if layout == "merged" else None)
            size, digest = writer.finish()
        data = (tmp_path / "part.tar").read_bytes()
        assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())
        reader = open_shard(tmp_path, "part", packing, digest)
        assert reader.rows == ROWS
        same(concat_blocks(list(reader.read(0, ROWS))), block)
        assert reader.keys().to_pylist() == keys_of(block)


@pytest.mark.parametrize("codec", ["dense-f16", "topk"])
def test_any_row_range_is_read(tmp_path: Path, codec: CodecName) -> None:
    for packing, block in shapes(codec, "sidecar"):
        write(tmp_path / "part.tar", packing, block)
        for first in range(ROWS):
            for rows in range(1, ROWS + 1 - first):
                found = read(tmp_path / "part.tar", packing, first, rows)
                same(found, block.slice(first, rows))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pieces", [(1,) * 6, (1, 3, 2), (5, 1), (2, 2, 2), (0, 6, 0)])
def test_bytes_do_not_depend_on_how_rows_were_handed_over(
    tmp_path: Path, layout: Layout, pieces: tuple[int, ...]
) -> None:
    for packing, block in shapes("dense-u8", layout):
        whole = write(tmp_path / "whole.tar", packing, block)
        ends = np.cumsum(pieces).tolist()
        blocks = [block.slice(end - rows, rows) for end, rows in zip(ends, pieces, strict=True)]
        assert write(tmp_path / "part.tar", packing, *blocks) == whole


def test_blocks_are_bounded_by_rows_and_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing, block = plain()
    write(tmp_path / "part.tar", packing, block)
    monkeypatch.setattr(tar_shards, "BLOCK_ROWS", 4)
    reader = TarReader(tmp_path / "part.tar", packing)
    assert [len(found) for found in reader.read(0, 6)] == [4, 2]
    assert [len(found) for found in reader.read(1, 5)] == [4, 1]
    monkeypatch.setattr(tar_shards, "BLOCK_BYTES", 1)
    assert [len(found) for found in reader.read(0, 3)] == [1, 1, 1]
    same(concat_blocks(list(reader.read(0, 6))), block)


def test_samples_larger_than_a_block_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_shards, "BLOCK_ROWS", 1)
    packing = packing_of("dense-f16", "sidecar", views=3)
    block = block_of(packing, ROWS)
    write(tmp_path / "part.tar", packing, block)
    assert [len(b) for b in TarReader(tmp_path / "part.tar", packing).read(0, 6)] == [3, 3]
    same(read(tmp_path / "part.tar", packing), block)


def test_an_empty_shard(tmp_path: Path) -> None:
    packing, _ = plain()
    write(tmp_path / "part.tar", packing)
    reader = TarReader(tmp_path / "part.tar", packing)
    assert reader.rows == 0
    assert list(reader.read(0, 0)) == []
    assert reader.keys().to_pylist() == []


@pytest.mark.parametrize("codec", CODECS)
def test_members_of_a_sample(codec: CodecName) -> None:
    packing = packing_of(codec, "sidecar")
    block = numbered(block_of(packing, 3))
    assert block.labels.to_pylist()[2] is None
    suffixes = [".softlabel.json", PAYLOAD[codec]]
    assert list(in_memory(packing, block)) == [
        "__softlabel__",
        *(f"d/s{row}{s}" for row in (0, 1) for s in (*suffixes, ".cls")),
        *(f"d/s2{s}" for s in suffixes),
    ]


def test_stored_features_have_a_member_of_their_own() -> None:
    packing = packing_of("topk", "sidecar", features=True)
    block = numbered(block_of(packing, 1))
    members = in_memory(packing, block)
    features = np.load(io.BytesIO(members["d/s0.softlabel.features.npy"]), allow_pickle=False)
    assert features.dtype == np.float16
    assert block.features is not None
    assert features.tolist() == block.features[0].tolist()


def test_the_first_member_says_what_the_shard_is() -> None:
    packing, block = plain()
    name, data = next(iter(in_memory(packing, block).items()))
    assert name == "__softlabel__"
    assert json.loads(data) == shard_header(packing)


@pytest.mark.parametrize("codec", CODECS)
def test_arrays_are_what_numpy_reads(codec: CodecName) -> None:
    """And the same arrays that its own functions write, so nothing about them is special."""
    for packing, block in shapes(codec, "sidecar"):
        one = block.slice(2, 2)
        members = in_memory(packing, one)
        (data,) = [data for name, data in members.items() if name.endswith(PAYLOAD[codec])][:1]
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        arrays = loaded if PAYLOAD[codec].endswith("npz") else {PAYLOAD[codec][11:-4]: loaded}
        names = {"ids", "logits", "features"} & set(block.payload)
        assert set(arrays) == names
        sample = one if block.views is not None else one.slice(0, 1)
        for name in names:
            wanted = sample.payload[name]
            if block.views is None and block.lengths is None:
                wanted = wanted[0]
            assert arrays[name].dtype == wanted.dtype
            assert arrays[name].tobytes() == wanted.tobytes()
            assert arrays[name].shape == wanted.shape


def test_members_tell_no_time_and_no_owner(tmp_path: Path) -> None:
    packing, block = plain()
    write(tmp_path / "part.tar", packing, with_keys(block, ["a" * 300, *"bcdef"]))
    with tarfile.open(tmp_path / "part.tar") as tar:
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in tar}
    assert facts == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}


def test_json_of_a_plain_sample() -> None:
    packing, block = plain(codec="dense-u8")
    first, _, third, *_ = documents(packing, block)
    assert list(first) == ["key", "top1", "shift", "range", "lse", "label"]
    assert (first["key"], first["top1"]) == ("d/s0", int(block.top1[0]))
    assert first["label"] == block.labels[0].as_py()
    assert third["label"] is None
    assert np.float32(first["range"]) == block.payload["range"][0]
    assert np.array_equal(np.float32(first["lse"]), block.payload["lse"][0])


def test_json_of_views_and_of_sequences() -> None:
    packing = packing_of("dense-f16", "sidecar", views=2)
    (first, *_) = documents(packing, block_of(packing, 4))
    assert first["view"] == [0, 1]
    assert [len(first[name]) for name in ("label", "top1", "shift", "lse")] == [2, 2, 2, 2]
    assert "length" not in first
    packing = packing_of("dense-f16", "sidecar", positions=True)
    first, second = documents(packing, numbered(block_of(packing, 2, (0, 3))))
    assert (first["length"], first["top1"]) == (0, [])
    assert (second["length"], len(second["lse"]), len(second["lse"][0])) == (3, 3, 3)
    packing = packing_of("dense-f16", "sidecar", views=2, positions=True)
    (first, *_) = documents(packing, block_of(packing, 2, (2, 1)))
    assert (first["view"], first["length"], len(first["shift"])) == ([0, 1], [2, 1], 3)


def test_a_class_member_only_where_all_views_have_one_label() -> None:
    packing = packing_of("dense-f16", "sidecar", views=2)
    block = block_of(packing, 6)
    block = replace(block, labels=pa.array([3, 3, 1, 2, None, None], pa.int32()))
    members = in_memory(packing, with_keys(block, list("aabbcc")))
    assert {name: data for name, data in members.items() if name.endswith("cls")} == {"a.cls": b"3"}


def test_masked_log_sums_are_null_and_come_back(tmp_path: Path) -> None:
    packing, block = plain(codec="topk")
    tails = block.payload["tail_lse"].copy()
    tails[1] = -np.inf
    block = replace(block, payload={**block.payload, "tail_lse": tails})
    assert documents(packing, block)[1]["tail_lse"] == [None] * 3
    write(tmp_path / "part.tar", packing, block)
    same(read(tmp_path / "part.tar", packing), block)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_json_cannot_hold_is_refused(value: float) -> None:
    packing, block = plain()
    shift = block.shift.copy()
    shift[1] = value
    with pytest.raises(ValueError, match="JSON"):
        in_memory(packing, replace(block, shift=shift))


# The shortest decimals of the last two, read as float64, round to another float32.
@example([0.1, -0.0, 1e-45, 3.4028235e38, 7.038531e-26, 16777216.0])
@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_read_back_as_the_same_float32(numbers: list[float]) -> None:
    packing = packing_of("dense-f16", "sidecar")
    shift = np.asarray(numbers, np.float32)
    block = numbered(block_of(packing, len(shift)))
    keys = [f"k{row}" for row in range(len(shift))]
    found = documents(packing, replace(with_keys(block, keys), shift=shift))
    back = np.asarray([document["shift"] for document in found], np.float64).astype(np.float32)
    assert back.tobytes() == shift.tobytes()


def test_numbers_are_as_short_as_they_can_be() -> None:
    packing, block = plain()
    shift = np.asarray([0.1, 1, 1e-7, 123456.7, 3e38, -2.5], np.float32)
    members = in_memory(packing, replace(block, shift=shift))
    texts = [data.decode() for name, data in members.items() if name.endswith("softlabel.json")]
    found = [text.split('"shift": ')[1].split(",")[0] for text in texts]
    assert found == ["0.1", "1.0", "1e-07", "123456.7", "3e+38", "-2.5"]


NASTY = ["a", "é", ".", "..", "/", "//", "%", "%2E", "\\", "_", "__", "\n", "\0", "\x7f", "\x85"]
NASTY += [" ", "\u2028", "\u202e", "🙂", "~", "-", "*", "'", '"', "C:", "json", "cls", "__k__"]
KEYS = st.lists(st.sampled_from(NASTY), min_size=1, max_size=6).map("".join) | st.text(
    st.characters(codec="utf-8"), min_size=1, max_size=200
)


@settings(deadline=None)
@given(st.lists(KEYS, min_size=1, max_size=6, unique=True))
@example(["/abs", "../../up", "a//b", "end/", "/", ".hidden", "x.tar.gz", "__meta__", "__m__/a"])
@example(["é" * 60, "a/" * 60 + "b", "x" * 5000, "%", "%25", "a.b", "a%2Eb"])
def test_any_key_names_a_safe_sample_and_comes_back(keys: list[str]) -> None:
    packing = packing_of("dense-f16", "sidecar")
    block = with_keys(block_of(packing, len(keys)), keys)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.tar"
        write(path, packing, block)
        same(read(path, packing), block)
        found = webdataset_samples(path)
        groups = [prefix for prefix, _ in tar_groups(path)]
    assert [sample["softlabel.json"]["key"] for sample in found] == keys
    assert [sample["__key__"] for sample in found] == groups == [escaped_key(k) for k in keys]
    for prefix, key in zip(groups, keys, strict=True):
        assert urllib.parse.unquote(prefix) == key
        parts = prefix.split("/")
        assert all(part and "." not in part for part in parts)
        assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in prefix)


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("train/cat/001", "train/cat/001"),
        ("n0145.7_a", "n0145%2E7_a"),
        ("50%", "50%25"),
        ("../up", "%2E%2E/up"),
        ("/abs//b/", "%2Fabs/%2Fb%2F"),
        ("__a__", "%5F_a__"),
        ("_a", "_a"),
        ("a\n\0b\\c", "a%0A%00b%5Cc"),
        ("\x85é", "%C2%85é"),
    ],
)
def test_how_keys_are_escaped(key: str, prefix: str) -> None:
    assert escaped_key(key) == prefix


@pytest.mark.parametrize("size", [88, 89, 99, 100, 101, 255, 256, 5000])
def test_long_keys(tmp_path: Path, size: int) -> None:
    packing, block = plain()
    keys = [letter * size for letter in "abcdef"]
    write(tmp_path / "part.tar", packing, with_keys(block, keys))
    same(read(tmp_path / "part.tar", packing), with_keys(block, keys))
    assert [sample["__key__"] for sample in webdataset_samples(tmp_path / "part.tar")] == keys
    with tarfile.open(tmp_path / "part.tar") as tar:
        assert {name.split(".")[0] for name in tar.getnames()} == {"__softlabel__", *keys}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["a", ""], "a key is empty; give every sample a key"),
        (["a", "a"], "key 'a' appears twice: samples 0 and 1"),
        (["a", "b", "a"], "key 'a' appears twice: samples 0 and 2 of one shard"),
    ],
)
def test_keys_that_are_refused(tmp_path: Path, layout: Layout, keys: list[str], words: str) -> None:
    packing, block = plain(layout)
    with pytest.raises(DataError, match=words):
        write(tmp_path / "part.tar", packing, with_keys(block.slice(0, len(keys)), keys))


def test_a_key_that_comes_again_in_a_later_block_is_refused(tmp_path: Path) -> None:
    packing, block = plain()
    with pytest.raises(DataError, match="key 'd/s0' appears twice"):
        write(tmp_path / "part.tar", packing, block, block.slice(0, 1))


@pytest.mark.parametrize("views", [[0, 0], [1, 0]])
def test_a_view_that_comes_twice_is_refused(tmp_path: Path, views: list[int]) -> None:
    packing = packing_of("dense-f16", "sidecar", views=2)
    block = replace(block_of(packing, 2), views=np.asarray(views, np.uint16))
    with pytest.raises(DataError, match=rf"has view {views[1]} twice or out of order"):
        write(tmp_path / "part.tar", packing, block.slice(0, 1), block.slice(1, 1))


@pytest.mark.parametrize("key", ["a.b", "/a", "../a", "__m__/a", ".", "a\0b"])
def test_merged_refuses_keys_that_name_no_members(tmp_path: Path, key: str) -> None:
    packing, block = plain("merged")
    with pytest.raises(DataError, match=r"cannot name the members|names? no|NUL"):
        write(tmp_path / "part.tar", packing, with_keys(block.slice(0, 1), [key]))


def test_merged_holds_the_members_of_the_source_unchanged(tmp_path: Path) -> None:
    packing, block = plain("merged")
    block = with_keys(block, ["./a", "b.d/c%", "d", "e\\", "f", "ü"])
    write(tmp_path / "part.tar", packing, block)
    groups = list(tar_groups(tmp_path / "part.tar"))
    assert [prefix for prefix, _ in groups] == keys_of(block)
    for (_, members), wanted in zip(groups, pictures(block), strict=True):
        assert members[: len(wanted)] == wanted
        suffixes = [suffix for suffix, _ in members[len(wanted) :]]
        assert suffixes == [".softlabel.json", ".softlabel.logits.npy"]
    same(read(tmp_path / "part.tar", packing), block)


def test_merged_into_what_was_merged_is_refused(tmp_path: Path) -> None:
    packing, block = plain("merged")
    with open(tmp_path / "part.tar", "wb") as file:
        writer = TarWriter(file, packing)
        with pytest.raises(DataError, match="'d/s0' of the source holds soft labels already"):
            writer.append(block.slice(0, 1), [[(".jpg", b""), (".SoftLabel.json", b"{}")]])
        with pytest.raises(ValueError, match="'jpg' is no suffix"):
            writer.append(block.slice(1, 1), [[("jpg", b"")]])


@pytest.mark.parametrize(("layout", "members"), [("sidecar", [[]]), ("merged", None)])
def test_members_belong_to_merged_alone(
    tmp_path: Path, layout: Layout, members: list[Members] | None
) -> None:
    packing, block = plain(layout)
    with open(tmp_path / "part.tar", "wb") as file:
        with pytest.raises(ValueError, match="layout merged"):
            TarWriter(file, packing).append(block.slice(0, 1), members)
        with pytest.raises(ValueError, match="members of 2 samples for 1"):
            TarWriter(file, packing_of("topk", "merged")).append(block.slice(0, 1), [[], []])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS)
def test_webdataset_reads_it_with_its_default_decoders(
    tmp_path: Path, codec: CodecName, layout: Layout
) -> None:
    for packing, block in shapes(codec, layout):
        write(tmp_path / "part.tar", packing, block)
        samples = webdataset_samples(tmp_path / "part.tar")
        many = block.views is not None or block.lengths is not None
        starts = block.starts()
        row = 0
        for sample in samples:
            document = sample["softlabel.json"]
            rows = len(document["view"]) if block.views is not None else 1
            assert document["key"] == keys_of(block)[row]
            part = slice(int(starts[row]), int(starts[row + rows]))
            found = sample[PAYLOAD[codec][1:]]
            arrays = found if isinstance(found, dict) else {PAYLOAD[codec][11:-4]: found}
            for name, values in arrays.items():
                wanted = block.payload[name][part]
                equal(values, wanted if many else wanted[0])
            labels = block.labels.to_pylist()[part]
            assert document["label"] == (labels if many else labels[0])
            known = layout == "sidecar" and block.lengths is None and len(set(labels)) == 1
            assert sample.get("cls") == (labels[0] if known else None)
            if layout == "merged":
                assert sample["seg.png"] == b""
            row += rows
        assert row == len(block)


def equal(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> None:
    assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_flipped_bit_is_noticed_before_the_first_row(tmp_path: Path, layout: Layout) -> None:
    packing, block = plain(layout)
    _, digest = write(tmp_path / "part.tar", packing, block)
    data = (tmp_path / "part.tar").read_bytes()
    for at in range(0, len(data), 37):
        (tmp_path / "part.tar").write_bytes(flipped(data, at))
        with pytest.raises(DataError, match=r"part\.tar: its SHA-256 is not that of its receipt;"):
            TarReader(tmp_path / "part.tar", packing, digest)


def test_a_tar_that_changes_after_it_was_checked_is_refused(tmp_path: Path) -> None:
    packing, block = plain()
    path = tmp_path / "part.tar"
    _, digest = write(path, packing, block)
    reader = TarReader(path, packing, digest)
    assert len(concat_blocks(list(reader.read(0, 2)))) == 2
    (tmp_path / "other.tar").write_bytes(path.read_bytes())
    (tmp_path / "other.tar").replace(path)
    with pytest.raises(DataError, match=r"part\.tar: it changed after it was checked;"):
        list(reader.read(0, 2))


@pytest.mark.parametrize("codec", CODECS)
def test_without_a_receipt_a_flipped_bit_is_no_traceback(tmp_path: Path, codec: CodecName) -> None:
    for packing, block in shapes(codec, "sidecar"):
        write(tmp_path / "part.tar", packing, block.slice(0, 4))
        data = (tmp_path / "part.tar").read_bytes()
        noticed = 0
        for at in range(0, len(data), 149):
            (tmp_path / "part.tar").write_bytes(flipped(data, at))
            try:
                read(tmp_path / "part.tar", packing)
                TarReader(tmp_path / "part.tar", packing).keys()
            except DataError as error:
                assert "\n" not in str(error)
                noticed += 1
        assert noticed > 0


def test_checksums_that_are_there_are_looked_at(tmp_path: Path) -> None:
    packing, block = plain(codec="topk")
    write(tmp_path / "part.tar", packing, block)
    data = (tmp_path / "part.tar").read_bytes()
    mode = data.index(b"d/s1.softlabel.topk.npz") + 104
    (tmp_path / "part.tar").write_bytes(flipped(data, mode))
    with pytest.raises(DataError, match=r"part\.tar: the checksum of a member's header is wrong"):
        read(tmp_path / "part.tar", packing)
    (tmp_path / "part.tar").write_bytes(flipped(data, data.index(b"\x93NUMPY", mode) + 130))
    with pytest.raises(DataError, match=r"the checksum of ids\.npy in a zip archive is wrong"):
        read(tmp_path / "part.tar", packing)


def test_a_shard_that_is_cut_short_is_refused_with_or_without_receipt(tmp_path: Path) -> None:
    packing, block = plain()
    _, digest = write(tmp_path / "part.tar", packing, block)
    data = (tmp_path / "part.tar").read_bytes()
    for size in (*range(0, len(data), 512), len(data) - 1, 700):
        (tmp_path / "part.tar").write_bytes(data[:size])
        for sha256 in (digest, None):
            with pytest.raises(DataError, match=r"part\.tar: .*then 'softlabel infer' again"):
                TarReader(tmp_path / "part.tar", packing, sha256)
    (tmp_path / "part.tar").write_bytes(data + b"\0")
    with pytest.raises(DataError, match="goes on behind its end"):
        TarReader(tmp_path / "part.tar", packing)


def test_a_shard_of_another_set_is_refused(tmp_path: Path) -> None:
    packing, block = plain()
    write(tmp_path / "part.tar", packing, block)
    other = replace(packing, identity=packing.identity.model_copy(update={"seed": 1}))
    with pytest.raises(DataError, match=r"part\.tar: it belongs to another label set"):
        TarReader(tmp_path / "part.tar", other)
    with pytest.raises(DataError, match=r"part\.tar: its header is not that of its label set"):
        TarReader(tmp_path / "part.tar", replace(packing, layout="merged"))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"hello " * 400, bytes(1024), bytes(5000)])
def test_what_is_no_label_shard_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "part.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"part\.tar: .*then 'softlabel infer' again"):
        TarReader(tmp_path / "part.tar", plain()[0])


def test_a_missing_shard_and_somebody_elses_tar_are_refused(tmp_path: Path) -> None:
    packing, _ = plain()
    with pytest.raises(DataError, match=r"part\.tar"):
        TarReader(tmp_path / "part.tar", packing)
    foreign_tar(tmp_path / "part.tar", [("a.jpg", b"x")])
    with pytest.raises(DataError, match=r"part\.tar: it is no label shard"):
        TarReader(tmp_path / "part.tar", packing)


def rewritten(path: Path, change: Callable[[str, bytes], list[tuple[str, bytes]]]) -> None:
    """The tar written again by Python's library, each member as `change` gives it."""
    with tarfile.open(path) as tar:
        members = [(m.name, cast("Any", tar.extractfile(m)).read()) for m in tar]
    foreign_tar(path, [new for name, data in members for new in change(name, data)])
    with open(path, "r+b") as file:
        # The library pads the end to 10,240 bytes.
        file.seek(0)
        data = file.read().rstrip(b"\0")
        file.truncate(len(data) + -len(data) % 512 + 1024)


def lose_an_array(name: str, data: bytes) -> Members:
    return [] if name == "d/s2.softlabel.logits.npy" else [(name, data)]


def repeat_the_json(name: str, data: bytes) -> Members:
    return [(name, data)] * (2 if name == "d/s2.softlabel.json" else 1)


def swap_the_json(name: str, data: bytes) -> Members:
    return [(name, data.replace(b'"d/s2"', b'"d/s3"') if name.endswith("json") else data)]


def pickle_the_array(name: str, data: bytes) -> Members:
    if not name.endswith("npy"):
        return [(name, data)]
    file = io.BytesIO()
    np.save(file, np.asarray([{}], object), allow_pickle=True)
    return [(name, file.getvalue())]


def widen_the_array(name: str, data: bytes) -> Members:
    if not name.endswith("npy"):
        return [(name, data)]
    file = io.BytesIO()
    np.save(file, np.load(io.BytesIO(data)).astype(np.float32))
    return [(name, file.getvalue())]


def say_nan(name: str, data: bytes) -> Members:
    return [(name, data.replace(b'"lse": [', b'"lse": [NaN, ') if name.endswith("json") else data)]


def lose_a_field(name: str, data: bytes) -> Members:
    return [(name, data.replace(b'"shift"', b'"drift"') if name.endswith("json") else data)]


def lose_the_shift(name: str, data: bytes) -> Members:
    if name != "d/s1.softlabel.json":
        return [(name, data)]
    return [(name, json.dumps(json.loads(data) | {"shift": None}).encode())]


@pytest.mark.parametrize(
    "change",
    [
        lose_an_array,
        repeat_the_json,
        swap_the_json,
        pickle_the_array,
        widen_the_array,
        say_nan,
        lose_a_field,
        lose_the_shift,
    ],
)
def test_members_that_do_not_fit_together_are_refused(
    tmp_path: Path, change: Callable[[str, bytes], Members]
) -> None:
    packing, block = plain()
    write(tmp_path / "part.tar", packing, block)
    rewritten(tmp_path / "part.tar", lambda name, data: [(name, data)])
    same(read(tmp_path / "part.tar", packing), block)
    rewritten(tmp_path / "part.tar", change)
    with pytest.raises(DataError, match=r"part\.tar: "):
        read(tmp_path / "part.tar", packing)


def foreign_tar(path: Path, members: Members, kind: int = tarfile.GNU_FORMAT) -> None:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5 if kind == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_groups_of_anybodys_tar(tmp_path: Path, kind: int) -> None:
    members = [
        ("__header__", b"of the archive"),
        ("./a/1.JPG", b"one"),
        ("./a/1.seg.png", b""),
        ("README", b"no suffix"),
        (f"{'d' * 90}/{'n' * 90}.jpg", b"long"),
        ("b.v2/2.cls", b"7"),
        (".hidden", b"nothing before the dot"),
        ("__meta__/x.json", b"of the archive"),
    ]
    foreign_tar(tmp_path / "a.tar", members, kind)
    assert list(tar_groups(tmp_path / "a.tar")) == [
        ("./a/1", [(".JPG", b"one"), (".seg.png", b"")]),
        (f"{'d' * 90}/{'n' * 90}", [(".jpg", b"long")]),
        ("b.v2/2", [(".cls", b"7")]),
    ]


NAMES = st.lists(st.sampled_from(["a", "B", ".", "/", "_", "__", "\n", "é"]), min_size=1).map(
    "".join
)


def grouped_by_webdataset(path: Path) -> list[tuple[str, Members]]:
    from webdataset import tariterators

    with open(path, "rb") as file:
        members = tariterators.tar_file_expander([{"url": "", "stream": file}])
        return [
            (sample["__key__"], [(k, v) for k, v in sample.items() if isinstance(v, bytes)])
            for sample in tariterators.group_by_keys(members)
        ]


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=5))
def test_members_are_grouped_as_webdataset_groups_them(names: list[str]) -> None:
    names = [name for name in names if not name.startswith("/") and ".." not in name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        foreign_tar(path, [(name, name.encode()) for name in names])
        try:
            groups = list(tar_groups(path))
        except DataError:
            # It hands these out in pieces, or refuses them too.
            with contextlib.suppress(ValueError):
                prefixes = [prefix for prefix, _ in grouped_by_webdataset(path)]
                assert len(set(prefixes)) < len(prefixes)
            return
        found = [(prefix, [(s[1:].lower(), d) for s, d in group]) for prefix, group in groups]
        assert found == grouped_by_webdataset(path)


def refuse_groups(path: Path, words: str) -> None:
    with pytest.raises(DataError, match=rf"{path.name}: .*{words}") as caught:
        list(tar_groups(path))
    assert "\n" not in str(caught.value)


def test_a_sample_in_two_places_is_refused(tmp_path: Path) -> None:
    foreign_tar(tmp_path / "a.tar", [("a.jpg", b""), ("b.jpg", b""), ("a.cls", b"")])
    refuse_groups(tmp_path / "a.tar", "sample 'a' are not all in one place")


def test_a_suffix_that_comes_twice_is_refused(tmp_path: Path) -> None:
    foreign_tar(tmp_path / "a.tar", [("a.jpg", b""), ("a.JPG", b"")])
    refuse_groups(tmp_path / "a.tar", r"member 'a\.JPG' appears twice")


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "a/../../b.jpg"])
def test_unsafe_paths_are_refused(tmp_path: Path, name: str) -> None:
    foreign_tar(tmp_path / "a.tar", [(name, b"")])
    refuse_groups(tmp_path / "a.tar", "has an unsafe path")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    refuse_groups(tmp_path / "a.tar", "")


def test_folders_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.d")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    assert list(tar_groups(tmp_path / "a.tar")) == []


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_that_is_cut_short_is_refused(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "a.tar"
    foreign_tar(path, [("a.jpg", b"x" * 700), ("b.jpg", b"y" * 600), ("é" * 40, b"")], kind)
    data = path.read_bytes()
    whole = len(data.rstrip(b"\0"))
    whole += -whole % 512
    for size in range(0, whole + 1, 256):
        path.write_bytes(data[:size])
        refuse_groups(path, "")
    path.write_bytes(data[: whole + 512])
    assert len(list(tar_groups(path))) == 2


def test_a_damaged_header_between_two_members_is_refused(tmp_path: Path) -> None:
    """The library takes it for the end, and says nothing."""
    foreign_tar(tmp_path / "a.tar", [("a.jpg", b"x"), ("b.jpg", b"y")])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(flipped(data, data.index(b"b.jpg")))
    refuse_groups(tmp_path / "a.tar", "is damaged or cut short at byte 1024")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2"])
def test_compressed_tars_and_other_files_are_refused(tmp_path: Path, mode: Any) -> None:
    with tarfile.open(tmp_path / "a.tar", mode) as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    refuse_groups(tmp_path / "a.tar", "is no plain tar")
    for content in (b"", b"hello " * 500, bytes(700)):
        (tmp_path / "a.tar").write_bytes(content)
        if any(content) or not content:
            refuse_groups(tmp_path / "a.tar", "is no plain tar")
