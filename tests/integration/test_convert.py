"""convert: the same labels in another shape, a part of them, or less exact ones that say so."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import softlabel
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.schemas.labelset import CodecName, Derivation, Layout, Manifest, Plan, Receipt
from tests.unit.blocks import CODECS, block_of, packing_of, same
from tests.unit.label_sets import all_rows, numbered, write_set

if TYPE_CHECKING:
    from tests.conftest import Command, Project

INFER = ("infer", "--batch-size", "8", "--shard-rows", "80")
SHARDS = 7
LAYOUTS: tuple[Layout, ...] = ("packed", "lists", "sidecar")
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "views": {"views": 2},
    "positions": {"positions": True},
    "features": {"features": True},
}


@pytest.fixture(scope="module")
def exact(make_project: Callable[[], Project]) -> Project:
    """A project of 500 samples with `labels` in dense-f32, in seven shards."""
    project = make_project()
    project.source()
    project.teacher()
    outcome = project.run(*INFER, "--codec", "dense-f32")
    assert outcome.code == 0, outcome.stderr
    return project


@pytest.fixture
def labelled(exact: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project of `exact` once more, entered."""
    copy = exact.copy(tmp_path / "project")
    monkeypatch.chdir(copy.root)
    return copy


@pytest.fixture
def convert(command: Command) -> Callable[..., dict[str, Any]]:
    """Run convert, see it succeed, and return its report."""

    def run(labels: str, output: str, *more: str) -> dict[str, Any]:
        outcome = command("convert", "--labels", labels, "--output", output, *more, "--json")
        assert outcome.code == 0, outcome.stderr
        report: dict[str, Any] = json.loads(outcome.stdout)
        return report

    return run


Convert = Callable[..., dict[str, Any]]


