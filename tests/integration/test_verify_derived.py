"""verify on sets that convert and merge made: what was lost on purpose is no fault, others are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

import softlabel
from softlabel.pipeline.labelset.labelset import read_manifest
from softlabel.pipeline.publish import publish_bytes
from softlabel.pipeline.shards.layouts import open_shard, writing_shard
from softlabel.pipeline.shards.packing import folder_packing, make_packing
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.parquet import write_source_shard
from softlabel.schemas.labelset import Receipt, Segment, canonical_json, sha256_of
from softlabel.schemas.sample import SampleBlock
from tests.unit.blocks import CLASSES, block_of, packing_of
from tests.unit.label_sets import numbered, write_set

if TYPE_CHECKING:
    from tests.conftest import Command, Project

SOURCE = ("--source", "data/train", "--teacher", "models/teacher.onnx", "--replay", "64")


@pytest.fixture(scope="module")
def exact(make_project: Callable[[], Project]) -> Project:
    """A project with `labels` in dense-f32 and `sparse` in topk, in seven shards."""
    project = make_project()
    project.source()
    project.teacher()
    infer = ("infer", "--batch-size", "8", "--shard-rows", "80", "--codec")
    for flags in (("dense-f32",), ("topk", "--k", "7", "--output", "sparse")):
        outcome = project.run(*infer, *flags)
        assert outcome.code == 0, outcome.stderr
    (project.root / "classes").write_text("".join(f"{name}\n" for name in "84206"))
    keys = [f"sample-{row:06d}\n" for row in range(0, 500, 3)]
    (project.root / "keys").write_text("".join(keys))
    return project


@pytest.fixture
def labelled(exact: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    copy = exact.copy(tmp_path / "project")
    monkeypatch.chdir(copy.root)
    return copy


@pytest.fixture
def verify(command: Command) -> Callable[..., dict[str, Any]]:
    """Run verify and return its report, with how it ended as `code`."""

    def run(labels: str, *flags: str) -> dict[str, Any]:
        outcome = command("verify", "--labels", labels, *flags, "--json")
        assert outcome.stdout, outcome.stderr
        report: dict[str, Any] = json.loads(outcome.stdout)
        return report | {"code": outcome.code}

    return run


Verify = Callable[..., dict[str, Any]]

SOUND = {
    "a copy": [("--layout", "lists")],
    "another codec": [("--codec", "dense-u8")],
    "other shards": [("--shard-rows", "33", "--layout", "sidecar")],
    "a chain": [("--codec", "dense-f16"), ("--codec", "dense-u8"), ("--codec", "dense-f32")],
    "a chain to topk": [("--codec", "dense-u8"), ("--codec", "topk", "--k", "5")],
    "a subset by key": [("--keys", "keys")],
    "a subset in a tar": [("--keys", "keys", "--layout", "sidecar")],
    "a subset in another codec": [("--keys", "keys"), ("--classes", "classes")],
    "some classes": [("--classes", "classes")],
    "some classes of a chain": [
        ("--codec", "dense-u8"),
        ("--classes", "classes"),
        ("--codec", "dense-f16"),
    ],
    "both": [("--keys", "keys", "--classes", "classes", "--codec", "dense-u8")],
}


@pytest.mark.parametrize("steps", SOUND.values(), ids=SOUND)
def test_a_converted_set_is_sound(
    labelled: Project, command: Command, verify: Verify, steps: list[tuple[str, ...]]
) -> None:
    name = convert_all(command, "labels", steps)
    report = verify(name, *SOURCE)
    assert report["problems"] == []
    assert report["code"] == 0
    assert report["not_replayed"] is None
    assert report["replay"]["rows"] == 64
    assert report["checks"][-2:] == ["replay", "negative control"]


def convert_all(command: Command, name: str, steps: list[tuple[str, ...]]) -> str:
    """Convert step by step; the name of the last set."""
    for index, flags in enumerate(steps):
        outcome = command("convert", "--labels", name, "--output", f"set-{index}", *flags)
        assert outcome.code == 0, outcome.stderr
        name = f"set-{index}"
    return name


def test_a_narrowed_topk_is_sound(labelled: Project, command: Command, verify: Verify) -> None:
    """The last class dropped costs next to nothing beside the seven; all of them cost more."""
    name = convert_all(command, "sparse", [("--k", "6"), ("--k", "3")])
    report = verify(name, *SOURCE)
    assert report["problems"] == []
    assert report["replay"]["kl_mean"] < report["replay"]["kl_limit"]


@pytest.mark.parametrize("flags", [("--keys", "keys"), ("--classes", "classes")])
def test_labels_of_other_samples_do_not_pass(
    labelled: Project, command: Command, verify: Verify, flags: tuple[str, ...]
) -> None:
    """The set says it came from this teacher, and came from one that says otherwise."""
    labelled.teacher("models/other.onnx", sharpness=-60)
    infer = ("infer", "--allow-bad-teacher", "--teacher", "models/other.onnx", "--output", "bad")
    assert command(*infer, "--codec", "dense-f32").code == 0
    name = convert_all(command, "bad", [flags])
    forge(Path(name), teacher_sha256=read_manifest(Path("labels")).identity.teacher_sha256)
    report = verify(name, *SOURCE)
    assert [problem["kind"] for problem in report["problems"]] == ["replay"]
    assert report["code"] == 1


def forge(folder: Path, **changes: Any) -> None:
    """Change the identity in every record of the set and in its shards, as a liar would."""
    manifest = read_manifest(folder)
    identity = manifest.identity.model_copy(update=changes)
    old, new = folder_packing(folder, manifest), make_packing(identity, manifest.layout)
    shards = []
    for shard in manifest.shards:
        blocks = list(open_shard(folder, shard.name, old).read(0, shard.rows))
        with writing_shard(folder, shard.name, new) as writer:
            for block in blocks:
                writer.append(block)
            size, sha256 = writer.finish()
        path = folder / f"{shard.name}.json"
        file = {"bytes": size, "sha256": sha256}
        receipt = Receipt.model_validate_json(path.read_bytes()).model_copy(
            update=file | {"identity_sha256": identity.digest()}
        )
        publish_bytes(path, canonical_json(receipt))
        said = file | {"receipt_sha256": sha256_of(canonical_json(receipt))}
        shards.append(shard.model_copy(update=said))
    forged = {
        "identity": identity,
        "identity_sha256": identity.digest(),
        "shards": tuple(shards),
    }
    publish_bytes(folder / "labelset.json", canonical_json(manifest.model_copy(update=forged)))


def test_a_mean_is_not_replayed_and_says_so(
    labelled: Project, command: Command, verify: Verify
) -> None:
    flags = ("--labels", "labels", "--labels", "labels", "--output", "mean")
    assert command("merge", *flags).code == 0
    name = convert_all(command, "mean", [("--codec", "dense-u8")])
    for labels in ("mean", name):
        report = verify(labels, *SOURCE)
        assert report["problems"] == []
        assert report["replay"] is None
        assert "made by merge from 2 label sets" in report["not_replayed"]
        assert "replay" not in report["checks"]
        shown = command("verify", "--labels", labels, *SOURCE).stdout
        assert "not replayed: made by merge" in shown
    assert verify("mean", "--source", "data/train")["not_replayed"] is None


def replace_source(change: Callable[[SampleBlock], SampleBlock]) -> None:
    """Change the samples of the second source shard."""
    path = Path("data/train/part-00001.parquet")
    source = open_source(path)
    block = source.read([Segment(source=path.name, first=0, rows=source.rows)])
    path.unlink()
    write_source_shard(path, change(block), source.classes)


def test_another_source_than_that_of_a_subset(
    labelled: Project, command: Command, verify: Verify
) -> None:
    name = convert_all(command, "labels", [("--keys", "keys")])
    replace_source(lambda block: block.slice(0, 150))
    report = verify(name, *SOURCE)
    assert report["code"] == 1
    (problem,) = report["problems"]
    assert problem["kind"] == "source"
    assert "part-00001.parquet" in problem["message"]


@pytest.mark.parametrize("subset", [True, False])
def test_missing_keys_are_a_fault_unless_they_were_left_out(
    labelled: Project, command: Command, verify: Verify, subset: bool
) -> None:
    name = convert_all(command, "labels", [("--keys", "keys")])
    if not subset:
        derived = softlabel.open(name).manifest.identity.derived
        assert derived is not None
        forge(Path(name), derived=derived.model_copy(update={"keys_sha256": None}))
    report = verify(name, "--source", "data/train")
    faults = [p["message"] for p in report["problems"] if p["kind"] == "coverage"]
    assert faults == [] if subset else "lacks 333 keys: 'sample-000001'" in faults[0]


def test_a_foreign_key_in_a_subset(labelled: Project, command: Command, verify: Verify) -> None:
    """The source lost two samples of the subset, and nobody wrote it down."""
    name = convert_all(command, "labels", [("--keys", "keys", "--shard-rows", "100")])
    gone = {"sample-000303", "sample-000306"}

    def rename(block: SampleBlock) -> SampleBlock:
        keys = [f"new-{key}" if key in gone else key for key in block.keys.to_pylist()]
        return SampleBlock(pa.array(keys), block.inputs, block.labels)

    replace_source(rename)
    forge(Path(name), source=open_source(Path("data/train")).files)
    report = verify(name, *SOURCE)
    (problem,) = report["problems"]
    assert (problem["kind"], problem["shard"]) == ("coverage", "part-00001")
    assert "holds 2 foreign keys: 'sample-000303', 'sample-000306'" in problem["message"]


def test_a_key_twice_in_a_subset(labelled: Project, command: Command, verify: Verify) -> None:
    name = convert_all(command, "labels", [("--keys", "keys", "--shard-rows", "100")])
    folder = Path(name)
    manifest = read_manifest(folder)
    packing = folder_packing(folder, manifest)
    (block,) = open_shard(folder, "part-00000", packing).read(0, 100)
    with writing_shard(folder, "part-00000", packing) as writer:
        writer.append(block.take(np.asarray([0, 0, *range(2, 100)])))
        writer.finish()
    forge(folder)
    report = verify(name, *SOURCE)
    first, second = report["problems"]
    assert (first["kind"], second["kind"]) == ("keys", "coverage")
    assert "twice: 'sample-000000'" in first["message"]
    assert "do not stand 1 times: 'sample-000000'" in second["message"]


@pytest.mark.parametrize("flags", [(), ("--layout", "sidecar"), ("--keys", "few")])
def test_a_set_with_views(
    empty_project: Project, command: Command, verify: Verify, flags: tuple[str, ...]
) -> None:
    keys = [f"key-{row}" for row in range(5)]
    empty_project.source(shards=(5,), classes=CLASSES, keys=keys)
    Path("few").write_text("key-1\nkey-4\n")
    files = open_source(Path("data/train")).files
    packing = packing_of("dense-f16", views=2)
    blocks = numbered([block_of(packing, rows) for rows in (6, 4)], 2)
    write_set(Path("labels"), packing, blocks, files[0].name)
    assert command("convert", "--output", "copy", *flags).code == 0
    forge(Path("copy"), source=files)
    report = verify("copy", "--source", "data/train")
    assert report["problems"] == []
    assert "does not say how its views were made" in verify("copy", *SOURCE)["not_replayed"]
    other = open_source(empty_project.source("data/other", shards=(5,), classes=CLASSES))
    forge(Path("copy"), source=other.files)
    faults = {p["kind"] for p in verify("copy", "--source", "data/other")["problems"]}
    assert faults == {"coverage"}


def test_repair_names_the_command_that_redoes(
    labelled: Project, command: Command, verify: Verify
) -> None:
    name = convert_all(command, "labels", [("--codec", "dense-f16")])
    before = labelled.files(name)
    damaged = Path(name) / "part-00003.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    outcome = command("verify", "--labels", name, "--repair")
    assert outcome.code == 1
    assert "removed part-00003; run 'softlabel convert --labels LABELS" in outcome.stdout
    assert not damaged.exists()
    assert convert_all(command, "labels", [("--codec", "dense-f16")]) == name
    assert labelled.files(name) == before
