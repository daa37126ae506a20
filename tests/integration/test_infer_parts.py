"""A part of the source for a try, and what a run would do without doing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import softlabel
from softlabel.schemas.errors import DataError
from softlabel.schemas.params import TrainParams
from softlabel.stages import train_student

if TYPE_CHECKING:
    from tests.conftest import Command, Project

INFER = ("infer", "--batch-size=16", "--source=data/train", "--teacher=models/teacher.onnx")


def ok(command: Command, *words: str) -> str:
    outcome = command(*words)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def test_a_limited_set_has_the_first_samples(project: Project, command: Command) -> None:
    ok(command, *INFER, "--output=whole")
    said = ok(command, *INFER, "--output=part", "--limit=37")
    assert "a partial set: the first 37 samples of the source" in said
    part, whole = softlabel.open("part"), softlabel.open("whole")
    assert (len(part), part.manifest.limit) == (37, 37)
    assert whole.manifest.limit is None
    assert part.identity == whole.identity
    keys = [key for block in whole.batches(1000) for key in block.keys.to_pylist()][:37]
    assert [key for block in part.batches(1000) for key in block.keys.to_pylist()] == keys
    same = part.lookup(keys), whole.lookup(keys)
    assert same[0].logits().tobytes() == same[1].logits().tobytes()
    assert "made by  softlabel infer --limit 37" in ok(command, "inspect", "--labels=part")
    verify = ("verify", "--labels=part", "--source=data/train", "--teacher=models/teacher.onnx")
    assert "replay" in ok(command, *verify)


def test_a_limit_beyond_the_source_is_the_whole(project: Project, command: Command) -> None:
    ok(command, *INFER, "--output=part", "--limit=100000")
    assert softlabel.open("part").manifest.limit is None


def test_a_limited_set_is_not_gone_on_with_as_the_whole(project: Project, command: Command) -> None:
    ok(command, *INFER, "--output=part", "--limit=37")
    outcome = command(*INFER, "--output=part")
    assert outcome.code == 3
    assert "softlabel infer --limit 37" in outcome.stderr
    assert "--if-different replace" in outcome.stderr
    ok(command, *INFER, "--output=part", "--if-different=replace")
    assert softlabel.open("part").manifest.limit is None


def test_nobody_trains_on_a_limited_set_by_mistake(project: Project, command: Command) -> None:
    ok(command, *INFER, "--output=part", "--limit=37")
    params = TrainParams(
        model="softlabel.pipeline.small_models:mlp",
        model_args={"inputs": 64, "hidden": 4},
        source=Path("data/train"),
        loss="kd",
        labels=Path("part"),
        epochs=1,
        logger="none",
        output=Path("student"),
    )
    with pytest.raises(DataError, match="label set part is partial, of the first 37 samples"):
        train_student.run(params)


def test_a_limited_set_that_is_converted_stays_limited(project: Project, command: Command) -> None:
    ok(command, *INFER, "--output=part", "--limit=37")
    ok(command, "convert", "--labels=part", "--output=lists", "--layout=lists")
    assert softlabel.open("lists").manifest.limit == 37
    ok(command, "verify", "--labels=lists", "--source=data/train")


def test_a_dry_run_says_what_a_run_would_do_and_writes_nothing(
    project: Project, command: Command
) -> None:
    before = project.files(".")
    told = json.loads(ok(command, *INFER, "--output=labels-dry", "--dry-run", "--json"))
    assert project.files(".") == before
    said = ok(command, *INFER, "--output=labels-dry", "--dry-run")
    assert "nothing was written" in said
    done = json.loads(ok(command, *INFER, "--output=labels-dry", "--json"))
    for field in ("identity_sha256", "rows", "provider", "device"):
        assert told[field] == done[field], field
    assert told["rows_to_write"] == done["rows_written"]
    assert (told["shards_to_write"], told["shards_kept"]) == (done["shards"], 0)


def test_a_dry_run_beside_a_broken_set_names_what_would_be_done(
    project: Project, command: Command
) -> None:
    ok(command, *INFER, "--output=labels-dry")
    shards = len(softlabel.open("labels-dry").manifest.shards)
    Path("labels-dry/part-00000.parquet").write_bytes(b"cut")
    left = Path("labels-dry/.part-00000.parquet.tmp")
    left.write_bytes(b"another run's")
    told = json.loads(ok(command, *INFER, "--output=labels-dry", "--dry-run", "--json"))
    assert (told["shards_to_write"], told["shards_kept"]) == (1, shards - 1)
    assert left.exists()
    ok(command, *INFER, "--output=labels-dry")
    assert not left.exists()


def test_a_dry_run_is_refused_as_the_run_would_be(project: Project, command: Command) -> None:
    ok(command, *INFER, "--output=labels-dry")
    outcome = command(*INFER, "--output=labels-dry", "--codec=dense-f32", "--dry-run")
    assert outcome.code == 3
    assert "another identity (different: codec)" in outcome.stderr