def shards(folder: str | Path) -> dict[str, bytes]:
    """Shards and receipts by name."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("part-*"))}


def shard_files(folder: str | Path) -> dict[str, bytes]:
    return {name: data for name, data in shards(folder).items() if not name.endswith(".json")}


def derivation(labels: LabelSet) -> Derivation:
    assert labels.manifest.identity.derived is not None
    return labels.manifest.identity.derived


def small(folder: Path, codec: CodecName, layout: Layout = "packed", **shape: Any) -> LabelSet:
    """Two shards of six and four rows of six classes."""
    packing = packing_of(codec, layout, **shape)
    lengths = ([2, 1, 3, 1, 1, 2], [1, 4, 2, 1]) if shape.get("positions") else (None, None)
    blocks = [
        block_of(packing, rows, lengths=length, seed=rows)
        for rows, length in zip((6, 4), lengths, strict=True)
    ]
    return write_set(folder, packing, numbered(blocks, packing.identity.views))


@pytest.mark.parametrize("between", ["lists", "sidecar"])
def test_there_and_back_is_byte_equal(labelled: Project, convert: Convert, between: str) -> None:
    report = convert("labels", "there", "--layout", between)
    assert report["kl_mean"] is None
    assert (report["layout"], report["rows"], report["shards"]) == (between, 500, SHARDS)
    convert("there", "back", "--layout", "packed")
    assert shards("back") == shards("labels")
    assert shard_files("there") != shard_files("labels")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("codec", CODECS)
def test_every_layout_holds_the_same(
    empty_project: Project, convert: Convert, codec: CodecName, shape: str
) -> None:
    if codec == "factored" and shape == "features":
        pytest.skip("factored stores the features already")
    before = small(Path("labels"), codec, **SHAPES[shape])
    for layout in LAYOUTS:
        convert("labels", layout, "--layout", layout)
        after = softlabel.open(layout)
        assert after.identity == before.identity
        assert after.manifest.fidelity == before.manifest.fidelity
        assert after.manifest.statistics == before.manifest.statistics
        same(all_rows(after), all_rows(before))
        convert(layout, f"{layout}-back", "--layout", "packed")
        assert shards(f"{layout}-back") == shards("labels")


def test_a_copy_is_the_same_set(labelled: Project, convert: Convert) -> None:
    convert("labels", "copy")
    old, new = softlabel.open("labels"), softlabel.open("copy")
    assert shards("copy") == shards("labels")
    assert new.identity == old.identity
    assert new.manifest.aligned
    assert new.manifest.making.verb == "convert"
    plan = Plan.model_validate_json(Path("copy/plan.json").read_bytes())
    assert plan.execution is None


@pytest.mark.parametrize(
    ("codec", "flags"),
    [
        ("dense-f16", ()),
        ("dense-u8", ()),
        ("topk", ("--k", "3")),
        ("topk", ("--k", "3", "--tail", "prior")),
    ],
)
def test_from_float32_it_is_what_infer_would_have_written(
    labelled: Project, convert: Convert, command: Command, codec: str, flags: tuple[str, ...]
) -> None:
    assert command(*INFER, "--codec", codec, *flags, "--output", "inferred").code == 0
    report = convert("labels", "converted", "--codec", codec, *flags)
    assert shard_files("converted") == shard_files("inferred")
    converted, inferred = softlabel.open("converted"), softlabel.open("inferred")
    assert converted.identity == inferred.identity
    assert converted.manifest.identity.derived is None
    assert converted.manifest.prior == inferred.manifest.prior
    assert converted.manifest.reference == report["reference"] == "float32 logits"
    for one, other in zip(converted.manifest.fidelity, inferred.manifest.fidelity, strict=True):
        assert one.rows == other.rows
        assert one.kl_mean == pytest.approx(other.kl_mean, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("codec", ["dense-f32", "dense-u8", "topk"])
def test_from_a_lossy_codec_it_says_so(
    labelled: Project, convert: Convert, codec: CodecName
) -> None:
    convert("labels", "half", "--codec", "dense-f16")
    report = convert("half", "again", "--codec", codec, *(("--k", "3") if codec == "topk" else ()))
    half, again = softlabel.open("half"), softlabel.open("again")
    assert derivation(again) == Derivation(
        verb="convert", parents=(half.identity,), codecs=("dense-f16",)
    )
    assert again.identity != softlabel.open("labels").identity
    assert again.manifest.reference == report["reference"] == "dense-f16"
    worst = max(report["kl_mean"].values())
    assert worst == 0 if codec == "dense-f32" else 0 < worst < 1
    if codec == "dense-f32":
        np.testing.assert_array_equal(all_rows(again).logits(), all_rows(half).logits())


def test_the_chain_of_codecs_grows(labelled: Project, convert: Convert) -> None:
    convert("labels", "half", "--codec", "dense-f16")
    convert("half", "bytes", "--codec", "dense-u8")
    convert("bytes", "exact", "--codec", "dense-f32")
    convert("exact", "sparse", "--codec", "topk", "--k", "4")
    sparse = softlabel.open("sparse")
    assert derivation(sparse).codecs == ("dense-f16", "dense-u8")
    assert sparse.manifest.reference == "dense-u8"
    assert softlabel.open("exact").manifest.reference == "dense-u8"


def test_the_prior_of_the_sets_own_rows(labelled: Project, convert: Convert) -> None:
    convert("labels", "half", "--codec", "dense-f16")
    prior = ("--codec", "topk", "--k", "3", "--tail", "prior")
    told = convert("half", "told", *prior)["kl_mean"]
    even = convert("half", "even", *prior[:-1], "uniform")["kl_mean"]
    assert sum(told.values()) < sum(even.values())
    narrower = convert("told", "narrower", "--k", "2")
    assert narrower["codec"] == "topk"
    manifests = [softlabel.open(name).manifest for name in ("told", "narrower")]
    assert manifests[0].prior == manifests[1].prior
    assert manifests[0].prior is not None
    assert [manifest.identity.tail for manifest in manifests] == ["prior", "prior"]
    assert "--tail prior" in manifests[0].making.command


def test_the_prior_of_a_subset_of_classes(labelled: Project, convert: Convert) -> None:
    Path("some.txt").write_text("\n".join(softlabel.open("labels").classes[2:8]))
    flags = ("--codec", "topk", "--k", "2", "--tail", "prior", "--classes", "some.txt")
    convert("labels", "part", *flags)
    part = softlabel.open("part")
    assert part.manifest.prior is not None
    assert len(part.manifest.prior) == part.num_classes == 6


def test_a_smaller_k(labelled: Project, convert: Convert) -> None:
    convert("labels", "seven", "--codec", "topk", "--k", "7")
    convert("labels", "three", "--codec", "topk", "--k", "3")
    convert("seven", "narrowed", "--k", "3")
    narrowed, three = all_rows(softlabel.open("narrowed")), all_rows(softlabel.open("three"))
    for name in ("ids", "logits"):
        np.testing.assert_array_equal(narrowed.payload[name], three.payload[name])
    np.testing.assert_allclose(
        narrowed.payload["tail_lse"], three.payload["tail_lse"], rtol=1e-2, atol=1e-3
    )
    assert derivation(softlabel.open("narrowed")).codecs == ("topk",)
    assert softlabel.open("narrowed").manifest.reference == "topk"


@pytest.mark.parametrize("codec", ["dense-f32", "dense-f16", "dense-u8", "topk"])
@pytest.mark.parametrize("shape", ["plain", "views", "positions"])
def test_factored_goes_through_its_head(
    empty_project: Project, convert: Convert, codec: str, shape: str
) -> None:
    before = small(Path("labels"), "factored", **SHAPES[shape])
    convert("labels", "other", "--codec", codec, *(("--k", "5") if codec == "topk" else ()))
    after = softlabel.open("other")
    assert derivation(after).codecs == ("factored",)
    assert after.manifest.identity.head_sha256 is None
    assert not Path("other/head.safetensors").exists()
    old, new = all_rows(before), all_rows(after)
    atol = {"dense-f32": 0, "dense-f16": 5e-3, "dense-u8": 0.05, "topk": 5e-3}[codec]
    np.testing.assert_allclose(new.logits(), old.logits(), rtol=0, atol=atol)
    np.testing.assert_array_equal(new.top1, old.top1)
    np.testing.assert_array_equal(new.shift, old.shift)


@pytest.mark.parametrize(
    ("stored", "flags", "said"),
    [
        ("topk", ("--codec", "dense-f16"), "infer again with --codec dense-f16"),
        ("topk", ("--codec", "topk", "--k", "4"), "pass --k 3 or less"),
        ("topk", ("--tail", "prior"), "infer again with --tail prior"),
        ("dense-f32", ("--codec", "factored"), "holds no features"),
    ],
)
def test_what_is_not_stored_cannot_be_had(
    empty_project: Project,
    command: Command,
    stored: CodecName,
    flags: tuple[str, ...],
    said: str,
) -> None:
    small(Path("labels"), stored)
    outcome = command("convert", "--output", "other", *flags)
    assert outcome.code == 3, outcome.stderr
    assert said in outcome.stderr
    assert not Path("other").exists()


def test_a_masked_class_has_no_place_in_a_byte(empty_project: Project, command: Command) -> None:
    masked(Path("labels"))
    outcome = command("convert", "--output", "bytes", "--codec", "dense-u8")
    assert outcome.code == 3
    assert "-inf" in outcome.stderr
    assert "'key-1'" in outcome.stderr
    assert command("convert", "--output", "half", "--codec", "dense-f16").code == 0


def masked(folder: Path) -> LabelSet:
    """Row `key-1` has nothing but -inf in its first three classes."""
    from softlabel.pipeline.codecs.codec import encode_rows

    packing = packing_of("dense-f32")
    block = block_of(packing, 4)
    logits = block.logits() + block.shift[:, None]
    logits[1, :3] = -np.inf
    rows = encode_rows(packing.codec, logits)
    changed = type(block)(
        block.keys, block.labels, rows.top1, rows.shift, rows.columns, packing.codec
    )
    return write_set(folder, packing, numbered([changed]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_other_shards(empty_project: Project, convert: Convert, shape: str, rows: int) -> None:
    before = small(Path("labels"), "dense-f16", **SHAPES[shape])
    convert("labels", "other", "--shard-rows", str(rows))
    after = softlabel.open("other")
    views = before.views
    assert {shard.rows for shard in after.manifest.shards[:-1]} <= {rows * views}
    assert after.manifest.aligned
    assert after.identity == before.identity
    assert after.manifest.fidelity[0].rows == before.manifest.fidelity[0].rows
    for old, new in zip(before.manifest.fidelity, after.manifest.fidelity, strict=True):
        assert new.kl_mean == pytest.approx(old.kl_mean)
    same(all_rows(after), all_rows(before))
    segments = [part for shard in after.manifest.shards for part in shard.segments]
    assert [part.first for part in segments] == list(range(0, len(before) // views, rows))
    for part in segments:
        same(after.read_source(part), before.read_source(part))


def test_larger_shards_join_touching_segments(labelled: Project, convert: Convert) -> None:
    convert("labels", "large", "--shard-rows", "400")
    large = softlabel.open("large").manifest
    found = [[(part.source, part.first, part.rows) for part in s.segments] for s in large.shards]
    assert found == [
        [("part-00000.parquet", 0, 300), ("part-00001.parquet", 0, 100)],
        [("part-00001.parquet", 100, 100)],
    ]
    receipt = Receipt.model_validate_json(Path("large/part-00000.json").read_bytes())
    assert [digest.name for digest in receipt.source] == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert large.statistics == softlabel.open("labels").manifest.statistics


def write_lines(path: str, lines: list[str]) -> str:
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "flags", [(), ("--shard-rows", "2"), ("--shard-rows", "9"), ("--layout", "sidecar")]
)
def test_a_subset_by_key(
    empty_project: Project, convert: Convert, shape: str, flags: tuple[str, ...]
) -> None:
    before = small(Path("labels"), "dense-f16", **SHAPES[shape])
    wanted = ["key-4", "key-1", "key-3"] if before.views > 1 else ["key-8", "key-1", "key-3"]
    convert("labels", "part", "--keys", write_lines("keys", wanted), *flags)
    after = softlabel.open("part")
    old = all_rows(before)
    rows = [row for row, key in enumerate(old.keys.to_pylist()) if key in wanted]
    same(all_rows(after), old.take(np.asarray(rows)))
    assert not after.manifest.aligned
    assert {shard.segments for shard in after.manifest.shards} == {()}
    assert derivation(after).codecs == ()
    assert derivation(after).parents == (before.identity,)
    in_order = "".join(f"{key}\n" for key in sorted(wanted))
    assert derivation(after).keys_sha256 == hashlib.sha256(in_order.encode()).hexdigest()
    assert after.manifest.fidelity == before.manifest.fidelity
    convert("labels", "again", "--keys", write_lines("other", sorted(wanted)), *flags)
    assert shards("again") == shards("part")
    found = after.lookup(wanted)
    assert found.keys.to_pylist() == wanted


def test_a_shard_without_kept_keys_is_left_out(labelled: Project, convert: Convert) -> None:
    keys = [f"sample-{row:06d}" for row in (0, 499, 81)]
    report = convert("labels", "part", "--keys", write_lines("keys", keys))
    assert (report["rows"], report["shards"]) == (3, 3)
    assert sorted(shard_files("part")) == [f"part-{index:05d}.parquet" for index in range(3)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["key-1", "", "key-2"], "line 2 is blank"),
        (["key-1", "key-2", "key-1"], "line 3: 'key-1' stands in line 1"),
        (["key-1", "key-99"], "line 2: key 'key-99' is not in labels"),
        ([], "line 1 is blank"),
    ],
)
def test_a_bad_list_of_keys(
    empty_project: Project, command: Command, lines: list[str], said: str
) -> None:
    small(Path("labels"), "dense-f16")
    keys = write_lines("keys", lines)
    outcome = command("convert", "--output", "part", "--keys", keys)
    assert outcome.code == 3, outcome.stderr
    assert f"keys: {said}" in outcome.stderr
    assert not Path("part").exists()


@pytest.mark.parametrize("codec", ["dense-f32", "dense-f16", "dense-u8", "factored"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_subset_of_classes(
    empty_project: Project, convert: Convert, codec: CodecName, shape: str
) -> None:
    if codec == "factored" and shape == "features":
        pytest.skip("factored stores the features already")
    before = small(Path("labels"), codec, **SHAPES[shape])
    report = convert("labels", "part", "--classes", write_lines("classes", ["e", "a", "c"]))
    after = softlabel.open("part")
    identity = after.manifest.identity
    assert after.classes == ("e", "a", "c")
    assert identity.class_map == derivation(after).class_ids == (4, 0, 2)
    assert derivation(after).codecs == (() if codec == "dense-f32" else (codec,))
    assert report["codec"] == codec
    assert max(report["kl_mean"].values()) < 1e-3
    old, new = all_rows(before), all_rows(after)
    chosen = old.logits()[:, [4, 0, 2]]
    highest = chosen.max(axis=1)
    atol = {"dense-f32": 0, "dense-f16": 3e-3, "dense-u8": 0.05, "factored": 1e-5}[codec]
    np.testing.assert_allclose(new.logits(), chosen - highest[:, None], rtol=0, atol=atol)
    np.testing.assert_array_equal(new.top1, chosen.argmax(axis=1))
    np.testing.assert_allclose(new.shift, old.shift + highest, rtol=1e-6)
    numbers = {4: 0, 0: 1, 2: 2}
    assert new.labels.to_pylist() == [numbers.get(label) for label in old.labels.to_pylist()]
    assert after.manifest.statistics.labelled == len(new.labels) - new.labels.null_count
    assert after.manifest.aligned


def test_classes_of_classes(labelled: Project, convert: Convert) -> None:
    convert("labels", "five", "--classes", write_lines("odd", list("97531")))
    convert("five", "two", "--classes", write_lines("few", list("37")))
    two = softlabel.open("two").manifest.identity
    assert two.class_map == (3, 7)
    assert two.classes == ("3", "7")


@pytest.mark.parametrize(
    ("codec", "lines", "said"),
    [
        ("topk", ["a", "b"], "missing for --classes"),
        ("dense-f16", ["a", "z"], "line 2: 'z' is no class"),
        ("dense-f16", ["a", "b", "a"], "line 3: 'a' stands in line 1"),
        ("dense-f16", ["a"], "names one class"),
    ],
)
def test_a_bad_list_of_classes(
    empty_project: Project, command: Command, codec: CodecName, lines: list[str], said: str
) -> None:
    small(Path("labels"), codec)
    flags = ("--classes", write_lines("classes", lines))
    outcome = command("convert", "--output", "part", *flags)
    assert outcome.code == 3, outcome.stderr
    assert said in outcome.stderr
    assert not Path("part").exists()


def test_a_row_with_nothing_but_masked_classes(empty_project: Project, command: Command) -> None:
    masked(Path("labels"))
    flags = ("--classes", write_lines("classes", ["c", "a"]))
    outcome = command("convert", "--output", "part", *flags)
    assert outcome.code == 3
    assert "nothing but -inf for key 'key-1'" in outcome.stderr
    flags = ("--classes", write_lines("classes", ["c", "f"]))
    assert command("convert", "--output", "other", *flags).code == 0


def drop_receipt(folder: Path) -> None:
    (folder / "part-00002.json").unlink()


def drop_shard(folder: Path) -> None:
    (folder / "part-00002.parquet").unlink()


def cut_shard(folder: Path) -> None:
    path = folder / "part-00002.parquet"
    path.write_bytes(path.read_bytes()[:-1])


def no_manifest(folder: Path) -> None:
    (folder / "labelset.json").unlink()
    drop_receipt(folder)


@pytest.mark.parametrize("damage", [drop_receipt, drop_shard, cut_shard, no_manifest])
@pytest.mark.parametrize(
    "flags", [("--codec", "dense-u8"), ("--layout", "lists"), ("--keys", "keys")]
)
def test_exactly_the_broken_shard_is_redone(
    labelled: Project, convert: Convert, damage: Callable[[Path], None], flags: tuple[str, ...]
) -> None:
    write_lines("keys", [f"sample-{row:06d}" for row in range(0, 500, 3)])
    convert("labels", "other", *flags)
    before = labelled.files("other")
    damage(Path("other"))
    report = convert("labels", "other", *flags)
    assert report["shards_kept"] == SHARDS - 1
    assert 0 < report["rows_written"] < 100
    assert labelled.files("other") == before
    assert convert("labels", "other", *flags)["rows_written"] == 0
    assert convert("labels", "other", *flags, "--overwrite")["rows_written"] == report["rows"]
    assert labelled.files("other") == before


def test_other_labels_in_the_way(labelled: Project, convert: Convert, command: Command) -> None:
    convert("labels", "other", "--codec", "dense-u8")
    before = labelled.files("other")
    flags = ("convert", "--output", "other", "--codec")
    outcome = command(*flags, "dense-f16")
    assert (outcome.code, "different: codec" in outcome.stderr) == (3, True)
    outcome = command(*flags, "dense-u8", "--layout", "lists")
    assert outcome.code == 3
    assert "--layout packed --codec dense-u8" in outcome.stderr
    outcome = command(*flags, "dense-u8", "--shard-rows", "10")
    assert outcome.code == 3
    assert labelled.files("other") == before
    convert("labels", "other", "--codec", "dense-f16", "--if-different", "replace")
    convert("labels", "fresh", "--codec", "dense-f16")
    assert labelled.files("other") == labelled.files("fresh")
    assert not Path("other.replaced").exists()


def test_the_same_command_over_the_same_labels_in_other_shards(
    labelled: Project, convert: Convert, command: Command
) -> None:
    convert("labels", "other", "--layout", "lists")
    before = labelled.files("other")
    convert("labels", "large", "--shard-rows", "200")
    flags = ("--labels", "large", "--output", "other", "--layout", "lists")
    outcome = command("convert", *flags)
    assert outcome.code == 3
    assert "in other shards" in outcome.stderr
    assert labelled.files("other") == before
    assert convert("large", "other", *flags[4:], "--if-different", "replace")["shards"] == 3


def test_infer_leaves_a_converted_set_alone(
    labelled: Project, convert: Convert, command: Command
) -> None:
    convert("labels", "copy", "--codec", "dense-f16")
    Path("copy/part-00003.parquet").unlink()
    before = labelled.files("copy")
    outcome = command(*INFER, "--codec", "dense-f16", "--output", "copy")
    assert outcome.code == 3
    assert "made by softlabel convert" in outcome.stderr
    assert "softlabel convert --labels LABELS --output OUTPUT" in outcome.stderr
    assert "--codec dense-f16" in outcome.stderr
    outcome = command("convert", "--codec", "dense-f16", "--output", "labels", "--labels", "copy")
    assert outcome.code == 3
    assert labelled.files("copy") == before


def test_an_unfinished_set_names_the_command_that_completes_it(
    labelled: Project, convert: Convert, command: Command
) -> None:
    convert("labels", "copy", "--codec", "dense-u8")
    no_manifest(Path("copy"))
    outcome = command("inspect", "--labels", "copy")
    assert outcome.code == 3
    assert "unfinished; run the same 'softlabel convert --labels LABELS" in outcome.stderr


@pytest.mark.parametrize("finished", [True, False])
def test_a_receipt_is_what_its_file_says(
    labelled: Project, convert: Convert, command: Command, finished: bool
) -> None:
    """The same record in other bytes: its digest is of the bytes, here as for `verify`."""
    convert("labels", "out")
    path = Path("out/part-00002.json")
    path.write_text(json.dumps(json.loads(path.read_text())))
    if not finished:
        Path("out/labelset.json").unlink()
    outcome = command("verify", "--labels", "out")
    assert outcome.code == (1 if finished else 3)
    report = convert("labels", "out")
    assert report["shards_kept"] == (SHARDS - 1 if finished else SHARDS)
    assert command("verify", "--labels", "out").code == 0
    recorded = softlabel.open("out", "full").manifest.shards[2].receipt_sha256
    assert recorded == hashlib.sha256(path.read_bytes()).hexdigest()
    assert convert("out", "again")["rows"] == 500


def spoil(old: str, new: str) -> Callable[[], object]:
    path = Path("out/labelset.json")
    return lambda: path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (spoil("{", ""), "labelset.json: is damaged"),
        (spoil('"output": "', '"output": "x'), "does not match its own digest"),
    ],
)
@pytest.mark.parametrize("planned", [True, False])
def test_a_damaged_manifest_names_the_command_that_made_it(
    labelled: Project,
    convert: Convert,
    command: Command,
    harm: Callable[[], object],
    said: str,
    planned: bool,
) -> None:
    convert("labels", "out")
    whole = Path("out/labelset.json").read_bytes()
    harm()
    made_by = "'softlabel convert --labels LABELS --output OUTPUT --layout packed"
    if not planned:
        Path("out/plan.json").unlink()
        made_by = "the command that made the set"
    for verb in ("verify", "inspect"):
        outcome = command(verb, "--labels", "out")
        assert outcome.code == 3
        assert said in outcome.stderr
        assert f"delete it and run {made_by}" in outcome.stderr
        assert "infer" not in outcome.stderr
    if planned:
        Path("out/labelset.json").unlink()
        assert convert("labels", "out")["rows_written"] == 0
        assert Path("out/labelset.json").read_bytes() == whole


def test_a_lost_plan_and_the_way_out(labelled: Project, convert: Convert, command: Command) -> None:
    Path("labels/plan.json").unlink()
    outcome = command("verify", "--labels", "labels")
    assert outcome.code == 1
    said = "plan.json is missing, without which no command goes on with this folder; restore the"
    assert said in " ".join(outcome.stdout.split())
    assert "'softlabel convert --labels labels --output NEW'" in outcome.stdout
    convert("labels", "NEW")
    assert command("verify", "--labels", "NEW").code == 0


def test_over_the_set_itself(labelled: Project, command: Command) -> None:
    before = labelled.files()
    for output in ("labels", "./labels/", "data/../labels"):
        outcome = command("convert", "--output", output, "--overwrite")
        assert outcome.code == 2, outcome.stderr
        assert "choose another --output" in outcome.stderr
    assert labelled.files() == before


@pytest.mark.parametrize(
    ("read", "output"),
    [
        ("labels", "labels/new"),
        ("labels/inner", "labels"),
        ("other.replaced", "other"),
        ("other.discarded", "other"),
    ],
)
def test_over_the_set_in_another_way(
    labelled: Project, command: Command, read: str, output: str
) -> None:
    if read != "labels":
        shutil.copytree("labels", read)
    before = {path: path.read_bytes() for path in Path(read).glob("*")}
    replace = ("--if-different", "replace", "--codec", "dense-f16")
    outcome = command("convert", "--labels", read, "--output", output, *replace)
    assert outcome.code == 2, outcome.stderr
    assert "lies in the way of" in outcome.stderr
    assert {path: path.read_bytes() for path in Path(read).glob("*")} == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--layout", "merged"), "layout 'merged' and source go together"),
        (("--source", "data"), "layout 'merged' and source go together"),
        (("--k", "3"), "is for codec topk"),
        (("--codec", "topk", "--k", "10"), "10 of 10 classes"),
        (("--codec", "topk"), "64 of 10 classes"),
        (("--keys", "absent"), "absent: the keys cannot be read"),
        (("--classes", "absent"), "absent: the classes cannot be read"),
        (("--shard-rows", "0"), "--shard-rows"),
        (("--layout", "merged", "--source", "data/train"), "names no .tar file"),
    ],
)
def test_bad_flags(labelled: Project, command: Command, flags: tuple[str, ...], said: str) -> None:
    outcome = command("convert", "--output", "other", *flags)
    assert outcome.code == 2, outcome.stderr
    assert said in outcome.stderr
    assert not Path("other").exists()


def test_a_damaged_parent(labelled: Project, command: Command) -> None:
    shutil.copy("labels/part-00001.json", "labels/part-00002.json")
    outcome = command("convert", "--output", "other")
    assert outcome.code == 3
    assert "part-00002.json" in outcome.stderr
    assert "verify" in outcome.stderr


def test_the_report_for_people(labelled: Project, command: Command) -> None:
    outcome = command("convert", "--output", "other", "--codec", "dense-u8")
    assert "500 rows in 7 shards, dense-u8 packed" in outcome.stdout
    assert "KL to the float32 logits" in outcome.stdout
    outcome = command("convert", "--output", "other", "--codec", "dense-u8")
    assert "nothing to do" in outcome.stdout


def test_no_trace_of_where_it_was_made(labelled: Project, convert: Convert) -> None:
    keys = write_lines(str(labelled.root / "keys"), ["sample-000007"])
    labels = str(labelled.root / "labels")
    convert(labels, str(labelled.root / "other"), "--keys", keys)
    for content in labelled.files("other").values():
        assert str(labelled.root).encode() not in content
    manifest = Manifest.model_validate_json(Path("other/labelset.json").read_bytes())
    assert manifest.making.command.endswith("--codec dense-f32 --keys KEYS")
