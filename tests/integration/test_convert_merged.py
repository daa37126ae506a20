"""convert --layout merged: the source's own tars, each sample with its stored labels."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import softlabel
from softlabel.pipeline.deriving import merged_layout
from softlabel.pipeline.deriving.merged_layout import TarSource
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.shards.tar_members import tar_groups
from softlabel.schemas.labelset import CodecName, Receipt, ShardPlan
from tests.unit.blocks import block_of, packing_of, same
from tests.unit.label_sets import all_rows, numbered, write_set

if TYPE_CHECKING:
    from tests.conftest import Command, Project

MERGED = ("convert", "--output", "out", "--layout", "merged", "--source")
# Two tars, in another order than the labels.
TARS = ((5, 0, 3), (1, 4, 2, 6))


def small(codec: CodecName = "dense-f16", **shape: Any) -> LabelSet:
    packing = packing_of(codec, **shape)
    views = packing.identity.views
    blocks = [block_of(packing, rows * views, seed=rows) for rows in (4, 3)]
    return write_set(Path("labels"), packing, numbered(blocks, views))


def write_tars(tars: Sequence[Sequence[int]] = TARS, folder: str = "tars") -> None:
    Path(folder).mkdir(exist_ok=True)
    for index, rows in enumerate(tars):
        with tarfile.open(Path(folder) / f"{index}.tar", "w") as tar:
            for row in rows:
                for suffix, data in own_members(row):
                    member = tarfile.TarInfo(f"key-{row}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def own_members(row: int) -> list[tuple[str, bytes]]:
    return [(".jpg", bytes([row]) * 700), (".seg.png", b"mask"), (".cls", str(row).encode())]


@pytest.mark.parametrize("shape", [{}, {"views": 3}, {"features": True}])
@pytest.mark.parametrize("source", ["tars", "tars/*.tar"])
def test_each_sample_with_its_labels(
    empty_project: Project, command: Command, shape: dict[str, Any], source: str
) -> None:
    before = small(**shape)
    write_tars()
    outcome = command(*MERGED, source, "--json")
    assert outcome.code == 0, outcome.stderr
    after = softlabel.open("out")
    assert after.identity == before.identity
    assert after.manifest.fidelity == before.manifest.fidelity
    assert after.manifest.statistics == before.manifest.statistics
    assert not after.manifest.aligned
    order = [f"key-{row}" for tar in TARS for row in tar]
    views = np.tile(np.arange(before.views), len(order)) if before.views > 1 else 0
    every = [key for key in order for _ in range(before.views)]
    same(all_rows(after), before.lookup(every, views))
    for index, rows in enumerate(TARS):
        groups = list(tar_groups(Path(f"out/part-{index:05d}.tar")))
        assert [key for key, _ in groups] == [f"key-{row}" for row in rows]
        for row, (_, members) in zip(rows, groups, strict=True):
            assert members[:3] == own_members(row)
            assert {suffix[:11] for suffix, _ in members[3:]} == {".softlabel."}
            document = json.loads(dict(members)[".softlabel.json"])
            assert document["key"] == f"key-{row}"


def test_and_away_from_it(empty_project: Project, command: Command) -> None:
    before = small()
    write_tars()
    assert command(*MERGED, "tars").code == 0
    for layout in ("packed", "sidecar"):
        flags = ("--labels", "out", "--output", layout, "--layout", layout)
        assert command("convert", *flags).code == 0
        keys = [f"key-{row}" for row in range(7)]
        same(softlabel.open(layout).lookup(keys), before.lookup(keys))
    outcome = command("convert", "--labels", "out", "--output", "again", "--codec", "dense-u8")
    assert outcome.code == 2
    assert "pass --layout merged and --source, or another --layout" in outcome.stderr


@pytest.mark.parametrize("empty", [0, 1, 2], ids=["first", "between", "last"])
def test_an_empty_tar_becomes_an_empty_shard(
    empty_project: Project, command: Command, empty: int
) -> None:
    before = small()
    write_tars((*TARS[:empty], (), *TARS[empty:]))
    assert command(*MERGED, "tars").code == 0
    wanted = [shard.rows for shard in softlabel.open("out").manifest.shards]
    assert wanted[empty] == 0
    keys = [f"key-{row}" for row in range(7)]
    for layout in ("packed", "lists", "sidecar"):
        for more, rows in (((), wanted), (("--shard-rows", "3"), [3, 3, 1])):
            output = "-".join((layout, *more))
            flags = ("--labels", "out", "--output", output, "--layout", layout)
            outcome = command("convert", *flags, *more)
            assert outcome.code == 0, outcome.stderr
            after = softlabel.open(output, "full")
            assert [shard.rows for shard in after.manifest.shards] == rows
            assert after.manifest.fidelity == before.manifest.fidelity
            same(after.lookup(keys), before.lookup(keys))
            assert len(all_rows(after)) == 7
            assert command("verify", "--labels", output).code == 0


def test_in_another_codec_with_fewer_classes(empty_project: Project, command: Command) -> None:
    small("dense-f32")
    write_tars()
    Path("classes").write_text("d\nb\na\n")
    flags = ("--codec", "dense-u8", "--classes", "classes")
    outcome = command(*MERGED, "tars", *flags, "--json")
    assert outcome.code == 0, outcome.stderr
    assert max(json.loads(outcome.stdout)["kl_mean"].values()) > 0
    assert command("convert", "--output", "packed", *flags).code == 0
    packed, merged = softlabel.open("packed"), softlabel.open("out")
    assert merged.identity == packed.identity
    keys = [f"key-{row}" for row in range(7)]
    same(merged.lookup(keys), packed.lookup(keys))


@pytest.mark.parametrize(
    ("tars", "said"),
    [
        (((5, 0, 3), (1, 4, 2)), "key 'key-6' has a label and no sample"),
        ((*TARS, (7,)), "2.tar: sample 'key-7' has no label in labels"),
        ((*TARS, (2,)), "key 'key-2' stands in tars/1.tar and tars/2.tar"),
    ],
)
def test_samples_and_labels_must_meet(
    empty_project: Project, command: Command, tars: Sequence[Sequence[int]], said: str
) -> None:
    small()
    write_tars(tars)
    outcome = command(*MERGED, "tars")
    assert outcome.code == 3, outcome.stderr
    assert said in outcome.stderr
    assert not Path("out").exists()


def test_exactly_the_broken_shard_is_redone(empty_project: Project, command: Command) -> None:
    small()
    write_tars()
    assert command(*MERGED, "tars").code == 0
    before = empty_project.files("out")
    data = bytearray(before["part-00000.tar"])
    data[2000] ^= 1
    Path("out/part-00000.tar").write_bytes(data)
    outcome = command(*MERGED, "tars", "--json")
    report = json.loads(outcome.stdout)
    assert (report["rows_written"], report["shards_kept"]) == (3, 1)
    assert empty_project.files("out") == before


@pytest.mark.parametrize(
    "flags", [("--shard-rows", "5"), ("--keys", "keys")], ids=["shards", "keys"]
)
def test_the_tars_decide_the_shards(
    empty_project: Project, command: Command, flags: tuple[str, ...]
) -> None:
    small()
    write_tars()
    outcome = command(*MERGED, "tars", *flags)
    assert outcome.code == 2
    assert "leave" in outcome.stderr


def test_the_shard_of_a_tar_that_changed_is_redone(
    empty_project: Project, command: Command
) -> None:
    """Same keys, same counts: only the tar's bytes tell, and the receipt knows them."""
    small()
    write_tars()
    assert command(*MERGED, "tars").code == 0
    receipts = [receipt(index).source for index in range(2)]
    assert [[digest.name for digest in source] for source in receipts] == [["0.tar"], ["1.tar"]]
    for (digest,), path in zip(receipts, sorted(Path("tars").iterdir()), strict=True):
        assert (digest.bytes, digest.sha256) == (path.stat().st_size, file_sha256(path))
    before = empty_project.files("out")
    assert json.loads(command(*MERGED, "tars", "--json").stdout)["rows_written"] == 0
    tar = Path("tars/1.tar")
    tar.write_bytes(tar.read_bytes().replace(b"mask", b"flag"))
    outcome = command(*MERGED, "tars", "--json")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert (report["rows_written"], report["shards_kept"]) == (4, 1)
    assert dict(next(tar_groups(Path("out/part-00001.tar")))[1])[".seg.png"] == b"flag"
    after = empty_project.files("out")
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"part-00001.tar", "part-00001.json", "labelset.json"}
    assert receipt(1).source[0].sha256 == file_sha256(tar)


