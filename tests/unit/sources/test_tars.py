"""WebDataset tars as sources: keys, pictures and labels by row, and what is refused."""

from __future__ import annotations

import gc
import gzip
import io
import json
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.shards.tar_members import END, member_bytes
from softlabel.pipeline.sources import tars
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.sources.tars import open_tars
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import SampleBlock

Members = Sequence[tuple[str, bytes]]


def picture(number: int, height: int = 4, width: int = 6) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (number, number, number)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, members: Members, kind: int = tarfile.GNU_FORMAT, **fields: Any) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))
    return path


def numbered(*numbers: int, label: bool = True) -> list[tuple[str, bytes]]:
    """A picture of this grey for each number, labelled with it."""
    members = []
    for number in numbers:
        members.append((f"s/n{number}.png", picture(number)))
        if label:
            members.append((f"s/n{number}.cls", str(number).encode()))
    return members


def opened(*files: Path) -> Source:
    return open_tars(files[0].parent, files)


def whole(source: Source) -> SampleBlock:
    return source.read(
        [Segment(source=f.name, first=0, rows=f.rows) for f in source.files if f.rows]
    )


def greys(block: SampleBlock) -> list[int]:
    return block.inputs[:, 0, 0, 0].tolist()  # type: ignore[no-any-return]


def test_each_tar_is_a_shard(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "1.tar", numbered(5, 3, 4)),
        write(tmp_path / "0.tar", []),
        write(tmp_path / "2.tar", numbered(9, label=False)),
    ]
    source = opened(*files)
    assert [(f.name, f.rows) for f in source.files] == [("1.tar", 3), ("0.tar", 0), ("2.tar", 1)]
    assert [f.bytes for f in source.files] == [file.stat().st_size for file in files]
    assert (source.classes, source.shape) == ((), (4, 6, 3))
    block = whole(source)
    assert block.keys.to_pylist() == ["s/n5", "s/n3", "s/n4", "s/n9"]
    assert greys(block) == [5, 3, 4, 9]
    assert block.labels.to_pylist() == [5, 3, 4, None]
    assert source.digest("1.tar").sha256 == file_sha256(tmp_path / "1.tar")


@pytest.mark.parametrize(
    "kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT], ids=["gnu", "pax", "us"]
)
@pytest.mark.parametrize("mtime", [0, 1.5])
def test_every_kind_of_header_is_read(tmp_path: Path, kind: int, mtime: float) -> None:
    """With fractions of seconds, which pax keeps in a header before each, and long names."""
    long = "/".join(["folder" * 8] * 4) + "/"
    letters = "é" if kind == tarfile.PAX_FORMAT else "e"
    if kind == tarfile.USTAR_FORMAT:
        mtime = int(mtime)
    members = [(long + letters + name, data) for name, data in numbered(1, 2, 3)]
    members += [("x" + name, data) for name, data in numbered(4, 5)]
    block = whole(opened(write(tmp_path / "a.tar", members, kind, mtime=mtime)))
    assert greys(block) == [1, 2, 3, 4, 5]
    assert block.keys[0].as_py() == f"{long}{letters}s/n1"
    assert block.labels.to_pylist() == [1, 2, 3, 4, 5]


def test_it_is_what_webdataset_reads_of_what_it_wrote(tmp_path: Path) -> None:
    path = str(tmp_path / "a.tar")
    with webdataset.TarWriter(path) as writer:
        for number in range(30):
            image = Image.new("RGB", (6, 4), (number, 0, 255 - number))
            writer.write({"__key__": f"{number:04d}", "png": image, "cls": number % 7})
    block = whole(opened(tmp_path / "a.tar"))
    with warnings.catch_warnings():
        # It leaves its files to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        pipeline = webdataset.WebDataset(path, shardshuffle=False).decode("pil")
        read = list(pipeline.to_tuple("__key__", "png", "cls"))
        gc.collect()
    assert block.keys.to_pylist() == [key for key, _, _ in read]
    assert np.array_equal(block.inputs, np.stack([np.asarray(image) for _, image, _ in read]))
    assert block.labels.to_pylist() == [label for _, _, label in read]


@pytest.mark.parametrize(("first", "rows"), [(0, 600), (0, 1), (255, 2), (256, 256), (599, 1)])
def test_any_row_range_is_read(tmp_path: Path, first: int, rows: int) -> None:
    small = [picture(number, 1, 1) for number in range(200)]
    path = write(tmp_path / "a.tar", [(f"{row}.png", small[row % 200]) for row in range(600)])
    block = opened(path).read([Segment(source="a.tar", first=first, rows=rows)])
    assert block.keys.to_pylist() == [str(row) for row in range(first, first + rows)]
    assert greys(block) == [row % 200 for row in range(first, first + rows)]


