import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import softlabel
from softlabel.pipeline.codecs.numerics import softmax
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.shards import parquet as parquet_shards
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import (
    Manifest,
    Receipt,
    Segment,
    canonical_json,
    sha256_of,
)
from tests.unit.blocks import block_of, packing_of, write_set
from tests.unit.builders import (
    CLASSES,
    TEMPERATURES,
    encode_half,
    make_plan,
    samples,
    teacher,
    write_labels,
    write_source,
)

SHARDS = (10, 3, 21)
ROWS = sum(SHARDS)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_source(tmp_path / "data", SHARDS)


@pytest.fixture
def folder(tmp_path: Path, source: Source) -> Path:
    """34 rows in label shards of at most 8."""
    return write_labels(tmp_path / "labels", source, batch_size=4, shard_rows=8)


def expect(block: LabelBlock, rows: int, first: int = 0) -> None:
    given = samples(rows, first)
    wanted = encode_half(teacher(given.inputs), TEMPERATURES)
    assert len(block) == rows
    assert block.keys.equals(given.keys)
    assert block.labels.equals(given.labels)
    assert np.array_equal(block.payload["logits"], wanted.payload)
    assert np.array_equal(block.shift, wanted.shift)
    assert np.array_equal(block.top1, wanted.top1)
    assert np.array_equal(block.payload["lse"], wanted.lse)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_set_tells_what_it_holds(folder: Path, source: Source) -> None:
    labels = softlabel.open(folder)
    assert isinstance(labels, LabelSet)
    assert (len(labels), labels.num_classes) == (ROWS, 4)
    assert (labels.classes, labels.temperatures) == (CLASSES, TEMPERATURES)
    assert labels.identity == make_plan(source).identity.digest()
    assert len(labels.manifest.shards) > len(SHARDS)


@pytest.mark.parametrize("rows", [1, 3, 8, 11, 34, 1000])
def test_batches_are_all_rows_in_order(folder: Path, rows: int) -> None:
    blocks = list(open_labelset(folder).batches(rows))
    assert [len(block) for block in blocks[:-1]] == [rows] * (len(blocks) - 1)
    assert 0 < len(blocks[-1]) <= rows
    expect(concat_blocks(blocks), ROWS)


def test_batches_can_be_read_again(folder: Path) -> None:
    labels = open_labelset(str(folder))
    next(labels.batches(5))
    expect(concat_blocks(list(labels.batches(5))), ROWS)


def test_the_labels_of_any_source_rows(folder: Path, source: Source) -> None:
    labels = open_labelset(folder)
    start = 0
    for file in source.files:
        for first in range(file.rows):
            for rows in {1, 2, 9, file.rows - first}:
                if first + rows <= file.rows:
                    block = labels.read_source(Segment(source=file.name, first=first, rows=rows))
                    expect(block, rows, start + first)
        start += file.rows


def test_row_groups_make_no_difference(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_shards, "ROW_GROUP_BYTES", 3 * 80)
    labels = open_labelset(write_labels(tmp_path / "cut", source))
    expect(concat_blocks(list(labels.batches(7))), ROWS)
    expect(labels.read_source(Segment(source="part-00002.parquet", first=2, rows=17)), 17, 15)


