from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.sources import parquet
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.parquet import METADATA_KEY, write_source_shard
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import SampleBlock
from tests.unit.builders import CLASSES, numbers_of_keys, numbers_of_pixels, samples, write_source


def whole(source: Source) -> SampleBlock:
    return source.read([Segment(source=f.name, first=0, rows=f.rows) for f in source.files])


def same(one: SampleBlock, two: SampleBlock) -> bool:
    return (
        one.keys.equals(two.keys)
        and one.labels.equals(two.labels)
        and one.inputs.dtype == two.inputs.dtype
        and np.array_equal(one.inputs, two.inputs)
    )


def labelled(*labels: int | None) -> SampleBlock:
    block = samples(len(labels))
    return SampleBlock(block.keys, block.inputs, pa.array(labels, pa.int32()))


def write_one(folder: Path, block: SampleBlock, classes: tuple[str, ...] = CLASSES) -> Path:
    folder.mkdir(exist_ok=True)
    write_source_shard(folder / "part-00000.parquet", block, classes)
    return folder / "part-00000.parquet"


def test_what_was_written_is_read_over_shards_and_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 6 * 4)
    source = write_source(tmp_path / "data", (10, 3, 8))
    assert pq.read_metadata(tmp_path / "data/part-00000.parquet").num_row_groups == 3
    assert (source.rows, source.classes, source.shape) == (21, CLASSES, (2, 3, 1))
    assert same(whole(source), samples(21))


@pytest.mark.parametrize(("first", "rows"), [(0, 10), (0, 1), (3, 2), (3, 6), (4, 4), (9, 1)])
def test_any_row_range_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, rows: int
) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 6 * 4)
    source = write_source(tmp_path / "data", (10,))
    block = source.read([Segment(source="part-00000.parquet", first=first, rows=rows)])
    assert same(block, samples(rows, first))


def test_segments_come_in_the_order_asked_for(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (5, 5))
    wanted = [("part-00001.parquet", 2, 3), ("part-00000.parquet", 4, 1)]
    block = source.read([Segment(source=n, first=f, rows=r) for n, f, r in wanted])
    assert numbers_of_keys(block.keys) == [7, 8, 9, 4]
    assert numbers_of_pixels(block.inputs).tolist() == [7, 8, 9, 4]


def test_unknown_labels_stay_unknown(tmp_path: Path) -> None:
    write_one(tmp_path / "data", labelled(3, None, 0))
    block = whole(open_source(tmp_path / "data"))
    assert block.labels.to_pylist() == [3, None, 0]
    assert block.hard_labels().tolist() == [3, -1, 0]


def test_a_slice_of_a_block_is_written_as_its_rows(tmp_path: Path) -> None:
    write_one(tmp_path / "data", samples(10).slice(4, 3))
    assert same(whole(open_source(tmp_path / "data")), samples(3, first=4))


def test_one_file_is_a_source_too(tmp_path: Path) -> None:
    source = open_source(write_one(tmp_path / "data", samples(3)))
    assert same(whole(source), samples(3))


def test_a_second_reader_reads_the_same(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (4,))
    other = source.reopen()
    assert other is not source
    assert same(whole(other), whole(source))


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    one = write_one(tmp_path / "one", samples(9))
    two = write_one(tmp_path / "two", samples(9))
    assert one.read_bytes() == two.read_bytes()


def test_the_fingerprint_follows_the_rows(tmp_path: Path) -> None:
    block = samples(4)
    pixels = block.inputs.copy()
    pixels[3, 1, 2, 0] += 1
    others = [
        SampleBlock(block.keys, pixels, block.labels),
        SampleBlock(pa.array(["n0", "n1", "n2", "m3"]), block.inputs, block.labels),
        SampleBlock(block.keys, block.inputs, pa.array([0, 1, 2, None], pa.int32())),
    ]
    digests = set()
    for index, each in enumerate([block, *others]):
        (file,) = open_source(write_one(tmp_path / str(index), each).parent).files
        assert (file.name, file.rows) == ("part-00000.parquet", 4)
        digests.add(file.digest)
    assert len(digests) == 4


def test_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = write_one(tmp_path / "data", samples(4))
    digest = open_source(tmp_path / "data").digest(path.name)
    assert (digest.name, digest.bytes) == (path.name, path.stat().st_size)
    assert digest.sha256 == file_sha256(path)


@pytest.mark.parametrize("label", [-1, 4, 2**31 - 1])
def test_a_label_outside_the_classes_names_its_key(tmp_path: Path, label: int) -> None:
    write_one(tmp_path / "data", labelled(3, None, label, 0))
    wanted = rf"part-00000\.parquet: key 'n2' has label {label}, outside 0\.\.3; mend the labels"
    with pytest.raises(DataError, match=wanted):
        whole(open_source(tmp_path / "data"))


def test_a_missing_source_is_a_parameter_error(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"absent: no such source; write one with 'softlabel"):
        open_source(tmp_path / "absent")


