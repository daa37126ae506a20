import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.labelset.stream import LabelStream
from softlabel.pipeline.shards import parquet as parquet_shards
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.shards.parquet_columns import to_block
from softlabel.schemas.errors import DataError, IdentityError, ParameterError
from tests.unit.blocks import block_of, packing_of, write_set
from tests.unit.builders import write_labels, write_source

PACKING = packing_of("dense-f16")
SHARDS = (5, 1, 8, 3, 7)
ROWS = sum(SHARDS)


def written(folder: Path, sizes: Sequence[int], **packing: Any) -> LabelSet:
    """A label set whose shards have these sizes."""
    chosen = packing_of("dense-f16", **packing) if packing else PACKING
    lengths = [row % 4 for row in range(sum(sizes))] if packing.get("positions") else None
    whole = block_of(chosen, sum(sizes), lengths)
    first = 0
    shards = []
    for size in sizes:
        shards.append(whole.slice(first, size))
        first += size
    return open_labelset(write_set(folder, chosen, shards))


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelSet:
    return written(tmp_path_factory.mktemp("stream") / "labels", SHARDS)


def numbers(blocks: Sequence[LabelBlock]) -> list[int]:
    keys = [key for block in blocks for key in block.keys.to_pylist()]
    return [int(key.removeprefix("s/").removesuffix(".é")) for key in keys]


def part(labels: LabelSet, index: int, parts: int, rows: int = 4) -> list[int]:
    return numbers(list(labels.batches(rows, part=(index, parts))))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "labels"]


def advance(stream: LabelStream, blocks: int) -> list[int]:
    """The rows of the next so many blocks, or of those that are left."""
    got = [block for _, block in zip(range(blocks), stream, strict=False)]
    return numbers(got)


def parts_of(
    labels: LabelSet, rows: int, parts: int, resume: Sequence[dict[str, Any]] = ()
) -> list[LabelStream]:
    return [labels.batches(rows, part=(index, parts), resume=resume) for index in range(parts)]


@pytest.mark.parametrize("rows", [1, 2, 5, 24, 100])
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 9])
def test_the_parts_are_every_row_once_in_whole_shards(
    labels: LabelSet, rows: int, parts: int
) -> None:
    seen = [part(labels, index, parts, rows) for index in range(parts)]
    assert sorted(number for numbers in seen for number in numbers) == list(range(ROWS))
    starts = np.cumsum([0, *SHARDS])
    for shard, first in enumerate(starts[:-1]):
        whole = list(range(first, first + SHARDS[shard]))
        assert [number for number in seen[shard % parts] if number in whole] == whole


def test_all_blocks_but_the_last_are_full(labels: LabelSet) -> None:
    assert [len(block) for block in labels.batches(7)] == [7, 7, 7, 3]
    assert [len(block) for block in labels.batches(6, part=(1, 3))] == [6, 2]
    assert list(labels.batches(6, part=(7, 8))) == []


def test_a_block_in_one_row_group_is_a_view_of_it(labels: LabelSet) -> None:
    blocks = list(labels.batches(2, part=(2, 5)))
    assert len(blocks) == 4
    values = [block.payload["logits"] for block in blocks]
    first = values[0].__array_interface__["data"][0]
    places = [array.__array_interface__["data"][0] - first for array in values]
    assert places == [0, *(2 * index * values[0].strides[0] for index in (1, 2, 3))]


def test_row_groups_and_sequences_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_shards, "ROW_GROUP_BYTES", 300)
    for name, kind in (("rows", {}), ("views", {"views": 3}), ("seq", {"positions": True})):
        sizes = (6, 3, 12)
        stored = written(tmp_path / name, sizes, **kind)
        lengths = [row % 4 for row in range(sum(sizes))] if kind.get("positions") else None
        packing = packing_of("dense-f16", **kind)
        whole = block_of(packing, sum(sizes), lengths).to_arrow()
        for rows in (1, 4, 50):
            blocks = list(stored.batches(rows))
            assert concat_blocks(blocks).to_arrow().equals(whole.combine_chunks())
        assert stored.to_arrow().combine_chunks().equals(whole.combine_chunks())


def test_a_state_counts_what_was_handed_out_and_not_what_was_read_ahead(labels: LabelSet) -> None:
    stream = labels.batches(3)
    assert stream.state()["done"] == 0
    advance(stream, 2)
    state = stream.state()
    assert state["done"] == 6
    assert len(json.dumps(state)) < 300
    stream.close()
    assert stream.state() == state
    (rest,) = parts_of(labels, 100, 1, [state])
    assert numbers(list(rest)) == list(range(6, ROWS))


def test_a_run_that_was_finished_leaves_nothing(labels: LabelSet) -> None:
    stream = labels.batches(5)
    list(stream)
    assert stream.state()["done"] == ROWS
    for rest in parts_of(labels, 4, 2, [stream.state()]):
        assert list(rest) == []


def test_a_resumed_stream_that_did_nothing_can_be_resumed(labels: LabelSet) -> None:
    streams = parts_of(labels, 3, 2)
    seen = advance(streams[0], 1) + advance(streams[1], 2)
    again = parts_of(labels, 3, 3, [stream.state() for stream in streams])
    rest = parts_of(labels, 3, 1, [stream.state() for stream in again])
    assert sorted(seen + numbers(list(rest[0]))) == list(range(ROWS))