def test_pieces_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = opened(write(tmp_path / "a.tar", numbered(*range(9))))._shards.values()
    monkeypatch.setattr(tars, "PIECE_PICTURES", 4)
    assert [len(piece.pictures) for piece in shard.read(0, 9)] == [4, 4, 1]
    monkeypatch.setattr(tars, "PIECE_BYTES", 2 * len(picture(0)) - 1)
    pieces = [piece.keys.to_pylist() for piece in shard.read(1, 5)]
    assert pieces == [["s/n1", "s/n2"], ["s/n3", "s/n4"], ["s/n5"]]


def test_segments_across_tars(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.tar", numbered(n, n + 1, n + 2)) for n in (10, 20)]
    wanted = [("20.tar", 1, 2), ("10.tar", 0, 1), ("20.tar", 0, 1)]
    segments = [Segment(source=n, first=f, rows=r) for n, f, r in wanted]
    source = opened(*files)
    assert greys(source.read(segments)) == [21, 22, 10, 20]
    assert source.keys(segments).to_pylist() == ["s/n21", "s/n22", "s/n10", "s/n20"]


def test_indexes_are_forgotten_where_they_grow_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def counted(path: Path) -> tars.TarIndex:
        read.append(path.name)
        return made(path)

    made = tars.read_index
    monkeypatch.setattr(tars, "read_index", counted)
    files = [write(tmp_path / f"{n}.tar", numbered(n)) for n in range(3)]
    source = opened(*files)
    assert greys(whole(source)) == greys(whole(source.reopen())) == [0, 1, 2]
    assert read == ["0.tar", "1.tar", "2.tar"]
    monkeypatch.setattr(tars, "INDEX_BYTES", 1)
    read.clear()
    source = opened(*files)
    assert greys(whole(source)) == [0, 1, 2]
    assert set(read) == {"0.tar", "1.tar", "2.tar"}
    indexes = source._shards["0.tar"]._indexes  # type: ignore[attr-defined]
    assert list(indexes._held) == [files[2]]


def test_a_second_reader_reads_by_itself(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.tar", numbered(1, 2)))
    again = source.reopen()
    source._shards["a.tar"].close()
    assert again.files == source.files
    assert greys(whole(again)) == greys(whole(source)) == [1, 2]


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ([(".cls", b"3")], 3),
        ([(".cls", b" 3\n")], 3),
        ([(".CLS", b"0")], 0),
        ([(".json", b'{"label": 2, "text": "a dog"}')], 2),
        ([(".json", b'{"label": 2}'), (".cls", b"1")], 1),
        ([(".json", b'{"label": null}')], None),
        ([(".json", b'{"label": -1}')], None),
        ([(".cls", b"-1")], None),
        ([(".json", b'{"text": "a dog"}')], None),
        ([(".json", b"[1, 2]")], None),
        ([(".txt", b"a dog"), (".seg.png", b"mask"), (".meta.json", b"{")], None),
        ([], None),
    ],
)
def test_labels(tmp_path: Path, members: Members, label: int | None) -> None:
    all_members = [("a.png", picture(1)), *(("a" + suffix, data) for suffix, data in members)]
    for order in (all_members, all_members[::-1]):
        block = whole(opened(write(tmp_path / "a.tar", order)))
        assert block.labels.to_pylist() == [label]
        assert greys(block) == [1]


@pytest.mark.parametrize(
    ("suffix", "data", "problem"),
    [
        ("cls", b"dog", "b'dog' is no integer"),
        ("cls", b"", "b'' is no integer"),
        ("cls", b"1.0", "is no integer"),
        ("cls", b"1_0", "is no integer"),
        ("cls", b"9" * 5000, "is no integer"),
        ("cls", b"2147483648", "2147483648 is beyond 32 bits"),
        ("json", b'{"label": "dog"}', "'label' is 'dog', no integer"),
        ("json", b'{"label": true}', "'label' is 'True', no integer"),
        ("json", b'{"label": 1.0}', "'label' is '1.0', no integer"),
        ("json", b'{"label": 1', "Expecting"),
        ("json", b"\xff\xfe\xff", "decode"),
        ("json", b"[" * 10**5, "recursion"),
        ("json", b" " * 2049, "more than 0 MiB"),
    ],
)
def test_what_is_no_label_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, data: bytes, problem: str
) -> None:
    if problem.startswith("more"):
        monkeypatch.setattr(tars, "MOST_LABEL_BYTES", 2048)
    members = [("a.png", picture(1)), ("b.png", picture(2)), (f"b.{suffix}", data)]
    source = opened(write(tmp_path / "a.tar", members))
    wanted = rf"a\.tar: member 'b\.{suffix}' holds no label \(.*{problem}.*\); mend it or leave"
    with pytest.raises(DataError, match=wanted):
        whole(source)