def test_rows_without_labels_are_named(folder: Path) -> None:
    labels = open_labelset(folder)
    for name, first, rows, missing in (
        ("part-00000.parquet", 8, 3, 10),
        ("part-00001.parquet", 3, 1, 3),
        ("part-00009.parquet", 0, 1, 0),
    ):
        wanted = rf"labels: has no labels for {name} row {missing}; run 'softlabel infer' over"
        with pytest.raises(DataError, match=wanted):
            labels.read_source(Segment(source=name, first=first, rows=rows))


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
def test_temperature_is_applied_when_a_label_is_read(folder: Path, T: float) -> None:
    (block,) = open_labelset(folder).batches(ROWS)
    wanted = softmax(teacher(samples(ROWS).inputs), T)
    assert block.probs(T).dtype == np.float32
    assert np.allclose(block.probs(T), wanted, atol=1e-3)
    assert np.allclose(block.probs(T).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("T", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(folder: Path, T: float) -> None:
    block = next(open_labelset(folder).batches(4))
    with pytest.raises(ValueError, match=f"temperature must be .*, got {T}"):
        block.probs(T)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, source: Source) -> None:
    one = write_labels(tmp_path / "one", source, shard_rows=8)
    two = write_labels(tmp_path / "two", source, shard_rows=8)
    assert bytes_of(one) == bytes_of(two)
    assert str(tmp_path).encode() not in b"".join(bytes_of(one).values())


def test_reading_changes_nothing_in_the_folder(folder: Path) -> None:
    before = bytes_of(folder)
    list(open_labelset(folder).batches(5))
    assert bytes_of(folder) == before


def test_a_missing_folder_is_a_parameter_error(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"absent: no such label set; make it with 'softlabel"):
        open_labelset(tmp_path / "absent")


def test_a_file_is_no_label_set(folder: Path) -> None:
    with pytest.raises(ParameterError, match=r"plan\.json: is a file; a label set is a folder"):
        open_labelset(folder / "plan.json")


def test_folders_where_files_belong(tmp_path: Path, folder: Path) -> None:
    for name in ("labelset.json", "part-00001.json"):
        broken = Path(shutil.copytree(folder, tmp_path / name / "labels"))
        (broken / name).unlink()
        (broken / name).mkdir()
        with pytest.raises(DataError, match=r"run the same 'softlabel infer'|--repair"):
            open_labelset(broken, "full")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no label set \(no labelset\.json\); make one with"):
        open_labelset(tmp_path)


def test_an_unfinished_set_is_named_as_such(folder: Path) -> None:
    (folder / "labelset.json").unlink()
    with pytest.raises(DataError, match="the label set is unfinished; run the same 'softlabel inf"):
        open_labelset(folder)


Harm = Callable[[Path], object]

HARMS: dict[str, Harm] = {
    "shard gone": lambda folder: (folder / "part-00001.parquet").unlink(),
    "receipt gone": lambda folder: (folder / "part-00001.json").unlink(),
    "shard cut": lambda folder: cut(folder / "part-00001.parquet"),
    "shard grown": lambda folder: grow(folder / "part-00001.parquet"),
    "shard a dangling link": lambda folder: dangle(folder / "part-00001.parquet"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "gone from the cache")


@pytest.mark.parametrize("harm", HARMS)
def test_a_broken_set_is_refused_on_opening(folder: Path, harm: str) -> None:
    HARMS[harm](folder)
    wanted = r"part-00001\.parquet: is missing, .* or not \d+ bytes long; run 'softlabel verify"
    with pytest.raises(DataError, match=wanted):
        open_labelset(folder)


def test_links_to_a_cache_are_followed(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "cache")
    for path in folder.iterdir():
        path.unlink()
        path.symlink_to(tmp_path / "cache" / path.name)
    expect(concat_blocks(list(open_labelset(folder).batches(9))), ROWS)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / "labelset.json").write_bytes(content)
    with pytest.raises(DataError, match=r"labelset\.json: is damaged \(.*\); delete it and run"):
        open_labelset(folder)


def test_an_edited_identity_is_refused(folder: Path) -> None:
    path = folder / "labelset.json"
    document = json.loads(path.read_bytes())
    document["identity"]["classes"] = document["identity"]["classes"][::-1]
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="its identity does not match its own digest"):
        open_labelset(folder)


def test_a_flipped_bit_is_noticed_when_the_row_is_read(folder: Path) -> None:
    path = folder / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    row = encode_half(teacher(samples(1, 9).inputs), TEMPERATURES).payload.tobytes()
    data[data.index(row)] ^= 1
    path.write_bytes(data)
    labels = open_labelset(folder)
    with pytest.raises(DataError, match=r"part-00001\.parquet"):
        list(labels.batches(5))


