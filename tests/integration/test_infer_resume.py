"""What infer stores, and that going on, redoing and replacing end with the bytes of a quiet run."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

import softlabel
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.teachers.session import TeacherSession
from softlabel.pipeline.teachers.teacher import open_teacher
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Manifest, Plan, Receipt, Segment, canonical_json
from softlabel.schemas.params import InferParams
from softlabel.stages import infer

if TYPE_CHECKING:
    from tests.conftest import Command, Project

# 500 rows in two source shards become seven label shards of 80 rows or fewer.
SMALL = ("infer", "--batch-size", "8", "--shard-rows", "80")
SHARDS = 7


@pytest.fixture
def labelled(project: Project, command: Command) -> Project:
    assert command(*SMALL).code == 0
    return project


def result(command: Command, *arguments: str) -> dict[str, Any]:
    outcome = command(*arguments, "--json")
    assert outcome.code == 0, outcome.stderr
    report: dict[str, Any] = json.loads(outcome.stdout)
    return report


def inodes() -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in Path("labels").iterdir()}


def test_the_stored_values(labelled: Project) -> None:
    source = open_source(Path("data/train"))
    samples = source.read([Segment(source=f.name, first=0, rows=f.rows) for f in source.files])
    teacher = open_teacher(Path("models/teacher.onnx"), InferParams(), source.shape)
    session = TeacherSession(teacher, "cpu", 100)
    logits = np.concatenate(
        [session.run(samples.inputs[row : row + 100]).logits for row in range(0, 500, 100)]
    )
    labels = softlabel.open("labels")
    (block,) = labels.batches(500)
    assert block.keys.to_pylist() == samples.keys.to_pylist()
    assert block.labels.to_pylist() == samples.labels.to_pylist()
    np.testing.assert_allclose(block.shift, logits.max(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(block.top1, logits.argmax(axis=1))
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    assert np.ptp(shifted) > 5
    stored = block.logits().astype(np.float64)
    np.testing.assert_allclose(stored, shifted, rtol=2**-11 + 1e-5, atol=1e-5)
    assert labels.temperatures == (1, 2, 4, 8)
    for column, temperature in enumerate(labels.temperatures):
        expected = np.log(np.exp(shifted / temperature).sum(axis=1))
        np.testing.assert_allclose(block.payload["lse"][:, column], expected, rtol=1e-4, atol=1e-5)
        soft = np.exp(shifted / temperature - expected[:, None])
        np.testing.assert_allclose(block.probs(temperature), soft, atol=2e-3)


def test_the_folder_holds_these_and_nothing_else(labelled: Project) -> None:
    parts = [f"part-{index:05d}.{kind}" for index in range(SHARDS) for kind in ("json", "parquet")]
    assert list(labelled.files()) == sorted(["labelset.json", "plan.json", *parts])
    beside = sorted(path.name for path in labelled.root.iterdir())
    assert beside == ["data", "labels", "models"]


def test_the_records_are_canonical_and_agree(labelled: Project) -> None:
    files = labelled.files()
    plan = Plan.model_validate_json(files["plan.json"])
    manifest = Manifest.model_validate_json(files["labelset.json"])
    assert files["plan.json"] == canonical_json(plan)
    assert files["labelset.json"] == canonical_json(manifest)
    assert manifest.identity == plan.identity
    assert manifest.identity_sha256 == plan.identity.digest()
    assert [shard.segments for shard in manifest.shards] == [s.segments for s in plan.shards]
    receipts = [
        Receipt.model_validate_json(files[f"{shard.name}.json"]) for shard in manifest.shards
    ]
    assert [receipt.sha256 for receipt in receipts] == [shard.sha256 for shard in manifest.shards]
    assert sum(receipt.rows for receipt in receipts) == manifest.rows == 500
    counted = sum(receipt.statistics.correct for receipt in receipts)
    assert counted == manifest.statistics.correct > 300


@pytest.mark.parametrize("name", ["labels-again", "deep/down/labels"])
def test_another_folder_gets_the_same_bytes(labelled: Project, command: Command, name: str) -> None:
    assert command(*SMALL, "--output", name).code == 0
    assert labelled.files(name) == labelled.files()


def test_another_time_and_place_give_the_same_bytes(
    labelled: Project, make_project: Callable[[], Project]
) -> None:
    """Another process, another working folder, other spellings of the paths, other file times."""
    other = make_project()
    shutil.copytree("data/train", other.root / "elsewhere")
    shutil.copyfile("models/teacher.onnx", other.root / "other-name.onnx")
    outcome = other.run(
        *SMALL,
        "--teacher",
        str(other.root / "other-name.onnx"),
        "--source",
        "./elsewhere",
        "--output",
        str(other.root / "x" / ".." / "out"),
    )
    assert outcome.code == 0, outcome.stderr
    assert other.files("out") == labelled.files()


def test_no_trace_of_time_host_or_path(labelled: Project) -> None:
    record = ("provider", "device", "threads", "onnxruntime")
    for name, content in labelled.files().items():
        assert str(labelled.root).encode() not in content
        assert b"hostname" not in content
        if name != "plan.json":
            assert [word for word in record if f'"{word}"'.encode() in content] == []


def test_nothing_left_to_do(labelled: Project, command: Command) -> None:
    before, files = labelled.files(), inodes()
    report = result(command, *SMALL)
    assert (report["rows"], report["rows_written"], report["shards_kept"]) == (500, 0, SHARDS)
    assert labelled.files() == before
    kept = [name for name in files if name.startswith("part")]
    assert {name: inodes()[name] for name in kept} == {name: files[name] for name in kept}


def drop_receipt(folder: Path) -> None:
    (folder / "part-00002.json").unlink()


def drop_shard(folder: Path) -> None:
    (folder / "part-00002.parquet").unlink()


def cut_shard(folder: Path) -> None:
    path = folder / "part-00002.parquet"
    path.write_bytes(path.read_bytes()[:-1])


def empty_shard(folder: Path) -> None:
    (folder / "part-00002.parquet").write_bytes(b"")


def grow_shard(folder: Path) -> None:
    with (folder / "part-00002.parquet").open("ab") as file:
        file.write(b"PAR1")


def flip_in_payload(folder: Path) -> None:
    flip(folder / "part-00002.parquet", 0.3)


def flip_in_footer(folder: Path) -> None:
    flip(folder / "part-00002.parquet", 0.99)


def cut_receipt(folder: Path) -> None:
    path = folder / "part-00002.json"
    path.write_bytes(path.read_bytes()[:40])


def receipt_of_another_set(folder: Path) -> None:
    path = folder / "part-00002.json"
    receipt = Receipt.model_validate_json(path.read_bytes())
    path.write_bytes(canonical_json(receipt.model_copy(update={"identity_sha256": "0" * 64})))


def receipt_with_another_count(folder: Path) -> None:
    """One flipped bit in a digit: only the manifest's digest of the receipt tells."""
    path = folder / "part-00002.json"
    receipt = Receipt.model_validate_json(path.read_bytes())
    wrong = receipt.statistics.model_copy(update={"correct": receipt.statistics.correct ^ 1})
    path.write_bytes(canonical_json(receipt.model_copy(update={"statistics": wrong})))


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x04
    path.write_bytes(content)


