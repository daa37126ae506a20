"""verify: a row a fault, found by one detector; with that detector off, by none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import softlabel
from softlabel.cli import run as command_line
from softlabel.pipeline.checking import detectors
from softlabel.pipeline.codecs.codec import shift_rows
from softlabel.pipeline.labelset import integrity
from softlabel.pipeline.labelset.labelset import LabelSet, read_manifest
from softlabel.pipeline.labelset.standing import read_plan
from softlabel.pipeline.shards.layouts import writing_shard
from softlabel.pipeline.shards.packing import folder_packing
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.parquet import write_source_shard
from softlabel.pipeline.teachers.session import TeacherSession
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.labelset import (
    MANIFEST_FILE,
    Identity,
    Manifest,
    Receipt,
    Segment,
    canonical_json,
    sha256_of,
)
from softlabel.schemas.params import (
    ExportParams,
    InferParams,
    PrepareParams,
    TrainParams,
    VerifyParams,
)
from softlabel.schemas.reports import VerifyReport
from softlabel.schemas.reports.label_sets import Problem
from softlabel.schemas.sample import TeacherOutput
from softlabel.stages import export, infer, prepare, train_student, verify

Columns = dict[str, pa.Array]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, a teacher of two epochs and a label set of several shards."""
    folder = tmp_path_factory.mktemp("made")
    prepare.run(PrepareParams(output=folder / "data", shard_rows=400))
    train_student.run(
        TrainParams(
            model="softlabel.pipeline.small_models:conv_net",
            model_args={"width": 8, "depth": 2},
            source=folder / "data/train",
            epochs=2,
            logger="none",
            output=folder / "teacher",
        )
    )
    card = str(folder / "teacher/student.json")
    export.run(ExportParams(model=card, output=folder / "teacher.onnx"))
    label(folder)
    return folder


def label(folder: Path) -> None:
    infer.run(
        InferParams(
            teacher=folder / "teacher.onnx",
            source=folder / "data/train",
            output=folder / "labels",
            batch_size=16,
            shard_rows=256,
        )
    )


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "world"))


def check(world: Path, **more: object) -> VerifyReport:
    params = VerifyParams(
        labels=world / "labels",
        source=world / "data/train",
        teacher=world / "teacher.onnx",
        **more,
    )
    return verify.run(params)