def test_a_tar_that_changes_on_the_way_gives_no_shard(
    empty_project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    small()
    write_tars()
    tar = Path("tars/1.tar")
    shards = TarSource.shards

    def change(source: TarSource, labels: LabelSet) -> tuple[ShardPlan, ...]:
        found = shards(source, labels)
        tar.write_bytes(tar.read_bytes().replace(b"mask", b"flag"))
        return found

    monkeypatch.setattr(TarSource, "shards", change)
    outcome = command(*MERGED, "tars")
    assert outcome.code == 3
    assert "tars/1.tar: changed while it was read; run the command again" in outcome.stderr
    assert sorted(empty_project.files("out")) == ["part-00000.json", "part-00000.tar", "plan.json"]


def receipt(index: int) -> Receipt:
    return Receipt.model_validate_json(Path(f"out/part-{index:05d}.json").read_bytes())


def test_verify_takes_the_tars_for_no_source_shards(project: Project, command: Command) -> None:
    """What receipts say of tars is no claim about the source that was labelled."""
    assert command("infer").code == 0
    keys = softlabel.open("labels").to_arrow()["key"].to_pylist()
    Path("tars").mkdir()
    with tarfile.open("tars/0.tar", "w") as tar:
        for key in keys:
            tar.addfile(tarfile.TarInfo(f"{key}.txt"), io.BytesIO())
    assert command(*MERGED, "tars").code == 0
    outcome = command("verify", "--labels", "out", "--source", "data/train", "--replay", "8")
    assert outcome.code == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("source", ["*.tar", "folder", "folder/*"])
def test_a_folder_that_is_named_like_a_tar(
    empty_project: Project, command: Command, source: str
) -> None:
    small()
    Path("x.tar").mkdir()
    Path("folder/x.tar").mkdir(parents=True)
    outcome = command(*MERGED, source)
    assert outcome.code == 2
    assert outcome.stderr.startswith("softlabel: error: source: ")
    assert "x.tar is a folder and no tar; move it away" in outcome.stderr
    assert not Path("out").exists()
    write_tars(folder="x.tar")
    assert command(*MERGED, "x.tar").code == 0


def test_a_tar_that_cannot_be_read(
    empty_project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    small()
    write_tars()
    monkeypatch.setattr(merged_layout, "HashingReader", refuse)
    outcome = command(*MERGED, "tars")
    assert outcome.code == 4
    assert "tars/0.tar: cannot be read (Permission denied); mend this" in outcome.stderr


def test_tars_that_have_labels_already(
    empty_project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    small()
    write_tars()
    assert command(*MERGED, "tars").code == 0
    outcome = command("convert", "--output", "b", "--layout", "merged", "--source", "out")
    assert outcome.code == 3
    assert "holds soft labels already" in outcome.stderr
