"""A source that grew, of which samples cannot be used, or whose labels are of views."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import softlabel
from softlabel.pipeline.sources.opening import open_source
from softlabel.schemas.labelset import Segment
from tests.unit.encoded import pngs

if TYPE_CHECKING:
    from tests.conftest import Command, Project

CLASSES = ("ant", "bee", "cow")
INFER = ("infer", "--source=data", "--batch-size=4", "--shard-rows=16", "--codec=dense-f32")
SKIP = "--on-bad-sample=skip"
NAMES = ("labels", "afresh")
VIEWS = ("--views=3", '--augment=["horizontal_flip"]', "--seed=5")


@pytest.fixture
def growing(empty_project: Project) -> Project:
    """Three files of 20 pictures in `all`, two of them in `data`; the last two have bad ones."""
    shape = (8, 8, 3)
    source = open_source(empty_project.source("stored", (20, 20, 20), CLASSES, shape))
    Path("all").mkdir()
    Path("data").mkdir()
    for number, file in enumerate(source.files):
        block = source.read([Segment(source=file.name, first=0, rows=20)])
        encoded: list[bytes] = pngs(block)
        if number:
            encoded[3 * number] = encoded[17] = b"no picture"
        pictures = pa.array([{"bytes": data, "path": None} for data in encoded])
        table = pa.table({"image": pictures, "label": block.labels, "key": block.keys})
        pq.write_table(table, f"all/{file.name}")
    for name in ("part-00000.parquet", "part-00001.parquet"):
        shutil.copy(f"all/{name}", "data")
    empty_project.teacher(classes=CLASSES, shape=shape)
    return empty_project


def grow(name: str = "part-00002.parquet") -> None:
    shutil.copy(f"all/{name}", "data")


def done(command: Command, *words: str) -> dict[str, Any]:
    outcome = command(*INFER, *words, "--json")
    assert outcome.code == 0, outcome.stderr
    report: dict[str, Any] = json.loads(outcome.stdout)
    return report


def rows_by_key(folder: str) -> dict[tuple[str, int], bytes]:
    labels = softlabel.open(folder, check="full")
    rows: dict[tuple[str, int], bytes] = {}
    for block in labels.batches(100):
        views = [0] * len(block) if block.views is None else block.views.tolist()
        for key, view, row in zip(block.keys.to_pylist(), views, block.logits(), strict=True):
            rows[key, view] = row.tobytes()
    return rows


@pytest.mark.parametrize("views", [(), VIEWS], ids=["plain", "views"])
def test_what_was_left_out_stays_so_and_the_new_is_looked_through(
    growing: Project, command: Command, views: tuple[str, ...]
) -> None:
    done(command, SKIP, *views)
    grow()
    extended = done(command, SKIP, "--extend", *views)
    each = 3 if views else 1
    assert (extended["rows"], extended["rows_written"]) == (56 * each, 18 * each)
    assert extended["rejects"] == 4
    afresh = done(command, SKIP, "--output=afresh", *views)
    assert rows_by_key("labels") == rows_by_key("afresh")
    lists = [sorted(Path(name, "rejects.jsonl").read_text().splitlines()) for name in NAMES]
    assert lists[0] == lists[1]
    assert extended["identity_sha256"] == afresh["identity_sha256"]
    checked = command("verify", "--source=data", "--teacher=models/teacher.onnx")
    assert checked.code == 0, checked.stdout
    assert "replay" in checked.stdout
    assert done(command, SKIP, "--extend", *views)["rows_written"] == 0


def test_stopping_at_bad_samples_keeps_no_set_that_left_some_out(
    growing: Project, command: Command
) -> None:
    done(command, SKIP)
    before = growing.files()
    grow()
    for flags in ((), ("--dry-run",)):
        refused = command(*INFER, "--extend", *flags)
        assert refused.code == 3
        assert "2 samples were left out of finished shards already" in refused.stderr
        assert growing.files() == before


def test_stopping_at_bad_samples_of_what_is_new(growing: Project, command: Command) -> None:
    Path("data/part-00001.parquet").unlink()
    done(command)
    before = rows_by_key("labels")
    grow()
    stopped = command(*INFER, "--extend")
    assert stopped.code == 3
    assert "part-00002.parquet: key 'sample-000046': " in stopped.stderr
    extended = done(command, "--extend", SKIP)
    assert (extended["rejects"], extended["rows_written"]) == (2, 18)
    assert {name: rows_by_key("labels")[name] for name in before} == before


def test_other_views_are_no_growth(growing: Project, command: Command) -> None:
    done(command, SKIP, *VIEWS)
    grow()
    other = command(*INFER, SKIP, "--extend", *VIEWS[:2], "--seed=6")
    assert other.code == 3
    assert "different: source, seed" in other.stderr
