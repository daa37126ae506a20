"""Folders of picture files: which are read, under which key and label, and what is refused."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from softlabel.pipeline.sources import image_folder
from softlabel.pipeline.sources.image_folder import open_image_folder
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import SampleBlock
from softlabel.schemas.teacher import Framing


def picture(number: int, height: int = 4, width: int = 6) -> bytes:
    file = io.BytesIO()
    values = np.full((height, width, 3), number, np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def made(root: Path, *names: str) -> Path:
    """Pictures whose grey is their place among the names; a name that ends in `/` is a folder."""
    for number, name in enumerate(names):
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
    return root


def whole(source: Source) -> SampleBlock:
    return source.read(
        [Segment(source=f.name, first=0, rows=f.rows) for f in source.files if f.rows]
    )


def greys(block: SampleBlock) -> list[int]:
    return block.inputs[:, 0, 0, 0].tolist()  # type: ignore[no-any-return]


TREE = ("dog/b.png", "dog/deep/er/a.JPG", "cat/x.PNG", "dog/B.png", "ant/", "cat/é.webp")


def test_each_class_is_a_shard(tmp_path: Path) -> None:
    source = open_image_folder(made(tmp_path / "pets", *TREE))
    assert source.classes == ("ant", "cat", "dog")
    assert [(file.name, file.rows) for file in source.files] == [("ant", 0), ("cat", 2), ("dog", 3)]
    assert source.files[1].bytes == len(picture(2)) + len(picture(5))
    assert source.rows == 5
    assert source.shape == (4, 6, 3)
    block = whole(source)
    wanted = ["cat/x.PNG", "cat/é.webp", "dog/B.png", "dog/b.png", "dog/deep/er/a.JPG"]
    assert block.keys.to_pylist() == wanted
    assert block.labels.to_pylist() == [1, 1, 2, 2, 2]
    assert greys(block) == [2, 5, 3, 0, 1]


def test_it_is_torchvisions_image_folder(tmp_path: Path) -> None:
    root = made(tmp_path / "pets", *(name for name in TREE if name != "ant/"))
    theirs, ours = ImageFolder(str(root)), open_image_folder(root)
    assert tuple(theirs.classes) == ours.classes
    block = whole(ours)
    labels = dict(zip(block.keys.to_pylist(), block.labels.to_pylist(), strict=True))
    assert {os.path.relpath(path, root): label for path, label in theirs.samples} == labels


@pytest.mark.parametrize("suffix", "jpg jpeg png webp bmp gif tif tiff ppm".split())
def test_every_kind_is_found_and_decoded(tmp_path: Path, suffix: str) -> None:
    made(tmp_path, "a/")
    image = Image.new("RGB", (6, 4), (50, 60, 70))
    image.save(tmp_path / f"a/one.{suffix}")
    (tmp_path / f"a/two.{suffix.upper()}").write_bytes((tmp_path / f"a/one.{suffix}").read_bytes())
    block = whole(open_image_folder(tmp_path))
    assert block.inputs.shape == (2, 4, 6, 3)
    assert np.abs(block.inputs.astype(int) - [50, 60, 70]).max() < 8


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    others = (".hidden/a.png", "cat/.a.png", "cat/.thumbs/a.png", ".a.png")
    made(tmp_path, "cat/a.png", *others)
    for name in ("cat/notes.txt", "cat/png", "cat/a.png.json", "README.md"):
        (tmp_path / name).write_text("no picture")
    source = open_image_folder(tmp_path)
    assert source.classes == ("cat",)
    assert whole(source).keys.to_pylist() == ["cat/a.png"]


def test_pictures_without_class_folders_are_one_shard(tmp_path: Path) -> None:
    source = open_image_folder(made(tmp_path / "flat", "b.png", "a.png", ".git/a.png"))
    assert [(file.name, file.rows) for file in source.files] == [("flat", 2)]
    assert source.classes == ()
    block = whole(source)
    assert block.keys.to_pylist() == ["a.png", "b.png"]
    assert block.labels.to_pylist() == [None, None]


def test_the_name_of_the_folder_that_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made(tmp_path / "flat", "b.png"))
    assert open_image_folder(Path(".")).files[0].name == "flat"


@pytest.mark.parametrize(("first", "rows"), [(0, 700), (0, 1), (255, 2), (256, 256), (699, 1)])
def test_any_row_range_is_read(tmp_path: Path, first: int, rows: int) -> None:
    folder = made(tmp_path, "a/") / "a"
    small = [picture(number, 1, 1) for number in range(256)]
    for number in range(700):
        (folder / f"{number:03d}.png").write_bytes(small[number % 256])
    block = open_image_folder(tmp_path).read([Segment(source="a", first=first, rows=rows)])
    assert greys(block) == [number % 256 for number in range(first, first + rows)]
    assert block.keys.to_pylist() == [f"a/{row:03d}.png" for row in range(first, first + rows)]


def test_pieces_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_image_folder(made(tmp_path, *(f"a/{row}.png" for row in range(9))))
    (shard,) = source._shards.values()
    monkeypatch.setattr(image_folder, "PIECE_PICTURES", 4)
    assert [len(piece.pictures) for piece in shard.read(0, 9)] == [4, 4, 1]
    monkeypatch.setattr(image_folder, "PIECE_BYTES", 2 * len(picture(0)) - 1)
    assert [len(piece.keys) for piece in shard.read(0, 5)] == [2, 2, 1]


def test_segments_across_classes(tmp_path: Path) -> None:
    source = open_image_folder(made(tmp_path, "a/0.png", "a/1.png", "b/2.png", "b/3.png"))
    segments = [Segment(source="b", first=0, rows=2), Segment(source="a", first=1, rows=1)]
    assert greys(source.read(segments)) == [2, 3, 1]
    assert source.keys(segments).to_pylist() == ["b/2.png", "b/3.png", "a/1.png"]


def test_pictures_are_framed(tmp_path: Path) -> None:
    made(tmp_path, "a/0.png")
    (tmp_path / "a/1.png").write_bytes(picture(1, 9, 5))
    framing = Framing(height=3, width=3, channels=1, resize=3, interpolation="bilinear")
    source = open_image_folder(tmp_path).framed(framing, "the model")
    assert source.shape == (3, 3, 1)
    assert greys(whole(source)) == [0, 1]
    with pytest.raises(DataError, match=r"a: key 'a/1\.png': the picture is 9x5, 4x6 is wanted"):
        whole(open_image_folder(tmp_path))


def test_keys_are_told_without_reading(tmp_path: Path) -> None:
    source = open_image_folder(made(tmp_path, "a/0.png", "a/1.png"))
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    whole_shard = [Segment(source="a", first=0, rows=2)]
    assert source.keys(whole_shard).to_pylist() == ["a/0.png", "a/1.png"]
    wanted = r"a/0\.png: cannot be read \(No such file or directory\); mend or remove it"
    with pytest.raises(DataError, match=wanted):
        source.read(whole_shard)
    with pytest.raises(DataError, match=wanted):
        source.digest("a")


def test_the_digest_is_of_paths_and_bytes_as_they_are(tmp_path: Path) -> None:
    def digest() -> str:
        return open_image_folder(tmp_path).digest("a").sha256

    made(tmp_path, "a/0.png", "a/1.png")
    sums = [hashlib.sha256(picture(number)).hexdigest() for number in range(2)]
    lines = f"a/0.png\0{sums[0]}\na/1.png\0{sums[1]}\n"
    before = digest()
    assert before == hashlib.sha256(lines.encode()).hexdigest()
    (tmp_path / "a/1.png").write_bytes(picture(2))
    changed = digest()
    (tmp_path / "a/1.png").rename(tmp_path / "a/2.png")
    assert len({before, changed, digest()}) == 3


def test_a_second_reader_reads_by_itself(tmp_path: Path) -> None:
    source = open_image_folder(made(tmp_path, *TREE))
    again = source.reopen()
    assert (again.files, again.classes, again.shape) == (source.files, source.classes, source.shape)
    assert np.array_equal(whole(again).inputs, whole(source).inputs)


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    made(tmp_path / "pets", "a/0.png", "b/1.png")
    (tmp_path / "pets/a/link.png").symlink_to("../b/1.png")
    (tmp_path / "other").symlink_to("pets")
    for root in ("pets", "other"):
        block = whole(open_image_folder(tmp_path / root))
        assert block.keys.to_pylist() == ["a/0.png", "a/link.png", "b/1.png"]
        assert greys(block) == [0, 1, 1]


def test_other_links_are_refused(tmp_path: Path) -> None:
    made(tmp_path, "pets/a/0.png", "pets2/1.png")
    link = tmp_path / "pets/a/link.png"
    for target, problem in (
        ("../../pets2/1.png", "is a link that leads out of the source; put the file itself here"),
        (str(tmp_path / "pets2/1.png"), "is a link that leads out of the source"),
        ("/dev/zero", "is a link that leads out of the source"),
        ("nowhere.png", "is no file, or a link that leads nowhere; remove it"),
        ("../../pets2", "is a link to a folder and not followed; put the folder itself here"),
        ("..", "is a link to a folder and not followed"),
    ):
        link.symlink_to(target)
        with pytest.raises(DataError, match=r"a/link\.png: " + problem):
            open_image_folder(tmp_path / "pets")
        link.unlink()
    (tmp_path / "pets/b").symlink_to("a")
    with pytest.raises(DataError, match="pets/b: is a link to a folder and not followed"):
        open_image_folder(tmp_path / "pets")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(made(tmp_path, "a/0.png") / "a/1.png")
    with pytest.raises(DataError, match=r"a/1\.png: is no file"):
        open_image_folder(tmp_path)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    made(tmp_path, "a/0.png")
    (tmp_path / os.fsdecode(b"a/\xff.png")).write_bytes(picture(1))
    with pytest.raises(DataError, match=r"a: the name '\\udcff\.png' in it is no UTF-8; rename it"):
        open_image_folder(tmp_path)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ((), "the source is empty: no pictures and no class folders in it"),
        (("a/", "b/"), "the source is empty"),
        (("a/0.png", "loose.png"), r"has class folders and the picture 'loose\.png' beside them"),
    ],
)
def test_what_is_no_such_folder_is_refused(
    tmp_path: Path, names: tuple[str, ...], problem: str
) -> None:
    made(tmp_path / "pets", "x/")
    (tmp_path / "pets/x").rmdir()
    with pytest.raises(DataError, match=problem):
        open_image_folder(made(tmp_path / "pets", *names))


def test_a_path_that_is_no_folder_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", made(tmp_path, "0.png") / "0.png"):
        with pytest.raises(ParameterError, match="no such source"):
            open_image_folder(path)


@pytest.mark.parametrize(
    ("data", "problem"), [(b"", "is empty"), (b"GIF89a", "no picture|decoded")]
)
def test_a_bad_picture_is_named(tmp_path: Path, data: bytes, problem: str) -> None:
    made(tmp_path, "a/0.png", "a/1.png")
    (tmp_path / "a/1.png").write_bytes(data)
    with pytest.raises(DataError, match=rf"a: key 'a/1\.png': .*({problem})"):
        whole(open_image_folder(tmp_path))