DAMAGES = [
    drop_receipt,
    drop_shard,
    cut_shard,
    empty_shard,
    grow_shard,
    flip_in_payload,
    flip_in_footer,
    cut_receipt,
    receipt_of_another_set,
]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_exactly_the_broken_shard_is_redone(
    labelled: Project, command: Command, damage: Callable[[Path], None], finished: bool
) -> None:
    before, standing = labelled.files(), inodes()
    if not finished:
        Path("labels/labelset.json").unlink()
    damage(Path("labels"))
    report = result(command, *SMALL)
    assert (report["rows_written"], report["shards_kept"]) == (80, SHARDS - 1)
    assert labelled.files() == before
    after = inodes()
    kept = [name for name in before if name.startswith("part") and "00002" not in name]
    assert {name: after[name] for name in kept} == {name: standing[name] for name in kept}


def test_a_changed_receipt_of_a_finished_set_is_noticed(
    labelled: Project, command: Command
) -> None:
    before = labelled.files()
    receipt_with_another_count(Path("labels"))
    assert command(*SMALL).code == 0
    assert labelled.files() == before


def test_shards_under_each_others_names_are_redone(labelled: Project, command: Command) -> None:
    before = labelled.files()
    for kind in ("json", "parquet"):
        first, second = Path(f"labels/part-00000.{kind}"), Path(f"labels/part-00001.{kind}")
        first.rename("labels/swap")
        second.rename(first)
        Path("labels/swap").rename(second)
    outcome = command(*SMALL)
    assert outcome.code == 0, outcome.stderr
    assert labelled.files() == before