def test_labels_outside_the_classes_are_told(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "a.tar", numbered(0, 1, 2)))
    with pytest.raises(DataError, match=r"a\.tar: key 's/n2' has label 2, outside 0\.\.1"):
        whole(source.naming(("a", "b")))
    source = opened(write(tmp_path / "a.tar", [("a.png", picture(1)), ("a.cls", b"-2")]))
    with pytest.raises(DataError, match="key 'a' has label -2, outside"):
        whole(source)


def test_what_webdataset_passes_over_is_passed_over(tmp_path: Path) -> None:
    members = [("LICENSE", b"free"), ("__meta__", b"x"), ("__dir__/a.png", b"x"), *numbered(1)]
    path = write(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert whole(opened(path)).keys.to_pylist() == ["s/n1"]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("a.png", "b.png", "a.cls"), "the members of sample 'a' are not all in one place"),
        (("a.png", "b.png", "a.png"), "the members of sample 'a' are not all in one place"),
        (("a.png", "a.png"), r"member 'a\.png' appears twice"),
        (("a.png", "a.PNG"), r"member 'a\.PNG' appears twice"),
        (("a.png", "a.jpg"), r"sample 'a' has 2 pictures, 'a\.png' and 'a\.jpg'; keep one"),
        (("n1.001.png", "n1.001.cls"), r"sample 'n1' has no picture, only 'n1\.001\.png', 'n1\.0"),
        (("n1.001.png", "n1.002.png"), "sample 'n1' has no picture, only .*; a key ends at the fi"),
        (("a.cls",), r"sample 'a' has no picture, only 'a\.cls'; a key ends at the first dot"),
        ((".png",), r"member '\.png' has an empty key, its name begins with a dot"),
        (("s/.png", "s/.cls"), r"member 's/\.png' has an empty key"),
        (("s/a.png", "s/._a.png"), r"member 's/\._a\.png' has an empty key"),
        (("../a.png",), r"member '\.\./a\.png' has an unsafe path"),
        (("/a.png",), r"member '/a\.png' has an unsafe path"),
    ],
)
def test_other_keys_are_refused(tmp_path: Path, names: Sequence[str], problem: str) -> None:
    path = write(tmp_path / "a.tar", [(name, picture(1)) for name in names])
    with pytest.raises(DataError, match=r"a\.tar: " + problem):
        opened(path)


def test_links_are_refused(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo("a.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        with pytest.raises(DataError, match=r"member 'a\.png' is a link, a device or another"):
            opened(path)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    data = write(tmp_path / "a.tar", numbered(1, 2)).read_bytes()
    path = tmp_path / "cut.tar"
    # All that follows the last member's blocks is the end.
    for size in range(0, data.rindex(b"2\0") + 512, 97):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"cut\.tar: is (cut|damaged|no plain tar)"):
            opened(path)


def summed(data: bytearray) -> bytearray:
    """The tar with the right checksum in its first header."""
    check = sum(data[:148]) + 8 * 32 + sum(data[156:512])
    data[148:156] = b"%06o\0 " % check
    return data


@pytest.mark.parametrize(
    ("place", "field"),
    [
        (124, b"%012o" % len(picture(1))),
        (124, (b"%o\0" % len(picture(1))).rjust(12)),
        (124, b"\x80" + len(picture(1)).to_bytes(11, "big")),
        (8, b"\0junk"),
        (345, b"folder\0"),
        (156, b"\0"),
        (100, b"what is no number is none of ours"[:24]),
    ],
    ids=["twelve digits", "blanks", "base 256", "junk", "prefix", "old kind", "rights and owner"],
)
def test_rare_headers_are_read_as_the_library_does(
    tmp_path: Path, place: int, field: bytes
) -> None:
    path = tmp_path / "a.tar"
    data = bytearray(write(path, [("s/n1.png", picture(1)), *numbered(2)]).read_bytes())
    data[place : place + len(field)] = field
    path.write_bytes(summed(data))
    block = whole(opened(path))
    assert greys(block) == [1, 2]
    if place != 100:
        with tarfile.open(path) as tar:
            assert block.keys[0].as_py() + ".png" == tar.getnames()[0]


def test_a_member_that_claims_more_than_there_is_is_told(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / "a.tar", numbered(1, 2)).read_bytes())
    for size in (b"77777777777\0", b"00000077777\0", b"\x80" + bytes(3) + b"\x7f" * 8):
        data[124:136] = size
        (tmp_path / "a.tar").write_bytes(summed(data))
        with pytest.raises(DataError, match=r"a\.tar: is cut short in member 's/n1\.png'"):
            opened(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("mode", "packing"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")]
)
def test_compressed_tars_are_told(tmp_path: Path, mode: Any, packing: str) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, mode) as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DataError, match=rf"a\.tar: is compressed \({packing}\); unpack it to"):
        opened(path)
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(DataError, match=r"is compressed \(zstandard\)"):
        opened(path)


