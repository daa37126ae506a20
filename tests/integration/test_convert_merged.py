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
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.shards.tar_members import tar_groups
from softlabel.schemas.labelset import CodecName
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


def test_tars_that_have_labels_already(
    empty_project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    small()
    write_tars()
    assert command(*MERGED, "tars").code == 0
    outcome = command("convert", "--output", "b", "--layout", "merged", "--source", "out")
    assert outcome.code == 3
    assert "holds soft labels already" in outcome.stderr