def test_two_broken_shards_and_a_leftover(labelled: Project, command: Command) -> None:
    before = labelled.files()
    cut_shard(Path("labels"))
    Path("labels/part-00006.json").unlink()
    Path("labels/.part-00004.parquet.tmp").write_bytes(b"half a shard")
    Path("labels/.labelset.json.tmp").write_bytes(b"{")
    report = result(command, *SMALL)
    assert (report["rows_written"], report["shards_kept"]) == (80 + 40, SHARDS - 2)
    assert labelled.files() == before


def test_the_last_row_may_be_one_the_teacher_gets_wrong(
    empty_project: Project, command: Command
) -> None:
    """The check against chance asks about the teacher, not about what is left to do."""
    empty_project.source(shards=(300, 1))
    empty_project.teacher()
    shard = Path("data/train/part-00001.parquet")
    source = open_source(shard)
    block = source.read([Segment(source=shard.name, first=0, rows=1)])
    shard.unlink()
    wrong = (block.hard_labels() + 5) % 10
    write_block(shard, block.keys, block.inputs, wrong, source.classes)
    arguments = ("infer", "--batch-size", "1", "--shard-rows", "50")
    assert command(*arguments).code == 0
    before = empty_project.files()
    last = sorted(name for name in before if name.startswith("part"))[-2]
    Path("labels", last).unlink()
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.stderr
    assert empty_project.files() == before


def test_a_source_of_few_rows(empty_project: Project, command: Command) -> None:
    """Four rows of two classes, all right: too few to tell from luck, so nothing is wrong."""
    empty_project.source(shards=(4,), classes=("cat", "dog"), seed=3)
    empty_project.teacher(classes=("cat", "dog"))
    outcome = command("infer")
    assert outcome.code == 0, outcome.stderr


def write_block(
    path: Path, keys: pa.StringArray, inputs: Any, labels: Any, classes: tuple[str, ...]
) -> None:
    from softlabel.pipeline.sources.parquet import write_source_shard
    from softlabel.schemas.sample import SampleBlock

    block = SampleBlock(keys, inputs, pa.array(np.asarray(labels, np.int32)))
    write_source_shard(path, block, classes)


def make_unfinished(folder: Path = Path("labels")) -> None:
    (folder / "labelset.json").unlink()
    drop_receipt(folder)


def test_another_batch_size_on_an_unfinished_set(labelled: Project, command: Command) -> None:
    quiet = labelled.files()
    make_unfinished()
    before = labelled.files()
    other = ("infer", "--batch-size", "16", "--shard-rows", "80")
    outcome = command(*other)
    assert outcome.code == 3
    assert "batch_size was 8, is 16" in outcome.stderr
    assert "--allow-mixed" in outcome.stderr
    assert "--overwrite" in outcome.stderr
    assert labelled.files() == before
    report = result(command, *other, "--allow-mixed")
    assert (report["rows_written"], report["shards_kept"]) == (80, SHARDS - 1)
    assert list(labelled.files()) == list(quiet)
    assert labelled.files()["plan.json"] == quiet["plan.json"]


def test_another_batch_size_on_a_finished_set(labelled: Project, command: Command) -> None:
    """A finished set needs no teacher any more; a broken one does, and under the same record."""
    other = ("infer", "--batch-size", "16", "--shard-rows", "80")
    assert result(command, *other)["rows_written"] == 0
    drop_receipt(Path("labels"))
    outcome = command(*other)
    assert outcome.code == 3, outcome.stderr
    assert "batch_size was 8, is 16" in outcome.stderr


def test_other_shard_boundaries_on_an_unfinished_set(labelled: Project, command: Command) -> None:
    quiet = labelled.files()
    make_unfinished()
    other = ("infer", "--batch-size", "8", "--shard-rows", "160")
    outcome = command(*other)
    assert outcome.code == 3
    assert "--shard-rows" in outcome.stderr
    assert command(*other, "--allow-mixed").code == 0
    assert labelled.files() == quiet