def test_a_shard_of_another_set_is_refused(tmp_path: Path, folder: Path) -> None:
    other = write_source(tmp_path / "other", SHARDS, first=1)
    strange = write_labels(tmp_path / "strange", other, batch_size=4, shard_rows=8)
    (folder / "part-00000.parquet").write_bytes((strange / "part-00000.parquet").read_bytes())
    with pytest.raises(DataError, match=r"part-00000\.parquet"):
        list(open_labelset(folder).batches(5))


def test_the_manifest_is_canonical(folder: Path) -> None:
    manifest = open_labelset(folder).manifest
    assert (folder / "labelset.json").read_bytes() == canonical_json(manifest)
    assert manifest.statistics.labelled == ROWS
    top1 = teacher(samples(ROWS).inputs).argmax(axis=1)
    assert manifest.statistics.correct == int((top1 == samples(ROWS).hard_labels()).sum())
    assert [item.temperature for item in manifest.fidelity] == list(TEMPERATURES)
    assert all(0 <= item.kl_mean < 1e-5 for item in manifest.fidelity)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def grow_line(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def swap(one: Path, other: Path) -> tuple[Path, Path]:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return one, other


def bring(folder: Path, strange: Path, *names: str) -> None:
    for name in names:
        shutil.copy(strange / name, folder / name)


def bring_with_papers(folder: Path, strange: Path) -> None:
    """A shard of another run whose receipt and line in the manifest say that all is well."""
    bring(folder, strange, "part-00001.parquet")
    data = (folder / "part-00001.parquet").read_bytes()
    manifest = Manifest.model_validate_json((folder / "labelset.json").read_bytes())
    receipt = Receipt.model_validate_json((folder / "part-00001.json").read_bytes())
    receipt = receipt.model_copy(update={"bytes": len(data), "sha256": sha256_of(data)})
    (folder / "part-00001.json").write_bytes(canonical_json(receipt))
    shards = list(manifest.shards)
    digests = {
        "bytes": len(data),
        "sha256": sha256_of(data),
        "receipt_sha256": sha256_of(canonical_json(receipt)),
    }
    shards[1] = shards[1].model_copy(update=digests)
    manifest = manifest.model_copy(update={"shards": tuple(shards)})
    (folder / "labelset.json").write_bytes(canonical_json(manifest))


FAULTS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a flipped bit": (
        lambda folder, _: flip(folder / "part-00002.parquet"),
        r"part-00002\.parquet: the file's SHA-256 is not the one in the manifest",
    ),
    "a truncated file": (
        lambda folder, _: cut(folder / "part-00002.parquet"),
        r"part-00002\.parquet: is missing, without receipt, or not \d+ bytes long",
    ),
    "a missing receipt": (
        lambda folder, _: (folder / "part-00002.json").unlink(),
        r"part-00002\.parquet: is missing, without receipt, or",
    ),
    "a damaged receipt": (
        lambda folder, _: (folder / "part-00002.json").write_text("{}"),
        r"part-00002\.json: the receipt is damaged",
    ),
    "a receipt of its own making": (
        lambda folder, _: grow_line(folder / "part-00002.json"),
        r"part-00002\.json: the receipt is not the one in the manifest",
    ),
    "a swapped pair of shards": (
        lambda folder, _: swap(folder / "part-00001.parquet", folder / "part-00003.parquet"),
        r"part-00001\.parquet: ",
    ),
    "a pair of shards swapped with their receipts": (
        lambda folder, _: [
            swap(folder / f"part-00001.{suffix}", folder / f"part-00003.{suffix}")
            for suffix in ("parquet", "json")
        ],
        r"part-00001\.",
    ),
    "a shard of another run": (
        lambda folder, strange: bring(folder, strange, "part-00001.parquet"),
        r"part-00001\.parquet: ",
    ),
    "a shard of another run with its receipt": (
        lambda folder, strange: bring(folder, strange, "part-00001.parquet", "part-00001.json"),
        r"part-00001\.",
    ),
    "a shard of another run that all papers agree to": (
        bring_with_papers,
        r"part-00001\.parquet: columns or metadata are not those of this label set",
    ),
    "a shard too many": (
        lambda folder, _: shutil.copy(folder / "part-00001.parquet", folder / "part-00099.parquet"),
        r"labels: part-00099\.parquet does not belong here",
    ),
}


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """Another run over as many samples."""
    other = write_source(tmp_path / "other", SHARDS, first=1)
    return write_labels(tmp_path / "strange", other, batch_size=4, shard_rows=8)


