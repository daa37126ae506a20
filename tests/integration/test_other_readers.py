"""Other people's tools on the shards that infer wrote: they see what a LabelSet says."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

import softlabel
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.schemas.params import InferParams
from softlabel.stages import infer

if TYPE_CHECKING:
    from tests.conftest import Project

Values = npt.NDArray[Any]
CODECS = ("dense-f16", "dense-u8", "topk")


@pytest.fixture(scope="module")
def made(make_project: Callable[[], Project]) -> Path:
    """Four shards of labels in each layout, of three codecs; and a set without hard labels."""
    project = make_project()
    project.source(shards=(90, 50))
    project.source("data/unlabelled", shards=(20,), labelled=False)
    project.teacher()
    for codec in CODECS:
        for layout in ("lists", "packed", "sidecar"):
            label(project, f"{layout}-{codec}", codec, layout, "data/train")
    label(project, "unlabelled", "dense-f16", "lists", "data/unlabelled")
    return project.root


def label(project: Project, name: str, codec: str, layout: str, source: str) -> None:
    params = {
        "teacher": project.root / "models/teacher.onnx",
        "source": project.root / source,
        "output": project.root / name,
        "codec": codec,
        "layout": layout,
        "k": 3,
        "batch_size": 8,
        "shard_rows": 48,
    }
    infer.run(InferParams.model_validate(params))


def ours(folder: Path) -> dict[str, Values]:
    """What a LabelSet says, by column."""
    labels = softlabel.open(folder)
    (block,) = labels.batches(len(labels))
    return {
        "key": np.asarray(block.keys.to_pylist(), object),
        "label": hard_labels(block),
        "top1": block.top1,
        "shift": block.shift,
        **block.payload,
    }


def hard_labels(block: LabelBlock) -> Values:
    return np.asarray(block.labels.to_pylist(), np.float64)


def agree(theirs: dict[str, Values], folder: Path) -> None:
    """Every column, to the value; unknown labels are NaN on both sides."""
    wanted = ours(folder)
    assert theirs.keys() == wanted.keys()
    for name, values in wanted.items():
        found = theirs[name]
        if name == "key":
            assert found.tolist() == values.tolist()
        elif name == "label":
            np.testing.assert_array_equal(found.astype(np.float64), values)
        else:
            assert found.shape == values.shape
            assert found.astype(values.dtype).tobytes() == values.tobytes()


def pandas_columns(folder: Path) -> dict[str, Values]:
    import pandas

    frame = pandas.concat(map(pandas.read_parquet, sorted(folder.glob("*.parquet"))))
    return {name: stacked(frame[name].tolist()) for name in frame}


def polars_columns(folder: Path) -> dict[str, Values]:
    import polars

    frame = polars.read_parquet(str(folder / "*.parquet"))
    return {name: stacked(frame[name].to_list()) for name in frame.columns}


def duckdb_columns(folder: Path) -> dict[str, Values]:
    import duckdb

    with duckdb.connect() as connection:
        table = connection.sql(f"select * from read_parquet('{folder}/*.parquet')")
        rows = table.fetchall()
        return {
            name: stacked([row[index] for row in rows]) for index, name in enumerate(table.columns)
        }


def stacked(values: list[Any]) -> Values:
    if isinstance(values[0], str | bytes):
        return np.asarray(values, object)
    return np.asarray([np.nan if value is None else value for value in values])


READERS = (pandas_columns, polars_columns, duckdb_columns)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("reader", READERS)
def test_lists_are_lists_everywhere(
    made: Path, reader: Callable[[Path], dict[str, Values]], codec: str
) -> None:
    folder = made / f"lists-{codec}"
    assert len(list(folder.glob("*.parquet"))) == 4
    agree(reader(folder), folder)


@pytest.mark.parametrize("reader", READERS)
def test_unknown_labels_are_null_everywhere(
    made: Path, reader: Callable[[Path], dict[str, Values]]
) -> None:
    found = reader(made / "unlabelled")
    assert np.isnan(found["label"].astype(np.float64)).all()
    agree(found, made / "unlabelled")


@pytest.mark.parametrize("codec", CODECS)
def test_hugging_face_datasets(
    made: Path, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    folder = made / f"lists-{codec}"
    found = datasets.load_dataset(
        "parquet",
        data_files=sorted(map(str, folder.glob("*.parquet"))),
        cache_dir=str(tmp_path),
        split="train",
    )
    agree({name: stacked(found[name][:]) for name in found.column_names}, folder)


def test_sql_asks_what_the_teacher_said(made: Path) -> None:
    import duckdb

    labels = softlabel.open(made / "lists-dense-f16")
    (block,) = labels.batches(len(labels))
    with duckdb.connect() as connection:
        query = f"""
            select key, list_position(logits::float[], 0::float) - 1 as best, exp(-lse[3]) as most
            from read_parquet('{made}/lists-dense-f16/*.parquet') where label = top1 order by key
        """
        rows = connection.sql(query).fetchall()
    right = np.flatnonzero(hard_labels(block) == block.top1)
    keys = block.keys.to_pylist()
    assert [row[0] for row in rows] == sorted(keys[row] for row in right)
    most = dict(zip(keys, block.probs(labels.temperatures[2]).max(axis=1).tolist(), strict=True))
    for key, best, largest in rows:
        assert best == block.top1[keys.index(key)]
        assert largest == pytest.approx(most[key], rel=1e-3)


@pytest.mark.parametrize("codec", CODECS)
def test_webdataset_reads_a_sidecar_set(made: Path, codec: str) -> None:
    import webdataset

    folder = made / f"sidecar-{codec}"
    with warnings.catch_warnings():
        # It leaves its files to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        tars = sorted(map(str, folder.glob("*.tar")))
        samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
        gc.collect()
    member = {"dense-f16": "logits.npy", "dense-u8": "u8.npz", "topk": "topk.npz"}[codec]
    rows = []
    for sample in samples:
        arrays = sample[f"softlabel.{member}"]
        fields = sample["softlabel.json"]
        assert sample["__key__"] == fields["key"]
        assert sample["cls"] == fields["label"]
        rows.append(fields | (arrays if isinstance(arrays, dict) else {"logits": arrays}))
    agree({name: stacked([row[name] for row in rows]) for name in rows[0]}, folder)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("reader", [pandas_columns, duckdb_columns])
def test_packed_columns_are_bytes_that_their_metadata_explains(
    made: Path, reader: Callable[[Path], dict[str, Values]], codec: str
) -> None:
    folder = made / f"packed-{codec}"
    found = reader(folder)
    schema = pq.read_schema(next(folder.glob("*.parquet")))
    for field in schema:
        if field.metadata and b"dtype" in field.metadata:
            dtype = np.dtype(field.metadata[b"dtype"].decode()).newbyteorder("<")
            shape = json.loads(field.metadata[b"shape"])
            rows = [np.frombuffer(row, dtype).reshape(shape) for row in found[field.name]]
            found[field.name] = np.stack(rows)
    agree(found, folder)
