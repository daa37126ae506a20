"""infer --batch-size auto: found by trying, settled in plan.json, taken from there afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from softlabel.pipeline.inference import batch_size
from softlabel.schemas.labelset import ExecutionRecord, Plan

if TYPE_CHECKING:
    from tests.conftest import Command, Project

INFER = ("infer", "--shard-rows=160")


def test_an_automatic_batch_size_is_settled_once(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter([64, 32])
    monkeypatch.setattr(batch_size, "fastest_batch_size", lambda *_: next(sizes))
    auto = (*INFER, "--batch-size=auto")
    assert command(*auto).code == 0
    assert execution().batch_size == 64
    once = project.files()
    Path("labels/part-00001.json").unlink()
    assert command(*auto).code == 0
    assert project.files() == once
    shutil.rmtree("labels")
    assert command(*INFER, "--batch-size=64").code == 0
    assert project.files() == once
    assert command(*auto, "--overwrite").code == 0
    assert execution().batch_size == 32


def test_an_automatic_batch_size_is_measured(project: Project, command: Command) -> None:
    outcome = command("infer", "--batch-size=auto")
    assert outcome.code == 0, outcome.stderr
    size = execution().batch_size
    assert size in [2**power for power in range(9)]
    assert f"batch size {size}: " in outcome.stderr
    project.teacher(fixed_batch=48)
    assert command("infer", "--batch-size=auto", "--output=fixed").code == 0
    assert execution("fixed").batch_size == 48


def execution(folder: str = "labels") -> ExecutionRecord:
    plan = Plan.model_validate_json(Path(folder, "plan.json").read_bytes())
    assert plan.execution is not None
    return plan.execution