def forge(world: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrite the second shard and make receipt and manifest agree with it, as a faulty writer."""
    folder = world / "labels"
    manifest = read_manifest(folder)
    name = manifest.shards[1].name
    path = folder / f"{name}.parquet"
    table = change(pq.read_table(path))
    pq.write_table(table, path, use_dictionary=False, write_page_checksum=True)
    _seal(folder, manifest, name)


def _seal(folder: Path, manifest: Manifest, name: str) -> None:
    path = folder / f"{name}.parquet"
    data = path.read_bytes()
    new = {"bytes": len(data), "sha256": sha256_of(data)}
    receipt = Receipt.model_validate_json((folder / f"{name}.json").read_bytes())
    written = canonical_json(receipt.model_copy(update=new))
    (folder / f"{name}.json").write_bytes(written)
    shards = tuple(
        shard.model_copy(update=new | {"receipt_sha256": sha256_of(written)})
        if shard.name == name
        else shard
        for shard in manifest.shards
    )
    (folder / MANIFEST_FILE).write_bytes(
        canonical_json(manifest.model_copy(update={"shards": shards}))
    )


def foreign_file(world: Path) -> None:
    (world / "labels/notes.txt").write_text("mine")


def lost_receipt(world: Path) -> None:
    (world / "labels/part-00001.json").unlink()


def receipt_of_another_shard(world: Path) -> None:
    shutil.copy(world / "labels/part-00000.json", world / "labels/part-00001.json")


def flipped_letter_of_the_footer(world: Path) -> None:
    path = world / "labels/part-00001.parquet"
    data = path.read_bytes()
    at = data.rindex(b"parquet-cpp")
    path.write_bytes(data[:at] + b"q" + data[at + 1 :])


def truncated(world: Path) -> None:
    path = world / "labels/part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def swapped_shards(world: Path) -> None:
    first, second = (world / f"labels/part-0000{index}.parquet" for index in (0, 1))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


def other_metadata(world: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        header = json.loads(table.schema.metadata[b"softlabel"]) | {"temperatures": [1.0]}
        return table.replace_schema_metadata({b"softlabel": json.dumps(header, sort_keys=True)})

    forge(world, change)


def wrong_top1(world: Path) -> None:
    forge(world, lambda table: _set(table, "top1", lambda values: (values + 1) % 10))


def shift_not_finite(world: Path) -> None:
    forge(world, lambda table: _set(table, "shift", lambda values: values * np.float32(np.nan)))


def wrong_log_sums(world: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        width = table["lse"].type.byte_width
        zeros = pa.array([b"\0" * width] * len(table), pa.binary(width))
        return _replace(table, "lse", zeros)

    forge(world, change)


def keys_in_another_order(world: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        keys = table["key"].to_pylist()
        return _replace(table, "key", pa.array([keys[1], keys[0], *keys[2:]]))

    forge(world, change)


def foreign_key(world: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        return _replace(table, "key", pa.array(["stranger", *table["key"].to_pylist()[1:]]))

    forge(world, change)


def key_twice(world: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        keys = table["key"].to_pylist()
        return _replace(table, "key", pa.array([keys[1], *keys[1:]]))

    forge(world, change)


def row_left_out(world: Path) -> None:
    forge(world, lambda table: table.slice(1))


def logits_not_finite(world: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        rows = table["logits"].to_pylist()
        broken = np.full(len(rows[0]) // 2, np.nan, np.float16).tobytes()
        return _replace(table, "logits", pa.array([broken, *rows[1:]], table["logits"].type))

    forge(world, change)


def changed_picture(world: Path) -> None:
    """The source's second shard with one picture inverted, its stated digest as it was."""
    folder = world / "data/train"
    source = open_source(folder)
    file = source.files[1]
    block = source.read([Segment(source=file.name, first=0, rows=file.rows)])
    pixels = block.inputs.copy()
    pixels[5] = 255 - pixels[5]
    header = pq.read_schema(folder / file.name).metadata
    changed = type(block)(block.keys, pixels, block.labels)
    write_source_shard(folder / file.name, changed, source.classes)
    table = pq.read_table(folder / file.name).replace_schema_metadata(header)
    pq.write_table(table, folder / file.name, use_dictionary=False, compression="none")


def labels_of_the_row_before(world: Path) -> None:
    """A whole, consistent set whose logits stand one row too low."""
    folder = world / "labels"
    manifest = read_manifest(folder)
    plan = read_plan(folder)
    assert plan is not None
    packing = folder_packing(folder, plan)
    shard = manifest.shards[1]
    labels = LabelSet(folder, manifest)
    start = manifest.shards[0].rows
    block = next(labels.batches(manifest.rows)).slice(start, shard.rows)
    rows = shift_rows(np.roll(block.logits() + block.shift[:, None], 1, axis=0))
    moved = replace(block, top1=rows.top1, shift=rows.shift, payload=packing.codec.encode(rows))
    with writing_shard(folder, shard.name, packing) as writer:
        writer.append(moved)
        writer.finish()
    _seal(folder, manifest, shard.name)


def _replace(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), values)


def _set(table: pa.Table, name: str, change: Callable[[np.ndarray], np.ndarray]) -> pa.Table:
    values = change(table[name].to_numpy())
    return _replace(table, name, pa.array(values, table[name].type))


# fault, the detector that finds it, the kind that it reports, and whether nobody else does
FAULTS: list[tuple[Callable[[Path], None], str, str, bool]] = [
    (foreign_file, "check_folder", "folder", True),
    (lost_receipt, "check_receipt", "receipt", True),
    (receipt_of_another_shard, "check_receipt", "receipt", True),
    (flipped_letter_of_the_footer, "check_bytes", "bytes", True),
    (truncated, "check_bytes", "bytes", False),
    (swapped_shards, "check_bytes", "bytes", False),
    (other_metadata, "check_schema", "schema", False),
    (wrong_top1, "check_values", "values", True),
    (shift_not_finite, "check_values", "values", True),
    (wrong_log_sums, "check_values", "values", True),
    (logits_not_finite, "check_values", "values", True),
    (keys_in_another_order, "check_coverage", "coverage", False),
    (foreign_key, "check_coverage", "coverage", False),
    (key_twice, "check_keys", "keys", False),
    (key_twice, "check_coverage", "coverage", False),
    (row_left_out, "check_schema", "schema", False),
    (row_left_out, "check_coverage", "coverage", False),
    (changed_picture, "check_source", "source", True),
]


def test_a_sound_set_passes_every_check(world: Path) -> None:
    report = check(world)
    assert report.problems == ()
    assert report.exit_code == 0
    assert report.checks[-2:] == ("replay", "negative control")
    assert report.replay is not None
    assert report.replay.kl_mean < report.replay.kl_limit < report.replay.shifted_kl_mean