def test_a_folder_without_shards_is_empty(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(DataError, match=r"the source is empty: it holds no Parquet files"):
        open_source(tmp_path)


def test_shards_without_rows_are_an_empty_source(tmp_path: Path) -> None:
    write_one(tmp_path / "data", samples(0))
    with pytest.raises(DataError, match="the source is empty; prepare it from data that has"):
        open_source(tmp_path / "data")


def test_a_shard_without_rows_among_others_is_passed_over(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (3, 0, 2))
    assert [file.rows for file in source.files] == [3, 0, 2]
    pieces = [("part-00000.parquet", 3), ("part-00002.parquet", 2)]
    block = source.read([Segment(source=name, first=0, rows=rows) for name, rows in pieces])
    assert same(block, samples(5))


def test_shards_of_different_classes_are_refused(tmp_path: Path) -> None:
    write_source(tmp_path / "data", (3,))
    other = tmp_path / "data/part-00001.parquet"
    write_source_shard(other, samples(2), (*CLASSES[:3], "eel"))
    wanted = r"part-00001\.parquet and part-00000\.parquet differ in classes; prepare them in one"
    with pytest.raises(DataError, match=wanted):
        open_source(tmp_path / "data")
    block = samples(2)
    turned = SampleBlock(block.keys, block.inputs.reshape(2, 3, 2, 1), block.labels)
    write_source_shard(other, turned, CLASSES)
    with pytest.raises(DataError, match="differ in shape"):
        open_source(tmp_path / "data")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"hello world, this is text"])
def test_what_is_no_parquet_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "part-00000.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"part-00000\.parquet: is no Parquet file"):
        open_source(tmp_path)


def test_a_cut_shard_is_refused(tmp_path: Path) -> None:
    path = write_one(tmp_path / "data", samples(50))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="is no Parquet file"):
        open_source(tmp_path / "data")


def test_rows_that_are_gone_are_named(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (5,))
    with pytest.raises(DataError, match="has 5 rows, row 6 was asked for; the file changed"):
        source.read([Segment(source="part-00000.parquet", first=3, rows=4)])


Edit = Callable[[pa.Table], pa.Table]

EDITS: dict[str, Edit] = {
    "a column gone": lambda table: table.drop_columns(["label"]),
    "pictures as lists": lambda table: table.set_column(
        2, "image", pa.array([[1] * 6] * len(table), pa.list_(pa.uint8()))
    ),
    "pictures of another size": lambda table: table.set_column(
        2, "image", pa.array([bytes(5)] * len(table), pa.binary(5))
    ),
    "a key gone": lambda table: table.set_column(
        0, "key", pa.array([None, *table["key"].to_pylist()[1:]])
    ),
    "a class twice": lambda table: table.replace_schema_metadata(
        {METADATA_KEY: table.schema.metadata[METADATA_KEY].replace(b'"bee"', b'"ant"')}
    ),
    "metadata gone": lambda table: table.replace_schema_metadata(None),
    "metadata damaged": lambda table: table.replace_schema_metadata({METADATA_KEY: b"{"}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_shard_that_other_tools_made_wrongly_is_refused(tmp_path: Path, edit: str) -> None:
    path = write_one(tmp_path / "data", samples(3))
    pq.write_table(EDITS[edit](pq.read_table(path)), path)
    with pytest.raises(DataError, match=r"part-00000\.parquet"):
        whole(open_source(tmp_path / "data"))


def test_a_shard_that_other_tools_made_rightly_is_read(tmp_path: Path) -> None:
    path = write_one(tmp_path / "data", samples(3))
    pq.write_table(pq.read_table(path), path, compression="zstd")
    assert same(whole(open_source(tmp_path / "data")), samples(3))


def flips(data: bytes, first: int, end: int, step: int = 1) -> list[bytes]:
    """`data` with one bit flipped, at every `step`-th byte from `first` to `end`."""
    return [
        data[:at] + bytes([data[at] ^ (1 << at * 3 % 8)]) + data[at + 1 :]
        for at in range(first, end, step)
    ]


def footer_of(data: bytes) -> int:
    """Where the footer begins."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def test_a_flipped_bit_in_the_pages_is_noticed_or_without_effect(tmp_path: Path) -> None:
    path = write_one(tmp_path / "data", samples(12))
    good = whole(open_source(tmp_path / "data"))
    data = path.read_bytes()
    noticed = 0
    for damaged in flips(data, 0, footer_of(data)):
        path.write_bytes(damaged)
        try:
            assert same(whole(open_source(tmp_path / "data")), good)
        except DataError:
            noticed += 1
    assert noticed > 0.9 * footer_of(data)


def test_a_flipped_bit_in_the_footer_is_no_traceback(tmp_path: Path) -> None:
    path = write_one(tmp_path / "data", samples(12))
    data = path.read_bytes()
    raised: dict[str, int] = {}
    for damaged in flips(data, footer_of(data), len(data), step=2):
        path.write_bytes(damaged)
        try:
            whole(open_source(tmp_path / "data"))
        except DataError:
            pass
        except Exception as error:
            raised[repr(error)] = raised.get(repr(error), 0) + 1
    assert raised == {}


def test_two_shards_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_source(tmp_path / folder, (3,))
    with pytest.raises(DataError, match=r"a/part-00000\.parquet and .*b/part-.* have one name"):
        open_source(tmp_path / "{a,b}" / "*.parquet")