def test_a_whole_set_passes_the_full_check(folder: Path) -> None:
    expect(concat_blocks(list(softlabel.open(folder, check="full").batches(9))), ROWS)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_full_check_finds(folder: Path, strange: Path, fault: str) -> None:
    harm, problem = FAULTS[fault]
    harm(folder, strange)
    with pytest.raises(DataError, match=rf"{problem}.*; run 'softlabel verify .*--labels "):
        open_labelset(folder, check="full")


def test_plain_opening_reads_no_receipt_and_no_shard(folder: Path) -> None:
    for path in folder.glob("part-*"):
        data = path.read_bytes()
        path.write_bytes(b"x" * len(data))
    assert len(open_labelset(folder)) == ROWS


def test_plain_opening_lists_the_folder_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ten thousand shards cost one listing and not twenty thousand questions."""
    asked: list[str] = []
    scan = os.scandir

    def listing(path: Path) -> Any:
        asked.append(str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", listing)
    open_labelset(folder)
    assert asked == [str(folder)]


def test_another_check_is_refused(folder: Path) -> None:
    with pytest.raises(ParameterError, match="check must be 'manifest' or 'full', got 'deep'"):
        open_labelset(folder, check="deep")  # type: ignore[arg-type]


def test_all_rows_as_one_table(folder: Path) -> None:
    table = open_labelset(folder).to_arrow()
    frame = table.to_pandas()
    wanted = encode_half(teacher(samples(ROWS).inputs), TEMPERATURES)
    assert frame["key"].tolist() == samples(ROWS).keys.to_pylist()
    assert np.array_equal(np.stack(frame["logits"].to_list()), wanted.payload)


def test_a_sources_rows_with_views(tmp_path: Path) -> None:
    packing = packing_of("dense-f16", views=3)
    block = block_of(packing, 30)
    shards = [block.slice(0, 12), block.slice(12, 18)]
    segments = [
        (segment("a", 5, 2), segment("b", 0, 2)),
        (segment("b", 2, 1), segment("a", 0, 5)),
    ]
    labels = softlabel.open(write_set(tmp_path / "labels", packing, shards))
    lines = [
        line.model_copy(update={"segments": parts})
        for line, parts in zip(labels.manifest.shards, segments, strict=True)
    ]
    manifest = labels.manifest.model_copy(update={"aligned": True, "shards": tuple(lines)})
    aligned = LabelSet(labels.folder, manifest)
    for name, first, rows, numbers in (
        ("a", 5, 2, range(0, 6)),
        ("b", 1, 2, range(9, 15)),
        ("a", 4, 3, [*range(27, 30), *range(0, 6)]),
    ):
        got = aligned.read_source(segment(name, first, rows))
        assert got.to_arrow().equals(block.take(np.asarray(numbers)).to_arrow())


def test_a_set_without_alignment_is_not_read_by_source_row(tmp_path: Path) -> None:
    packing = packing_of("dense-f16")
    labels = softlabel.open(write_set(tmp_path / "labels", packing, [block_of(packing, 4)]))
    with pytest.raises(DataError, match=r"labels: is not aligned with its source, .* by key"):
        labels.read_source(segment("a", 0, 1))


def segment(source: str, first: int, rows: int) -> Segment:
    return Segment(source=source, first=first, rows=rows)
