"""Parquet of encoded pictures that others wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.sources import hf_parquet, picture_columns
from softlabel.pipeline.sources.hf_parquet import ParquetTable, open_hf_parquet
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import SampleBlock
from softlabel.schemas.teacher import Framing
from tests.unit.builders import CLASSES, numbers_of_pixels, samples, write_labels
from tests.unit.encoded import pngs, same, segments, whole

LABEL = {"names": list(CLASSES), "_type": "ClassLabel"}


def described(**features: Any) -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": features}})}


def structs(pictures: Sequence[bytes | None]) -> pa.Array:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.array([{"bytes": data, "path": "a/b.png"} for data in pictures], kind)


def table_of(block: SampleBlock, **columns: Any) -> pa.Table:
    """As Hugging Face writes it; columns: others, None for one to leave out."""
    labels = block.labels.cast(pa.int64())
    parts = {"image": structs(pngs(block)), "label": labels} | columns
    table = pa.table({name: values for name, values in parts.items() if values is not None})
    features = {"image": {"_type": "Image"}, "label": LABEL}
    return table.replace_schema_metadata(described(**features))


def write(path: Path, table: pa.Table, **options: Any) -> Source:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, **options)
    return open_hf_parquet(path, [path])


def write_files(folder: Path, sizes: Sequence[int], **options: Any) -> Source:
    """Files `a-0`, `a-1` ... of consecutive samples."""
    folder.mkdir(exist_ok=True)
    files, first = [], 0
    for index, rows in enumerate(sizes):
        files.append(folder / f"a-{index}.parquet")
        pq.write_table(table_of(samples(rows, first)), files[-1], **options)
        first += rows
    return open_hf_parquet(folder, files)


def numbered(block: SampleBlock, *files: tuple[str, int]) -> SampleBlock:
    """`block` with the keys of so many rows of these files."""
    keys = [f"{stem}-{row:08d}" for stem, rows in files for row in range(rows)]
    return SampleBlock(pa.array(keys, pa.string()), block.inputs, block.labels)


def test_files_are_read_over_shards_and_row_groups(tmp_path: Path) -> None:
    source = write_files(tmp_path, (10, 3, 8), row_group_size=4)
    assert (source.rows, source.classes, source.shape) == (21, CLASSES, (2, 3, 1))
    wanted = numbered(samples(21), ("a-0", 10), ("a-1", 3), ("a-2", 8))
    assert same(whole(source), wanted)
    assert source.keys(segments(source)).equals(wanted.keys)
    assert [file.digest for file in source.files] == [None, None, None]


def test_what_datasets_writes_is_read(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    block = samples(9)
    pictures = [{"bytes": data, "path": None} for data in pngs(block)]
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES))
    )
    dataset = datasets.Dataset.from_dict(
        {"image": pictures, "label": block.labels.to_pylist()}, features=features
    )
    dataset.to_parquet(str(tmp_path / "train.parquet"))
    source = open_hf_parquet(tmp_path, [tmp_path / "train.parquet"])
    assert source.classes == CLASSES
    assert same(whole(source), numbered(block, ("train", 9)))


RANGES = [(0, 12), (0, 1), (3, 2), (3, 6), (4, 4), (11, 1)]


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(("first", "rows"), RANGES)
def test_any_row_range_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, rows: int, small: bool
) -> None:
    if small:
        monkeypatch.setattr(hf_parquet, "PIECE_BYTES", 200)
        monkeypatch.setattr(hf_parquet, "PIECE_ROWS", 2)
    source = write_files(tmp_path, (12,), row_group_size=5)
    for _ in range(2):
        block = source.read([Segment(source="a-0.parquet", first=first, rows=rows)])
        assert numbers_of_pixels(block.inputs).tolist() == list(range(first, first + rows))
        assert block.keys.to_pylist() == [f"a-0-{row:08d}" for row in range(first, first + rows)]


def test_segments_come_in_the_order_asked_for(tmp_path: Path) -> None:
    source = write_files(tmp_path, (5, 5), row_group_size=2)
    wanted = [(1, 2, 3), (0, 4, 1), (0, 0, 2), (1, 0, 1)]
    block = source.read(
        [Segment(source=f"a-{file}.parquet", first=at, rows=rows) for file, at, rows in wanted]
    )
    assert numbers_of_pixels(block.inputs).tolist() == [7, 8, 9, 4, 0, 1, 5]


def test_a_large_row_group_is_read_once_and_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_parquet, "PIECE_BYTES", 2**17)
    monkeypatch.setattr(hf_parquet, "BUFFER_BYTES", 2**17)
    pixels = np.random.default_rng(1).integers(0, 256, (400, 64, 64, 3), np.uint8)
    block = SampleBlock(pa.nulls(400, pa.string()), pixels, pa.nulls(400, pa.int32()))
    source = write(tmp_path / "a.parquet", table_of(block, label=None), write_batch_size=8)
    assert source.files[0].bytes > 4 * 2**20
    begun: list[int] = []
    read_group = ParquetTable._read_group

    def counted(self: ParquetTable, group: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        begun.append(group)
        return read_group(self, group)

    monkeypatch.setattr(ParquetTable, "_read_group", counted)
    before, most = pa.total_allocated_bytes(), 0
    for first in range(0, 400, 16):
        rows = source.read([Segment(source="a.parquet", first=first, rows=16)])
        assert np.array_equal(rows.inputs, pixels[first : first + 16])
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 4 * 2**20
    assert begun == [0]


def test_only_the_row_groups_asked_for_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, table_of(samples(40)), row_group_size=10, compression="none")
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    source = open_hf_parquet_without_looking(path)
    assert len(source.read([Segment(source="a.parquet", first=10, rows=30)])) == 30
    with pytest.raises(DataError, match=r"a\.parquet: row group 0 cannot be read: .*; fetch"):
        source.read([Segment(source="a.parquet", first=9, rows=1)])


def open_hf_parquet_without_looking(path: Path) -> Source:
    """The source without its first picture being asked for the shape."""
    columns, groups = hf_parquet._look_into(path)
    framing = Framing(height=2, width=3, channels=1)
    shard = ParquetTable(path, columns, groups, path.stat().st_size)
    return Source(path, [shard], CLASSES, None, framing)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize("name", ["image", "img", "jpg"])
def test_plain_bytes_are_pictures(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    block = samples(5)
    columns = {"image": None, "about": pa.array(["x"] * 5), name: pa.array(pngs(block), kind)}
    source = write(tmp_path / "a.parquet", table_of(block, **columns))
    assert same(whole(source), numbered(block, ("a", 5)))


def test_the_named_column_goes_before_others(tmp_path: Path) -> None:
    block = samples(3)
    columns = {"image": None, "img": structs(pngs(block)), "mask": structs([b"no"] * 3)}
    assert same(
        whole(write(tmp_path / "a.parquet", table_of(block, **columns))),
        numbered(block, ("a", 3)),
    )


def test_pictures_in_two_columns_are_told(tmp_path: Path) -> None:
    data = pngs(samples(3))
    table = table_of(samples(3), image=None, left=structs(data), right=pa.array(data))
    with pytest.raises(DataError, match=r"the pictures may be in 'left' and 'right'; rename"):
        write(tmp_path / "a.parquet", table)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"image": None}, r"has no column of encoded pictures .*; it has 'label'"),
        (
            {"image": pa.array([[1], [2], [3]], pa.list_(pa.uint8()))},
            r"column 'image' is of list<.*>; encoded pictures are binary, or a struct",
        ),
        ({"image": pa.array([{"path": "x"}] * 3)}, r"column 'image' is of struct<path: string>"),
        ({"label": pa.array(["ant"] * 3)}, r"column 'label' is of string; labels are integers"),
        ({"label": pa.array([0.0] * 3)}, r"column 'label' is of double; labels are integers"),
        ({"label": pa.array([[0]] * 3)}, r"column 'label' is of list<.*>; labels are integers"),
    ],
)
def test_columns_of_other_kinds_are_told(
    tmp_path: Path, columns: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.parquet: {problem}"):
        write(tmp_path / "a.parquet", table_of(samples(3), **columns))


def test_a_column_twice_is_told(tmp_path: Path) -> None:
    data = pa.array(pngs(samples(2)))
    table = pa.Table.from_arrays([data, data], ["image", "image"])
    with pytest.raises(DataError, match="has two columns 'image'; rename one"):
        write(tmp_path / "a.parquet", table)


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int64()])
def test_minus_one_and_null_are_unknown_labels(tmp_path: Path, kind: pa.DataType) -> None:
    table = table_of(samples(4), label=pa.array([3, -1, None, 0], kind))
    labels = whole(write(tmp_path / "a.parquet", table)).labels
    assert labels.type == pa.int32()
    assert labels.to_pylist() == [3, None, None, 0]


@pytest.mark.parametrize("kind", [pa.uint8(), pa.uint64()])
def test_unsigned_labels_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    table = table_of(samples(3), label=pa.array([3, None, 0], kind))
    assert whole(write(tmp_path / "a.parquet", table)).labels.to_pylist() == [3, None, 0]


@pytest.mark.parametrize("labels", [None, pa.nulls(3), pa.nulls(3, pa.int64())])
def test_without_labels_all_are_unknown(tmp_path: Path, labels: pa.Array | None) -> None:
    source = write(tmp_path / "a.parquet", table_of(samples(3), label=labels))
    assert whole(source).labels.equals(pa.nulls(3, pa.int32()))
    assert source.classes == (() if labels is None else CLASSES)


@pytest.mark.parametrize("label", [-2, 4, 2**31 - 1, 2**31, -(2**40)])
def test_a_label_outside_the_classes_names_its_key(tmp_path: Path, label: int) -> None:
    source = write(tmp_path / "a.parquet", table_of(samples(3), label=pa.array([0, 1, label])))
    with pytest.raises(DataError, match=rf"a\.parquet: key 'a-00000002' has label {label}"):
        whole(source)


def test_labels_beyond_any_integer_name_their_key(tmp_path: Path) -> None:
    labels = pa.array([0, 2**64 - 1, 1], pa.uint64())
    source = write(tmp_path / "a.parquet", table_of(samples(3), label=labels))
    with pytest.raises(DataError, match=r"key 'a-00000001' has label 18446744073709551615"):
        whole(source)


def test_integers_without_a_class_list_are_labels(tmp_path: Path) -> None:
    table = table_of(samples(3)).replace_schema_metadata(None)
    source = write(tmp_path / "a.parquet", table)
    assert source.classes == ()
    assert whole(source).labels.to_pylist() == [0, 1, 2]


def fine(**others: Any) -> pa.Table:
    table = table_of(
        samples(3), label=None, fine_label=pa.array([0, 1, 2]), coarse=pa.array([0] * 3)
    )
    return table.replace_schema_metadata(described(fine_label=LABEL, **others))


def test_labels_under_other_names_are_read(tmp_path: Path) -> None:
    table = table_of(samples(3), label=None, labels=pa.array([2, 1, 0]))
    table = table.replace_schema_metadata(described(labels=LABEL))
    source = write(tmp_path / "a.parquet", table)
    assert (source.classes, whole(source).labels.to_pylist()) == (CLASSES, [2, 1, 0])
    source = write(tmp_path / "b.parquet", fine(coarse={"_type": "Value", "dtype": "int64"}))
    assert (source.classes, whole(source).labels.to_pylist()) == (CLASSES, [0, 1, 2])
    source = write(tmp_path / "c.parquet", fine().replace_schema_metadata(None))
    assert (source.classes, whole(source).labels.to_pylist()) == ((), [None] * 3)


def test_two_class_lists_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labels may be in 'fine_label' and 'coarse'; rename"):
        write(tmp_path / "a.parquet", fine(coarse=LABEL))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "3", '{"info": 3}', '{"info": {"features": []}}', "[" * 100_000, b"\xff"],
    ids=["cut", "list", "number", "no info", "features a list", "deep", "no text"],
)
def test_damaged_metadata_is_told(tmp_path: Path, text: str | bytes) -> None:
    table = table_of(samples(2)).replace_schema_metadata({"huggingface": text})
    with pytest.raises(DataError, match=r"a\.parquet: what Hugging Face's metadata says of its"):
        write(tmp_path / "a.parquet", table)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["ant", "bee", "ant"], "class name 'ant' of 'label' appears twice; rename one"),
        (["ant", 3], "metadata says of its columns is damaged"),
        ("ant", "metadata says of its columns is damaged"),
    ],
)
def test_a_wrong_class_list_is_told(tmp_path: Path, names: Any, problem: str) -> None:
    label = {"_type": "ClassLabel", "names": names}
    table = table_of(samples(2)).replace_schema_metadata(described(label=label))
    with pytest.raises(DataError, match=problem):
        write(tmp_path / "a.parquet", table)


TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", ["key", "__key__", "id"])
def test_a_column_of_strings_gives_the_keys(
    tmp_path: Path, name: str, kind: pa.DataType, statistics: bool
) -> None:
    block = samples(7)
    table = table_of(block, **{name: block.keys.cast(kind)})
    source = write(tmp_path / "a.parquet", table, row_group_size=3, write_statistics=statistics)
    assert same(whole(source), block)
    assert source.keys([Segment(source="a.parquet", first=2, rows=3)]).to_pylist() == [
        "n2", "n3", "n4"
    ]  # fmt: skip


def test_the_first_column_of_strings_without_nulls_gives_the_keys(tmp_path: Path) -> None:
    numbers, texts, some = (
        pa.array([1, 2, 3]),
        pa.array(["x", "y", "z"]),
        pa.array(["x", None, "z"]),
    )
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"id": numbers}, ["a-00000000", "a-00000001", "a-00000002"]),
        ({"key": some}, ["a-00000000", "a-00000001", "a-00000002"]),
        ({"key": some, "id": texts}, ["x", "y", "z"]),
        ({"key": numbers, "__key__": texts}, ["x", "y", "z"]),
        ({"id": pa.array(["1", "2", "3"]), "key": texts}, ["x", "y", "z"]),
    ]
    for columns, wanted in cases:
        for statistics in (True, False):
            table = table_of(samples(3), **columns)
            source = write(tmp_path / "a.parquet", table, write_statistics=statistics)
            assert whole(source).keys.to_pylist() == wanted
            assert source.keys(segments(source)).to_pylist() == wanted


def test_an_empty_key_is_told(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", table_of(samples(3), id=pa.array(["x", "", "z"])))
    for read in (whole, lambda source: source.keys(segments(source))):
        with pytest.raises(DataError, match=r"a\.parquet: row 1 has an empty key; name every row"):
            read(source)


def test_an_empty_key_is_told_by_its_row_in_the_file(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", table_of(samples(3), id=pa.array(["x", "y", ""])))
    with pytest.raises(DataError, match=r"a\.parquet: row 2 has an empty key"):
        source.read([Segment(source="a.parquet", first=1, rows=2)])


def test_keys_that_are_no_text_are_told(tmp_path: Path) -> None:
    keys = pa.Array.from_buffers(pa.string(), 2, pa.array([b"x", b"\xff"]).buffers())
    source = write(tmp_path / "a.parquet", table_of(samples(2), id=keys))
    with pytest.raises(DataError, match=r"a\.parquet: its keys are no UTF-8 text: .*write it"):
        source.keys(segments(source))


def test_a_key_twice_stops_the_run(tmp_path: Path) -> None:
    table = table_of(samples(5), id=pa.array(["v", "w", "x", "w", "z"]))
    source = write(tmp_path / "a.parquet", table)
    wanted = r"key 'w' appears twice: a\.parquet row 1 and a\.parquet row 3; make the keys unique"
    with pytest.raises(DataError, match=wanted):
        write_labels(tmp_path / "labels", source)


@pytest.mark.parametrize("missing", ["struct", "bytes", "binary"])
def test_a_row_without_picture_is_told(tmp_path: Path, missing: str) -> None:
    data = pngs(samples(4))
    if missing == "struct":
        mask = pa.array([False, False, True, False])
        whole_structs = structs(data)
        column = pa.StructArray.from_arrays(
            [whole_structs.field("bytes"), whole_structs.field("path")],
            ["bytes", "path"],
            mask=mask,
        )
    elif missing == "bytes":
        column = structs([data[0], data[1], None, data[3]])
    else:
        column = pa.array([data[0], data[1], None, data[3]])
    source = write(tmp_path / "a.parquet", table_of(samples(4), image=column))
    wanted = r"a\.parquet: key 'a-00000002': there is no picture \(paths are not opened\)"
    with pytest.raises(DataError, match=wanted):
        whole(source)
    assert len(source.read([Segment(source="a.parquet", first=0, rows=2)])) == 2


def test_a_picture_that_cannot_be_decoded_names_its_key(tmp_path: Path) -> None:
    data = pngs(samples(3))
    table = table_of(samples(3), image=structs([data[0], data[1][:-30], data[2]]))
    with pytest.raises(DataError, match=r"a\.parquet: key 'a-00000001': the picture cannot be"):
        whole(write(tmp_path / "a.parquet", table))


def test_pictures_are_framed(tmp_path: Path) -> None:
    source = write_files(tmp_path, (3,))
    wanted = Framing(height=5, width=4, channels=3, interpolation="bilinear")
    assert whole(source.framed(wanted, "the model")).inputs.shape == (3, 5, 4, 3)


def test_a_second_reader_reads_the_same_and_closed_ones_open_again(tmp_path: Path) -> None:
    source = write_files(tmp_path, (4, 2))
    other = source.reopen()
    first = source.read([Segment(source="a-0.parquet", first=1, rows=1)])
    assert same(whole(other), numbered(samples(6), ("a-0", 4), ("a-1", 2)))
    again = source.read([Segment(source="a-0.parquet", first=1, rows=1)])
    assert same(first, again)
    shard = source.reopen()._shards["a-0.parquet"]
    for _ in range(2):
        (rows,) = shard.read(0, 4)
        assert rows.keys.to_pylist()[3] == "a-0-00000003"
        shard.close()


def test_digest_is_that_of_the_file(tmp_path: Path) -> None:
    source = write_files(tmp_path, (4,))
    path = tmp_path / "a-0.parquet"
    digest = source.digest(path.name)
    assert (digest.bytes, digest.sha256) == (path.stat().st_size, file_sha256(path))


def test_a_file_without_rows_is_passed_over_and_nothing_but_such_refused(tmp_path: Path) -> None:
    source = write_files(tmp_path, (0, 3, 0))
    assert [file.rows for file in source.files] == [0, 3, 0]
    assert same(whole(source), numbered(samples(3), ("a-1", 3)))
    with pytest.raises(DataError, match="the source is empty"):
        write_files(tmp_path / "none", (0, 0))


def test_files_that_differ_are_told(tmp_path: Path) -> None:
    block = samples(2)
    others = {
        "picture": table_of(block, image=None, img=structs(pngs(block))),
        "nested": table_of(block, image=pa.array(pngs(block))),
        "label": table_of(block, label=None),
        "key": table_of(block, id=block.keys),
        "classes": table_of(block).replace_schema_metadata(None),
    }
    one = tmp_path / "one.parquet"
    pq.write_table(table_of(block), one)
    for field, table in others.items():
        two = tmp_path / "two.parquet"
        pq.write_table(table, two)
        wanted = rf"two\.parquet and one\.parquet differ in their {field} \(.* and .*\); write"
        with pytest.raises(DataError, match=wanted):
            open_hf_parquet(tmp_path, [one, two])


def test_files_that_would_give_the_same_keys_are_told(tmp_path: Path) -> None:
    files = [tmp_path / "x" / "a.parquet", tmp_path / "y" / "a.parquet"]
    for file in files:
        write(file, table_of(samples(1)))
    with pytest.raises(DataError, match=r"x/a\.parquet and .*y/a\.parquet would give their rows"):
        open_hf_parquet(tmp_path, files)


def test_a_missing_file_is_a_parameter_error(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"absent\.parquet: no such source"):
        open_hf_parquet(tmp_path, [tmp_path / "absent.parquet"])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"hello world, this is text"])
def test_what_is_no_parquet_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: is no Parquet file: .*; fetch"):
        open_hf_parquet(tmp_path, [tmp_path / "a.parquet"])


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, table_of(samples(50)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="is no Parquet file"):
        open_hf_parquet(tmp_path, [path])


def test_a_flipped_bit_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = table_of(samples(4), id=samples(4).keys)
    write(path, table, compression="none", write_page_checksum=True)
    data = path.read_bytes()
    raised: dict[str, int] = {}
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        try:
            source = open_hf_parquet(tmp_path, [path])
            whole(source)
            source.keys(segments(source))
        except DataError as error:
            assert "\n" not in str(error)
        except Exception as error:
            raised[repr(error)] = at
    assert raised == {}


def test_a_file_that_changed_is_told(tmp_path: Path) -> None:
    source = write_files(tmp_path, (9,))
    pq.write_table(table_of(samples(3)), tmp_path / "a-0.parquet")
    with pytest.raises(DataError, match=r"a-0\.parquet: row 5 is gone; the file changed"):
        source.read([Segment(source="a-0.parquet", first=5, rows=2)])


def test_real_pictures_are_read(shared_data: Path) -> None:
    folder = shared_data / "cifar10-jpeg"
    if not folder.is_dir():
        pytest.skip("needs the data set ../shared/data/cifar10-jpeg")
    source = open_hf_parquet(folder, sorted(folder.glob("train-*.parquet")))
    assert (source.rows, source.shape) == (50_000, (32, 32, 3))
    assert source.classes[6] == "frog"
    name = "train-00001-of-00004.parquet"
    block = source.read([Segment(source=name, first=2400, rows=300)])
    assert block.keys[0].as_py() == "train-00001-of-00004-00002400"
    stored = pq.read_table(folder / name, columns=["label"])["label"].to_pylist()
    assert block.labels.to_pylist() == stored[2400:2700]


def test_pieces_of_pictures_are_bounded(tmp_path: Path) -> None:
    source = write_files(tmp_path, (600,))
    pieces = [len(rows.keys) for rows in source._shards["a-0.parquet"].read(10, 590)]
    assert pieces == [picture_columns.PIECE_ROWS, picture_columns.PIECE_ROWS, 78]