def refusals(labels: LabelSet) -> Iterator[tuple[list[dict[str, Any]], str]]:
    one, two, three = (stream.state() for stream in parts_of(labels, 3, 3))
    (whole,) = (stream.state() for stream in parts_of(labels, 3, 1))
    again = labels.batches(3, part=(1, 3), resume=[whole]).state()
    needs = "resuming needs one state of each of the parts of one run; got part"
    yield [one, two], needs
    yield [one, two, two], needs
    yield [one, two, three, three], needs
    yield [one, two, three, whole], needs
    yield [one, again, three], needs
    yield [{**one, "part": [3, 3]}, two, three], needs
    yield [{**whole, "done": ROWS + 2}], "2 rows more were handed out than its part had"
    yield [{**whole, "done": -1}], r"a state to resume from is damaged \(done: "
    yield [{**whole, "earlier": [[]]}], r"a state to resume from is damaged \(earlier\.0: "
    yield [{**whole, "earlier": [[-3]]}], r"a state to resume from is damaged \(earlier\.0\.0: "
    yield [{"done": 3}], r"a state to resume from is damaged \(identity: Field required"
    yield [{**whole, "more": 1}], r"damaged \(more: Extra inputs"


def test_states_that_are_not_those_of_one_run_are_refused(labels: LabelSet) -> None:
    for states, problem in refusals(labels):
        with pytest.raises(DataError, match=problem):
            labels.batches(3, resume=states)


def test_a_state_of_other_labels_is_refused(tmp_path: Path, labels: LabelSet) -> None:
    state = labels.batches(3).state()
    others = [
        written(tmp_path / "views", (4, 4), views=2),
        written(tmp_path / "cut", (12, 12)),
    ]
    assert others[1].identity == labels.identity
    for other in others:
        with pytest.raises(IdentityError, match="is of other labels, or of these in other shards"):
            other.batches(3, resume=[state])


@pytest.mark.parametrize("rows", [0, -3])
def test_blocks_without_rows_are_refused(labels: LabelSet, rows: int) -> None:
    with pytest.raises(ParameterError, match=f"rows must be 1 or more, got {rows}"):
        labels.batches(rows)


@pytest.mark.parametrize("chosen", [(1, 1), (-1, 2), (0, 0), (3, 2)])
def test_an_impossible_part_is_refused(labels: LabelSet, chosen: tuple[int, int]) -> None:
    with pytest.raises(ParameterError, match=r"part must be \(i, n\) with 0 <= i < n, got"):
        labels.batches(3, part=chosen)


def test_closing_early_leaves_no_thread(labels: LabelSet) -> None:
    stream = labels.batches(1)
    next(stream)
    assert threads() == ["labels"]
    stream.close()
    assert threads() == []
    assert list(stream) == []


def test_letting_go_of_a_stream_leaves_no_thread(labels: LabelSet) -> None:
    for _ in labels.batches(1):
        break
    gc.collect()
    assert threads() == []


def test_a_stream_that_nobody_reads_starts_no_thread(labels: LabelSet) -> None:
    stream = labels.batches(3)
    assert threads() == []
    stream.close()


def test_a_damaged_shard_is_an_error_at_its_rows(tmp_path: Path) -> None:
    labels = written(tmp_path / "labels", (4, 4, 4))
    path = labels.folder / "part-00001.parquet"
    data = path.read_bytes()
    place = data.index("s/5.é".encode())
    path.write_bytes(data[:place] + b"S" + data[place + 1 :])
    stream = labels.batches(2)
    assert advance(stream, 2) == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"part-00001\.parquet: .*; run 'softlabel verify"):
        next(stream)
    assert threads() == []


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many row groups there are, few of them live at a time."""
    monkeypatch.setattr(parquet_shards, "ROW_GROUP_BYTES", 300)
    alive: set[int] = set()
    most = 0

    def count(*arguments: Any) -> LabelBlock:
        nonlocal most
        block = to_block(*arguments)
        # A slice keeps what it was cut from.
        logits = block.payload["logits"].copy()
        number = int(block.keys[0].as_py()[2:-2])
        alive.add(number)
        most = max(most, len(alive))
        weakref.finalize(logits, alive.discard, number)
        return replace(block, payload={**block.payload, "logits": logits})

    monkeypatch.setattr(parquet_shards, "to_block", count)
    labels = written(tmp_path / "labels", (60,))
    stream = labels.batches(2)
    next(stream)
    time.sleep(0.2)
    assert 2 + sum(len(block) for block in stream) == 60
    assert 1 < most <= 5


def test_a_shard_with_fewer_rows_than_the_manifest_says(labels: LabelSet) -> None:
    lines = list(labels.manifest.shards)
    lines[1] = lines[1].model_copy(update={"rows": 2})
    manifest = labels.manifest.model_copy(update={"shards": tuple(lines)})
    with pytest.raises(DataError, match=r"part-00001\.parquet: has 1 rows, not 2; run 'softlabel"):
        list(LabelSet(labels.folder, manifest).batches(3))


def test_a_program_that_leaves_a_stream_open_ends_in_peace(tmp_path: Path) -> None:
    """A thread that was cut off inside Arrow would take the process down."""
    folder = write_labels(tmp_path / "labels", write_source(tmp_path / "data", (1100,)))
    script = (
        f"import softlabel; stream = softlabel.open({str(folder)!r}).batches(100); next(stream)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
