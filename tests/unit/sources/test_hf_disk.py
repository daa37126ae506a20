"""Folders of Hugging Face's `Dataset.save_to_disk`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.sources.hf_disk import open_hf_disk
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import SampleBlock
from softlabel.schemas.teacher import Framing
from tests.unit.builders import CLASSES, numbers_of_pixels, samples, write_labels
from tests.unit.encoded import pngs, same, segments, whole

FIRST, SECOND = "data-00000-of-00002", "data-00001-of-00002"


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def dataset(rows: int, **columns: list[Any]) -> datasets.Dataset:
    block = samples(rows)
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES))
    )
    pictures = [{"bytes": data, "path": None} for data in pngs(block)]
    parts = {"image": pictures, "label": block.labels.to_pylist()}
    made = datasets.Dataset.from_dict(parts, features=features)
    for name, values in columns.items():
        made = made.add_column(name, values)
    return made


def saved(folder: Path, rows: int = 7, shards: int = 2, **columns: list[Any]) -> Path:
    dataset(rows, **columns).save_to_disk(str(folder), num_shards=shards)
    return folder


def numbered(rows: int, *files: tuple[str, int]) -> SampleBlock:
    block = samples(rows)
    keys = [f"{stem}-{row:08d}" for stem, count in files for row in range(count)]
    return SampleBlock(pa.array(keys, pa.string()), block.inputs, block.labels)


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    source = open_hf_disk(saved(tmp_path / "data"))
    assert (source.rows, source.classes, source.shape) == (7, CLASSES, (2, 3, 1))
    wanted = numbered(7, (FIRST, 4), (SECOND, 3))
    assert same(whole(source), wanted)
    assert source.keys(segments(source)).equals(wanted.keys)


def test_many_batches_are_read_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "DEFAULT_MAX_BATCH_SIZE", 3)
    source = open_hf_disk(saved(tmp_path / "data", 20, 1))
    name = "data-00000-of-00001.arrow"
    assert len(list(pa.ipc.open_stream(tmp_path / "data" / name))) > 3
    for first, rows in [(0, 20), (5, 3), (2, 2), (17, 3), (0, 1)]:
        block = source.read([Segment(source=name, first=first, rows=rows)])
        assert numbers_of_pixels(block.inputs).tolist() == list(range(first, first + rows))


def test_a_selection_is_read_in_its_order(tmp_path: Path) -> None:
    dataset(6).select([4, 1]).save_to_disk(str(tmp_path / "data"))
    assert numbers_of_pixels(whole(open_hf_disk(tmp_path / "data")).inputs).tolist() == [4, 1]


def test_a_column_of_strings_gives_the_keys(tmp_path: Path) -> None:
    source = open_hf_disk(saved(tmp_path / "data", 5, id=["v", "w", "x", "y", "z"]))
    assert whole(source).keys.to_pylist() == ["v", "w", "x", "y", "z"]
    assert source.keys([Segment(source=f"{SECOND}.arrow", first=1, rows=1)]).to_pylist() == ["z"]


def test_keys_with_a_null_are_not_taken(tmp_path: Path) -> None:
    source = open_hf_disk(saved(tmp_path / "data", 2, 1, id=["v", None]))
    assert whole(source).keys.to_pylist()[0] == "data-00000-of-00001-00000000"


def test_a_key_twice_stops_the_run(tmp_path: Path) -> None:
    source = open_hf_disk(saved(tmp_path / "data", 4, 1, id=["v", "w", "v", "x"]))
    with pytest.raises(DataError, match=r"key 'v' appears twice: data-00000-of-00001\.arrow row 0"):
        write_labels(tmp_path / "labels", source)


def test_the_class_list_is_the_one_of_dataset_info(tmp_path: Path) -> None:
    folder = saved(tmp_path / "data")
    info = json.loads((folder / "dataset_info.json").read_text())
    info["features"]["label"]["names"] = ["a", "b", "c", "d"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert open_hf_disk(folder).classes == ("a", "b", "c", "d")
    info["features"] = None
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert open_hf_disk(folder).classes == CLASSES


def test_pictures_are_framed_and_a_second_reader_reads_the_same(tmp_path: Path) -> None:
    source = open_hf_disk(saved(tmp_path / "data"))
    wanted = Framing(height=5, width=4, channels=3, interpolation="bilinear")
    assert whole(source.framed(wanted, "the model")).inputs.shape == (7, 5, 4, 3)
    assert same(whole(source.reopen()), whole(source))


def test_digest_is_that_of_the_file(tmp_path: Path) -> None:
    folder = saved(tmp_path / "data")
    path = folder / f"{FIRST}.arrow"
    digest = open_hf_disk(folder).digest(path.name)
    assert (digest.bytes, digest.sha256) == (path.stat().st_size, file_sha256(path))


def test_a_row_without_picture_is_told(tmp_path: Path) -> None:
    folder = saved(tmp_path / "data", 3, 1)
    path = folder / "data-00000-of-00001.arrow"
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    picture = {"bytes": None, "path": "a.png"}
    pictures = pa.array([*table["image"].to_pylist()[:2], picture], table["image"].type)
    table = table.set_column(0, "image", pictures)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"key 'data-00000-of-00001-00000002': there is no picture"):
        whole(open_hf_disk(folder))


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    dataset(2).select([]).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(DataError, match="the source is empty"):
        open_hf_disk(tmp_path / "data")


def test_a_file_without_rows_is_passed_over(tmp_path: Path) -> None:
    folder = saved(tmp_path / "data")
    path = folder / f"{FIRST}.arrow"
    schema = pa.ipc.open_stream(path.read_bytes()).schema
    with pa.ipc.new_stream(path, schema):
        pass
    source = open_hf_disk(folder)
    assert [file.rows for file in source.files] == [0, 3]
    assert numbers_of_pixels(whole(source).inputs).tolist() == [4, 5, 6]


def test_a_folder_of_several_datasets_names_them(tmp_path: Path) -> None:
    splits = datasets.DatasetDict(train=dataset(2), test=dataset(2))
    splits.save_to_disk(str(tmp_path / "data"))
    wanted = "data: holds several datasets; name the folder of one of them: 'train', 'test'"
    with pytest.raises(DataError, match=wanted):
        open_hf_disk(tmp_path / "data")
    assert open_hf_disk(tmp_path / "data" / "test").rows == 2


def test_an_indices_mapping_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "data")
    change_state(folder, _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match=r"an indices mapping; call flatten_indices\(\) on the"):
        open_hf_disk(folder)


def change_state(folder: Path, **values: Any) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | values))


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([{"filename": "../x.arrow"}], r"state\.json: must list files of its own folder"),
        ([{"filename": "/etc/passwd"}], r"state\.json: must list files of its own folder"),
        ([{"filename": ".."}], r"data: lacks \.\., which state\.json lists; fetch it again"),
        ([{"filename": f"{FIRST}.arrow"}] * 2, "must list files of its own folder, each once"),
        ([{"filename": "x.arrow"}], r"data: lacks x\.arrow, which state\.json lists; fetch it"),
        ([{"file": "x.arrow"}], r"state\.json: is damaged; save the dataset to disk again"),
        ([{"filename": 3}], r"state\.json: is damaged"),
        (3, r"state\.json: is damaged"),
    ],
)
def test_a_wrong_list_of_files_is_told(tmp_path: Path, files: Any, problem: str) -> None:
    folder = saved(tmp_path / "data")
    change_state(folder, _data_files=files)
    with pytest.raises(DataError, match=problem):
        open_hf_disk(folder)


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_damaged_descriptions_are_told(tmp_path: Path, name: str, content: bytes) -> None:
    folder = saved(tmp_path / "data")
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: is damaged; save the dataset to disk again"):
        open_hf_disk(folder)


def test_features_of_another_kind_are_told(tmp_path: Path) -> None:
    folder = saved(tmp_path / "data")
    (folder / "dataset_info.json").write_text('{"features": [1]}')
    with pytest.raises(DataError, match=r"dataset_info\.json: what Hugging Face's metadata says"):
        open_hf_disk(folder)


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
def test_a_folder_of_another_kind_is_told(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "data")
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"is no dataset saved to disk: {name} cannot be read"):
        open_hf_disk(folder)


def test_a_missing_folder_is_a_parameter_error(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="absent: no such source"):
        open_hf_disk(tmp_path / "absent")


def without_end(data: bytes) -> bytes:
    return data[:-8]


def without_last_batch(data: bytes) -> bytes:
    """Cut between two batches: what is left is a stream of fewer rows."""
    source = pa.BufferReader(data)
    reader = pa.ipc.open_stream(source)
    reader.read_next_batch()
    return data[: source.tell()]


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "text": lambda data: b"hello world, this is text",
    "half": lambda data: data[: len(data) // 2],
    "a byte": lambda data: data[:-1],
    "end": without_end,
    "batch": without_last_batch,
    "more": lambda data: data + data,
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_file_is_refused(tmp_path: Path, cut: str) -> None:
    folder = saved(tmp_path / "data")
    path = folder / f"{SECOND}.arrow"
    table = pa.ipc.open_stream(path.read_bytes()).read_all()
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, 1)
    assert open_hf_disk(folder).rows == 7
    path.write_bytes(CUTS[cut](path.read_bytes()))
    wanted = rf"{SECOND}\.arrow: (is no Arrow stream: .*|the stream is cut); save the dataset"
    with pytest.raises(DataError, match=wanted):
        open_hf_disk(folder)


def test_files_that_differ_are_told(tmp_path: Path) -> None:
    folder = saved(tmp_path / "data")
    path = folder / f"{SECOND}.arrow"
    table = pa.ipc.open_stream(path.read_bytes()).read_all().drop_columns(["label"])
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(
        DataError, match=rf"{SECOND}\.arrow and {FIRST}\.arrow differ in their label"
    ):
        open_hf_disk(folder)


def test_a_file_that_changed_is_told(tmp_path: Path) -> None:
    folder = saved(tmp_path / "data")
    source = open_hf_disk(folder)
    other = saved(tmp_path / "other", 3, 1) / "data-00000-of-00001.arrow"
    other.replace(folder / f"{FIRST}.arrow")
    with pytest.raises(DataError, match=rf"{FIRST}\.arrow: has other rows now; the file changed"):
        whole(source)