@pytest.mark.parametrize("data", [b"", b"no tar" * 200, gzip.compress(b"")[:1], b"\x89PNG"])
def test_what_is_no_tar_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar: is (no plain tar|damaged)"):
        opened(tmp_path / "a.tar")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"a\.tar: no such source"):
        opened(tmp_path / "a.tar")


def test_an_empty_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the source is empty"):
        opened(write(tmp_path / "a.tar", []))


def label_tar(path: Path, layout: str, members: Members) -> Path:
    header = json.dumps({"format_version": 1, "layout": layout}).encode()
    everything = [("__softlabel__", header), *members]
    path.write_bytes(b"".join(member_bytes(name, data) for name, data in everything) + END)
    return path


def test_soft_labels_alone_are_no_source(tmp_path: Path) -> None:
    members = [("a.softlabel.json", b"{}"), ("a.softlabel.logits.npy", b"x"), ("a.cls", b"1")]
    path = label_tar(tmp_path / "a.tar", "sidecar", members)
    wanted = r"a\.tar: holds soft labels without their pictures \(layout sidecar\); give the tars"
    with pytest.raises(DataError, match=wanted):
        opened(path)


def test_soft_labels_beside_the_pictures_are_passed_over(tmp_path: Path) -> None:
    members = [("a.png", picture(7)), ("a.softlabel.json", b"{}"), ("a.softlabel.u8.npz", b"x")]
    path = label_tar(tmp_path / "a.tar", "merged", [*members, ("b.png", picture(8))])
    block = whole(opened(path))
    assert block.keys.to_pylist() == ["a", "b"]
    assert greys(block) == [7, 8]


@pytest.mark.parametrize(
    ("data", "problem"), [(b"", "is empty"), (b"GIF89a", "no picture|decoded")]
)
def test_a_bad_picture_is_named(tmp_path: Path, data: bytes, problem: str) -> None:
    path = write(tmp_path / "a.tar", [("a.png", picture(1)), ("b.png", data)])
    with pytest.raises(DataError, match=rf"a\.tar: key 'b': .*({problem})"):
        whole(opened(path))


def test_a_file_that_changed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tar", numbered(1, 2, 3))
    source, other = opened(path), opened(path)
    for size in (path.stat().st_size - 1, 1024):
        path.write_bytes(path.read_bytes()[:size])
        for reader in (source, other.reopen()):
            with pytest.raises(DataError, match=r"a\.tar: the file changed since it was opened"):
                whole(reader)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.tar: cannot be read \(No such file or directory\)"):
        whole(source)
    monkeypatch.setattr(tars, "INDEX_BYTES", 1)
    source = opened(*[write(tmp_path / f"{n}.tar", numbered(n)) for n in range(2)])
    write(tmp_path / "1.tar", numbered(0, 1))
    with pytest.raises(DataError, match=r"1\.tar: the file changed since it was opened"):
        source.keys([Segment(source="1.tar", first=0, rows=1)])


def test_a_file_that_is_cut_while_it_is_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "PIECE_PICTURES", 1)
    monkeypatch.setattr(tars, "BUFFER", 512)
    path = write(tmp_path / "a.tar", numbered(1, 2, 3))
    (shard,) = opened(path)._shards.values()
    pieces = shard.read(0, 3)
    assert next(pieces).pictures == [picture(1)]
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DataError, match=r"a\.tar: the file changed since it was opened"):
        next(pieces)


def test_tars_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
    files = [
        write(tmp_path / "a/0.tar", numbered(1)),
        write(tmp_path / "b/c/0.tar", numbered(2)),
    ]
    source = open_tars(tmp_path / "*", files)
    assert [file.name for file in source.files] == ["a/0.tar", "b/c/0.tar"]
    assert greys(whole(source)) == [1, 2]
