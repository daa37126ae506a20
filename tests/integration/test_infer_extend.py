"""A source that grew: what was labelled stays, and the teacher sees only what is new."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import softlabel
from softlabel.pipeline.inference import extension
from softlabel.stages import infer as stage

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome, Project

INFER = ("infer", "--batch-size=16", "--shard-rows=100", "--source=data/train", "--output=labels")
EXTEND = (*INFER, "--extend", "--json")


@pytest.fixture
def labelled(empty_project: Project, command: Command) -> Project:
    """Labels of two shards; the third, which comes later, has a name between theirs."""
    empty_project.teacher()
    empty_project.source("whole", shards=(120, 90, 150))
    Path("data/train").mkdir(parents=True)
    for name in ("part-00000.parquet", "part-00002.parquet"):
        shutil.copy(f"whole/{name}", "data/train")
    assert command(*INFER).code == 0
    return empty_project


def grow() -> None:
    shutil.copy("whole/part-00001.parquet", "data/train")


def done(outcome: Outcome) -> dict[str, Any]:
    assert outcome.code == 0, outcome.stderr
    report: dict[str, Any] = json.loads(outcome.stdout)
    return report


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 3, outcome.stderr
    assert [word for word in words if word not in outcome.stderr] == [], outcome.stderr


def rows_by_key(folder: str) -> dict[str, bytes]:
    labels = softlabel.open(folder, check="full")
    return {
        key: row.tobytes() + shift.tobytes()
        for block in labels.batches(100)
        for key, row, shift in zip(block.keys.to_pylist(), block.logits(), block.shift, strict=True)
    }


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--codec=topk", "--k=3", "--tail=prior"),
        ("--layout=sidecar",),
    ],
    ids=["packed", "prior", "tars"],
)
def test_only_what_is_new_is_labelled(
    labelled: Project, command: Command, flags: tuple[str, ...]
) -> None:
    made = command(*INFER, *flags, "--if-different=replace")
    assert made.code == 0, made.stderr
    before = softlabel.open("labels")
    old = rows_by_key("labels")
    grow()
    report = done(command(*EXTEND, *flags))
    kept = len(before.manifest.shards)
    assert (report["rows"], report["rows_written"], report["shards_kept"]) == (360, 90, kept)
    extended = rows_by_key("labels")
    assert {key: extended[key] for key in old} == old
    assert not Path("labels.replaced").exists()
    if "--tail=prior" not in flags:
        assert command(*INFER, *flags, "--output=afresh").code == 0
        assert rows_by_key("afresh") == extended
        assert softlabel.open("afresh").identity == softlabel.open("labels").identity
    checked = command("verify", "--source=data/train", "--teacher=models/teacher.onnx")
    assert checked.code == 0, checked.stdout
    assert done(command(*EXTEND, *flags))["rows_written"] == 0


def test_a_dry_run_says_what_is_new(labelled: Project, command: Command) -> None:
    grow()
    before = labelled.files()
    report = done(command(*EXTEND, "--dry-run"))
    assert (report["rows_to_write"], report["shards_kept"]) == (90, 4)
    assert labelled.files() == before


def test_without_labels_all_is_new(labelled: Project, command: Command) -> None:
    report = done(command(*EXTEND, "--output=other"))
    assert report["rows_written"] == 270


@pytest.mark.parametrize("cut", [0, 1, 4, 5])
def test_a_run_that_is_cut_off_goes_on(
    labelled: Project, command: Command, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """Before an old shard, before the new one (4), and before the new plan is published (5)."""
    grow()
    quiet = labelled.root / "quiet"
    shutil.copytree("labels", quiet)
    assert command(*EXTEND, f"--output={quiet}").code == 0
    calls = 0
    carry_over = extension.carry_over

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > cut:
            raise OSError(28, os.strerror(28))
        return carry_over(*arguments)

    def stopped(*_: Any, **__: Any) -> Any:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        if cut == 5:
            patch.setattr(stage, "claim", lambda folder, plan: folder.rename("labels.replaced"))
            patch.setattr(stage, "reopen", stopped)
        else:
            patch.setattr(stage, "carry_over", counted)
            patch.setattr(stage, "label_shards", stopped)
        assert command(*EXTEND).code == 4
    report = done(command(*EXTEND))
    assert report["rows_written"] == 90
    assert contents(Path("labels")) == contents(quiet)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_no_growth_is_refused(labelled: Project, command: Command) -> None:
    grow()
    refused(command(*EXTEND, "--codec=dense-f32"), "different: source, codec", "only its source")
    Path("data/train/part-00001.parquet").unlink()
    shutil.copy("whole/part-00001.parquet", "data/train/part-00000.parquet")
    refused(command(*EXTEND), "source shard part-00000.parquet changed or is gone", "did not only")
    Path("data/train/part-00000.parquet").unlink()
    refused(command(*EXTEND), "source shard part-00000.parquet changed or is gone")


def test_labels_that_are_not_whole_are_refused(labelled: Project, command: Command) -> None:
    grow()
    shard = Path("labels/part-00001.parquet")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    refused(command(*EXTEND), "is not whole", "finish it")
    assert shard.read_bytes() == data


def test_another_execution_record_is_refused(labelled: Project, command: Command) -> None:
    grow()
    refused(command(*EXTEND, "--batch-size=32"), "batch_size was 16, is 32", "--allow-mixed")
    assert done(command(*EXTEND, "--batch-size=32", "--allow-mixed"))["rows_written"] == 90


def test_what_infer_did_not_label_whole_is_refused(labelled: Project, command: Command) -> None:
    part = ("--limit=50", "--if-different=replace", "--overwrite")
    assert command(*INFER, *part).code == 0
    grow()
    refused(command(*EXTEND), "softlabel infer --limit 50", "infer labelled whole")


@pytest.mark.parametrize("flag", ["--overwrite", "--limit=5"])
def test_flags_that_contradict(labelled: Project, command: Command, flag: str) -> None:
    outcome = command(*EXTEND, flag)
    assert outcome.code == 2
    assert "extend keeps all that stands" in outcome.stderr


def test_a_plain_run_says_how_the_set_was_made(labelled: Project, command: Command) -> None:
    grow()
    assert command(*EXTEND).code == 0
    refused(command(*INFER), "softlabel infer --extend")