@pytest.mark.parametrize(("fault", "detector", "kind", "alone"), FAULTS)
def test_each_fault_is_found_by_its_detector(
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Path], None],
    detector: str,
    kind: str,
    alone: bool,
) -> None:
    fault(world)
    report = verify.run(VerifyParams(labels=world / "labels", source=world / "data/train"))
    assert report.exit_code == 1
    assert kind in {problem.kind for problem in report.problems}
    if alone:
        assert {problem.kind for problem in report.problems} == {kind}

    def blind(*_: object) -> Iterator[Problem]:
        return iter(())

    home = integrity if hasattr(integrity, detector) else detectors
    monkeypatch.setattr(home, detector, blind)
    report = verify.run(VerifyParams(labels=world / "labels", source=world / "data/train"))
    assert kind not in {problem.kind for problem in report.problems}
    if alone:
        assert report.problems == ()


def test_samples_that_the_source_gained_are_missing(world: Path) -> None:
    source = open_source(world / "data/train")
    file = source.files[0]
    block = source.read([Segment(source=file.name, first=0, rows=5)])
    keys = pa.array([f"new-{number}" for number in range(5)])
    path = world / "data/train/part-00099.parquet"
    write_source_shard(path, type(block)(keys, block.inputs, block.labels), source.classes)
    report = check(world)
    assert [problem.kind for problem in report.problems] == ["coverage"]
    assert "part-00099.parquet has 5 samples without labels" in report.problems[0].message


def test_a_key_that_stands_twice_needs_no_source(world: Path) -> None:
    key_twice(world)
    report = verify.run(VerifyParams(labels=world / "labels"))
    assert [problem.kind for problem in report.problems] == ["keys"]


def test_the_identity_is_digested_once_and_not_once_a_shard(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    digest = Identity.digest

    def count(identity: Identity) -> str:
        digests.append(identity)
        return digest(identity)

    monkeypatch.setattr(Identity, "digest", count)
    report = verify.run(VerifyParams(labels=world / "labels", source=world / "data/train"))
    assert report.problems == ()
    # The manifest's own check, the rows' and the coverage's.
    assert len(digests) <= 3 < report.shards


def test_a_damaged_lookup_cache_is_found(world: Path) -> None:
    labels = softlabel.open(world / "labels")
    labels.lookup(labels.to_arrow()["key"][:2])
    cache = next(world.glob("labels.lookup-*"))
    assert check(world).problems == ()
    path = cache / "value-logits.npy"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    (problem,) = check(world).problems
    assert (problem.kind, problem.shard) == ("cache", None)
    assert f"damaged in {path}; delete the folder {cache}" in problem.message


def test_labels_of_other_rows_fail_the_replay_alone(world: Path) -> None:
    labels_of_the_row_before(world)
    assert [problem.kind for problem in check(world).problems] == ["replay"]
    without = verify.run(VerifyParams(labels=world / "labels", source=world / "data/train"))
    assert without.problems == ()


def test_a_replay_that_proves_nothing_says_so(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        TeacherSession,
        "run",
        lambda self, pixels: TeacherOutput(np.zeros((len(pixels), 10), np.float32)),
    )
    shutil.rmtree(world / "labels")
    infer.run(
        InferParams(
            teacher=world / "teacher.onnx",
            source=world / "data/train",
            output=world / "labels",
            allow_bad_teacher=True,
        )
    )
    (problem,) = check(world).problems
    assert problem.kind == "negative control"
    assert "proves nothing" in problem.message


def test_another_teacher_is_refused(world: Path) -> None:
    teacher = world / "teacher.onnx"
    teacher.write_bytes(teacher.read_bytes() + b"\x08\x08")
    assert command_line(["verify", *_flags(world)]) == 3


def test_repair_removes_what_is_broken_and_infer_redoes_it(world: Path) -> None:
    before = {path.name: path.read_bytes() for path in (world / "labels").iterdir()}
    truncated(world)
    report = check(world, repair=True)
    assert report.removed == ("part-00001",)
    left = {path.name for path in (world / "labels").iterdir()}
    assert left == before.keys() - {"part-00001.parquet", "part-00001.json", MANIFEST_FILE}
    label(world)
    assert {path.name: path.read_bytes() for path in (world / "labels").iterdir()} == before


def test_the_command_exits_with_one_and_lists_what_is_wrong(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(["verify", *_flags(world)]) == 0
    lost_receipt(world)
    assert command_line(["verify", *_flags(world)]) == 1
    assert "receipt: part-00001: the receipt is missing" in capsys.readouterr().out


def test_a_teacher_needs_its_source(world: Path) -> None:
    with pytest.raises(ParameterError, match="--source"):
        verify.run(VerifyParams(labels=world / "labels", teacher=world / "teacher.onnx"))


def _flags(world: Path) -> list[str]:
    return [
        *("--labels", str(world / "labels")),
        *("--source", str(world / "data/train")),
        *("--teacher", str(world / "teacher.onnx")),
    ]