def test_overwrite_starts_afresh(labelled: Project, command: Command) -> None:
    quiet, standing = labelled.files(), inodes()
    report = result(command, *SMALL, "--overwrite")
    assert (report["rows_written"], report["shards_kept"]) == (500, 0)
    assert labelled.files() == quiet
    assert set(inodes().values()).isdisjoint(standing.values())
    assert command("infer", "--batch-size", "20", "--overwrite").code == 0
    plan = Plan.model_validate_json(labelled.files()["plan.json"])
    assert plan.execution is not None
    assert plan.execution.batch_size == 20
    assert not Path("labels.replaced").exists()


def test_overwrite_of_an_unfinished_set(labelled: Project, command: Command) -> None:
    quiet = labelled.files()
    make_unfinished()
    assert result(command, *SMALL, "--overwrite")["rows_written"] == 500
    assert labelled.files() == quiet


def test_replace_makes_the_new_set_and_drops_the_old(labelled: Project, command: Command) -> None:
    old = labelled.files()
    labelled.teacher(sharpness=50)
    assert command(*SMALL, "--output", "fresh").code == 0
    assert command(*SMALL).code == 3
    assert labelled.files() == old
    report = result(command, *SMALL, "--if-different", "replace")
    assert report["rows_written"] == 500
    assert labelled.files() == labelled.files("fresh") != old
    assert not Path("labels.replaced").exists()
    assert result(command, *SMALL, "--if-different", "replace")["rows_written"] == 0


def test_replace_keeps_the_old_set_until_the_new_one_stands(
    empty_project: Project, command: Command
) -> None:
    """The new run fails half-way; the old labels are still there, and the mended run ends well.

    It is told not to look at the first rows beforehand, which would find the fault too early.
    """
    empty_project.source()
    empty_project.teacher()
    assert command(*SMALL).code == 0
    old = empty_project.files()
    empty_project.source("data/bad", poisoned=[333])
    empty_project.teacher("models/new.onnx", poisoned=True)
    replace = (*SMALL, "--if-different", "replace", "--teacher", "models/new.onnx")
    failing = (*replace, "--source", "data/bad", "--allow-bad-teacher")
    assert empty_project.run(*failing).code == 3
    assert not Path("labels/labelset.json").exists()
    assert empty_project.files("labels.replaced") == old
    assert command(*replace).code == 0
    assert not Path("labels.replaced").exists()
    assert command(*SMALL, "--teacher", "models/new.onnx", "--output", "fresh").code == 0
    assert empty_project.files() == empty_project.files("fresh")


def test_training_and_evaluating_leave_the_labels_alone(
    labelled: Project, command: Command
) -> None:
    before, standing = labelled.files(), inodes()
    arguments = (
        "train-student",
        "--model",
        "softlabel.pipeline.small_models:mlp",
        "--loss",
        "kd",
        "--labels",
        "labels",
        "--validation",
        "data/train",
        "--epochs",
        "2",
        "--logger",
        "none",
    )
    assert command(*arguments).code == 0
    assert command("evaluate", "--source", "data/train").code == 0
    assert labelled.files() == before
    assert inodes() == standing


def test_small_source_shards_are_grouped(empty_project: Project, command: Command) -> None:
    empty_project.source(shards=[50] * 9)
    empty_project.teacher()
    assert command("infer", "--batch-size", "8").code == 0
    labels = softlabel.open("labels")
    assert [shard.rows for shard in labels.manifest.shards] == [150, 150, 150]
    keys = [key for block in labels.batches(64) for key in block.keys.to_pylist()]
    assert keys == [f"sample-{row:06d}" for row in range(450)]


def test_unknown_hard_labels_stay_unknown(empty_project: Project, command: Command) -> None:
    empty_project.source(labelled=False)
    empty_project.teacher()
    assert command(*SMALL).code == 0
    (block,) = softlabel.open("labels").batches(500)
    assert block.labels.null_count == 500


def test_a_run_that_fails_leaves_no_step_working(project: Project) -> None:
    """The reader and the teacher are told to stop before the error is, and are gone by then."""
    project.teacher("models/poisoned.onnx", poisoned=True)
    project.source("data/bad", shards=(300, 5000), poisoned=[333])
    params = InferParams(
        teacher=Path("models/poisoned.onnx"),
        source=Path("data/bad"),
        batch_size=8,
        allow_bad_teacher=True,
    )
    with pytest.raises(DataError, match="logits hold NaN for key 'sample-000333'"):
        infer.run(params)
    working = {thread.name for thread in threading.enumerate()}
    assert not working & {"read", "teacher", "encode"}
