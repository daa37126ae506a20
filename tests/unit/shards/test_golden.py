"""The golden label sets: written once, and read the same for ever."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest

import softlabel
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import (
    FORMAT_VERSION,
    HEAD_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    REJECTS_FILE,
    SHARD_METADATA_KEY,
    CodecName,
    Derivation,
    ExecutionRecord,
    Fidelity,
    Identity,
    Layout,
    Making,
    Manifest,
    ManifestShard,
    MeasuredFidelity,
    Plan,
    Receipt,
    Reject,
    Rejects,
    Segment,
    ShardPlan,
    SourceDigest,
    SourceFile,
    Statistics,
    canonical_json,
    sha256_of,
)
from softlabel.schemas.model import Record
from softlabel.schemas.params import VerifyParams
from softlabel.schemas.teacher import Preprocess
from softlabel.stages import verify

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
SUMS = GOLDEN / "SHA256SUMS"
FORMAT = GOLDEN.parent.parent / "docs" / "format.md"
NAMES = sorted({line.split("  ")[1].split("/")[0] for line in SUMS.read_text().splitlines()})
RECORDS: tuple[type[Record], ...] = (
    Manifest,
    ManifestShard,
    MeasuredFidelity,
    Plan,
    ShardPlan,
    ExecutionRecord,
    Receipt,
    Reject,
    Rejects,
    Fidelity,
    Statistics,
    Identity,
    SourceFile,
    SourceDigest,
    Segment,
    Making,
    Derivation,
    Preprocess,
)
# Expected values have seven digits; float32 sums and exponentials lose a little more.
RELATIVE, ABSOLUTE = 5e-6, 1e-7


def expectation(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / name / "expected.json").read_text("utf-8"))
    return found


def read(name: str) -> LabelBlock:
    labels = softlabel.open(GOLDEN / name / "labels", check="full")
    return concat_blocks(list(labels.batches(3)))


def expect_targets(found: Iterable[Any], wanted: list[list[float]]) -> None:
    assert np.asarray(list(found)) == pytest.approx(np.asarray(wanted), rel=RELATIVE, abs=ABSOLUTE)


def expect_block(block: LabelBlock, wanted: dict[str, Any]) -> None:
    assert block.keys.to_pylist() == wanted["keys"]
    assert block.labels.to_pylist() == wanted["labels"]
    assert block.top1.tolist() == wanted["top1"]
    assert block.shift.tolist() == wanted["shift"]
    for name in ("views", "lengths", "features"):
        values = getattr(block, name)
        assert (None if values is None else values.tolist()) == wanted.get(name)
    for T, targets in wanted["targets"].items():
        probs = block.probs(float(T))
        expect_targets(probs, targets)
        assert probs.argmax(axis=1).tolist() == wanted["top1"]


def test_not_a_byte_has_changed() -> None:
    lines = [line.split("  ") for line in SUMS.read_text("utf-8").splitlines()]
    listed = {name: digest for digest, name in lines}
    found = {
        path.relative_to(GOLDEN).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in GOLDEN.rglob("*")
        if path.is_file() and path != SUMS
    }
    assert found == listed


def test_every_codec_stands_in_every_layout() -> None:
    for layout in ("packed", "lists", "sidecar", "merged"):
        for codec in ("dense-f32", "dense-f16", "dense-u8", "topk", "factored"):
            assert f"{codec}-{layout}" in NAMES
            rest = "" if codec == "factored" else "-features"
            assert f"{codec}-{layout}-views-positions{rest}" in NAMES
        for kind in ("dense-f16-{}-views", "dense-f16-{}-positions", "dense-f16-{}-features"):
            assert kind.format(layout) in NAMES
        assert f"topk-{layout}-prior" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_as_it_was_written(name: str) -> None:
    expect_block(read(name), expectation(name))


@pytest.mark.parametrize("name", NAMES)
def test_verify_finds_nothing_wrong(name: str) -> None:
    assert verify.run(VerifyParams(labels=GOLDEN / name / "labels")).problems == ()


@pytest.mark.parametrize("name", NAMES)
def test_its_rows_are_found_by_key(name: str, tmp_path: Path) -> None:
    labels = softlabel.open(GOLDEN / name / "labels", cache=tmp_path)
    whole = read(name)
    rows = list(reversed(range(len(whole))))
    views = 0 if whole.views is None else whole.views[rows].astype(np.int64)
    found = labels.lookup([whole.keys[row].as_py() for row in rows], views)
    wanted = whole.take(np.asarray(rows))
    assert found.keys.to_pylist() == wanted.keys.to_pylist()
    assert found.labels.to_pylist() == wanted.labels.to_pylist()
    assert found.probs(2.5).tolist() == wanted.probs(2.5).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_its_records_are_canonical(name: str) -> None:
    folder = GOLDEN / name / "labels"
    manifest = softlabel.open(folder).manifest
    assert (folder / "labelset.json").read_bytes() == canonical_json(manifest)
    for shard in manifest.shards:
        assert sha256_of((folder / f"{shard.name}.json").read_bytes()) == shard.receipt_sha256
    # As docs/format.md says: the identity's own lines, two spaces to the left.
    text = (folder / "labelset.json").read_text("utf-8")
    lines = text[text.index('  "identity": {') :].split("\n  }", 1)[0].splitlines()
    dedented = "\n".join(["{", *(line[2:] for line in lines[1:]), "}"]) + "\n"
    assert sha256_of(dedented.encode()) == manifest.identity_sha256


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", FORMAT.read_text("utf-8"), re.DOTALL)


def test_the_documented_reader_is_short_and_knows_nothing_of_softlabel() -> None:
    (code,) = [code for code in examples() if "def read_labels" in code]
    assert len([line for line in code.splitlines() if line.strip()]) <= 35
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    assert imported <= {"json", "pathlib", "numpy", "pyarrow"}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in NAMES
        if "-packed" in name and not re.search("factored|positions|prior", name)
    ],
)
@pytest.mark.parametrize("T", ["1", "4"])
def test_the_documented_reader_reads_packed_sets(name: str, T: str) -> None:
    (code,) = [code for code in examples() if "def read_labels" in code]
    space: dict[str, Any] = {}
    exec(code, space)
    rows = list(space["read_labels"](GOLDEN / name / "labels", float(T)))
    wanted = expectation(name)
    assert [row["key"] for row in rows] == wanted["keys"]
    assert [row["label"] for row in rows] == wanted["labels"]
    expect_targets([row["target"] for row in rows], wanted["targets"][T])


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_is_documented(record: type[Record]) -> None:
    documented = set(re.findall(r"`(\w+)`", FORMAT.read_text("utf-8")))
    assert set(record.model_fields) <= documented


def test_what_a_shard_says_of_itself_is_documented() -> None:
    documented = set(re.findall(r'[`"](\w+)[`"]', FORMAT.read_text("utf-8")))
    for path in GOLDEN.glob("*-packed*/labels/*.parquet"):
        assert json.loads(pq.read_metadata(path).metadata[SHARD_METADATA_KEY]).keys() <= documented


def test_every_name_is_documented() -> None:
    text = FORMAT.read_text("utf-8")
    files = (MANIFEST_FILE, PLAN_FILE, HEAD_FILE, REJECTS_FILE)
    for name in (*get_args(CodecName), *get_args(Layout), *files):
        assert f"`{name}`" in text
    assert f"`format_version` is {FORMAT_VERSION} in every record" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2}, "says format_version = 2, which this softlabel does not know"),
        ({"colour": "blue"}, "says colour = 'blue', which this softlabel does not know"),
        ({"layout": "columns"}, "says layout = 'columns', which this softlabel does not know"),
        ({"rows": "many"}, "is damaged"),
        ({"identity_sha256": "0" * 64}, "its identity does not match its own digest"),
    ],
)
def test_what_a_reader_must_refuse(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = tmp_path / "labels"
    shutil.copytree(GOLDEN / "dense-f16-packed" / "labels", folder)
    path = folder / "labelset.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change))
    with pytest.raises(DataError, match=re.escape(said)):
        softlabel.open(folder)


@pytest.mark.parametrize("layout", ["sidecar", "merged"])
def test_a_tar_that_changed_is_refused_before_its_first_row(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "labels"
    shutil.copytree(GOLDEN / f"dense-f16-{layout}" / "labels", folder)
    path = folder / "part-00000.tar"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"shift": ', b'"shift":9'))
    with pytest.raises(DataError, match=r"part-00000\.tar: its SHA-256 is not"):
        next(softlabel.open(folder).batches(1))
