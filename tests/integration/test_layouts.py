"""Every layout that infer writes, from end to end: resume, verify, and the student it teaches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import softlabel
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Segment
from softlabel.schemas.params import InferParams, TrainParams
from softlabel.stages import infer, train_student

if TYPE_CHECKING:
    from tests.conftest import Command, Project

LAYOUTS = ("packed", "lists", "sidecar")
# 500 rows in two source shards become seven label shards of 80 rows or fewer.
SHARDS = 7
TEACHER = ("--source", "data/train", "--teacher", "models/teacher.onnx")
ENDINGS = {"packed": "parquet", "lists": "parquet", "sidecar": "tar"}


@pytest.fixture(scope="module")
def made(make_project: Callable[[], Project]) -> Project:
    """A source, a teacher, and its labels in every layout."""
    project = make_project()
    project.source()
    project.teacher()
    for layout in LAYOUTS:
        label(project, layout)
    return project


@pytest.fixture
def world(made: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = made.copy(tmp_path / "world")
    monkeypatch.chdir(project.root)
    return project


def label(project: Project, layout: str) -> None:
    """A folder of labels that is called by its layout, made or completed."""
    params = {
        "teacher": project.root / "models/teacher.onnx",
        "source": project.root / "data/train",
        "output": project.root / layout,
        "layout": layout,
        "batch_size": 8,
        "shard_rows": 80,
    }
    infer.run(InferParams.model_validate(params))


def rows(folder: str) -> LabelBlock:
    (block,) = softlabel.open(folder).batches(500)
    return block


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_every_layout_holds_the_same_labels(world: Project, layout: str) -> None:
    found, wanted = rows(layout), rows("packed")
    assert found.keys.equals(wanted.keys)
    assert found.labels.equals(wanted.labels)
    assert found.payload.keys() == wanted.payload.keys()
    for name, values in wanted.payload.items():
        assert found.payload[name].tobytes() == values.tobytes()
    assert found.shift.tobytes() == wanted.shift.tobytes()
    assert found.top1.tobytes() == wanted.top1.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_files_of_a_layout(world: Project, layout: str) -> None:
    kinds = ("json", ENDINGS[layout])
    parts = [f"part-{index:05d}.{kind}" for index in range(SHARDS) for kind in kinds]
    assert list(world.files(layout)) == sorted(["labelset.json", "plan.json", *parts])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lost", ["part-00003.json", "part-00003.SHARD"])
def test_a_lost_file_is_made_again_with_the_same_bytes(
    world: Project, layout: str, lost: str
) -> None:
    before = world.files(layout)
    (world.root / layout / lost.replace("SHARD", ENDINGS[layout])).unlink()
    label(world, layout)
    assert world.files(layout) == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_verify_passes_with_its_replay(world: Project, command: Command, layout: str) -> None:
    outcome = command("verify", "--labels", layout, *TEACHER, "--json")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert report["problems"] == []
    assert report["checks"][-2:] == ["replay", "negative control"]


def test_verify_and_repair_of_a_tar_that_was_cut_short(world: Project, command: Command) -> None:
    before = world.files("sidecar")
    shard = world.root / "sidecar/part-00002.tar"
    shard.write_bytes(before["part-00002.tar"][:9000])
    outcome = command("verify", "--labels", "sidecar", "--source", "data/train", "--json")
    assert outcome.code == 1
    kinds = {problem["kind"] for problem in json.loads(outcome.stdout)["problems"]}
    assert kinds == {"bytes", "schema", "values", "coverage"}
    assert command("verify", "--labels", "sidecar", "--repair").code == 1
    assert not shard.exists()
    label(world, "sidecar")
    assert world.files("sidecar") == before


def test_verify_finds_a_shard_of_another_layout_and_one_of_another_set(
    world: Project, command: Command
) -> None:
    tar = world.root / "sidecar/part-00002.tar"
    tar.write_bytes((world.root / "packed/part-00002.parquet").read_bytes())
    outcome = command("verify", "--labels", "sidecar")
    assert outcome.code == 1
    assert "schema: part-00002: its header or members cannot be read" in outcome.stdout
    tar.write_bytes((world.root / "sidecar/part-00006.tar").read_bytes())
    outcome = command("verify", "--labels", "sidecar")
    assert "schema: part-00002: it has 40 rows, not 80" in outcome.stdout


def test_one_flipped_bit_stops_every_way_of_reading_a_tar(world: Project) -> None:
    shard = world.root / "sidecar/part-00000.tar"
    data = bytearray(shard.read_bytes())
    # In the logits of some sample: nothing else shows it.
    data[data.index(b"NUMPY") + 200] ^= 4
    shard.write_bytes(data)
    labels = softlabel.open("sidecar")
    for read in (
        lambda: list(labels.batches(16)),
        lambda: labels.read_source(Segment(source="part-00000.parquet", first=5, rows=3)),
    ):
        with pytest.raises(DataError, match=r"part-00000\.tar: its SHA-256 is not that of its"):
            read()


def test_another_layout_is_another_set(world: Project, command: Command) -> None:
    assert command("infer", "--output", "again", "--layout", "sidecar").code == 0
    assert (world.root / "again/part-00000.tar").exists()
    outcome = command("infer", "--output", "packed", "--layout", "lists")
    assert outcome.code == 3
    assert "packed: holds these labels in layout packed" in outcome.stderr


def test_students_of_every_layout_learn_the_same(world: Project) -> None:
    curves = [curve(world, layout) for layout in LAYOUTS]
    assert len(set(curves[0])) > 1
    assert curves[1:] == curves[:1] * 2


def curve(world: Project, layout: str) -> list[float]:
    report = train_student.run(
        TrainParams(
            model="softlabel.pipeline.small_models:mlp",
            model_args={"inputs": 64, "hidden": 8},
            source=world.root / "data/train",
            loss="kd",
            labels=world.root / layout,
            epochs=3,
            shuffle_rows=150,
            device="cpu",
            logger="none",
            output=world.root / "students" / layout,
        )
    )
    return [epoch.loss for epoch in report.history]
