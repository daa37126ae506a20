"""Laws of streaming: whatever was stopped and however it goes on, every row comes exactly once."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.labelset.stream import LabelStream
from tests.unit.blocks import block_of, packing_of, write_set

PACKING = packing_of("dense-u8")


def written(root: pytest.TempPathFactory, sizes: Sequence[int]) -> LabelSet:
    whole = block_of(PACKING, sum(sizes))
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    shards = [whole.slice(first, size) for first, size in zip(starts, sizes, strict=True)]
    return open_labelset(write_set(root.mktemp("any") / "labels", PACKING, shards))


def advance(stream: LabelStream, blocks: int) -> list[str]:
    got = [block for _, block in zip(range(blocks), stream, strict=False)]
    return [key for block in got for key in block.keys.to_pylist()]


@settings(max_examples=60)
@given(st.data())
def test_a_run_that_was_stopped_goes_on_with_any_number_of_parts(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Runs that were stopped somewhere, each resumed from the one before, and a last whole one."""
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6), label="shards")
    labels = written(tmp_path_factory, sizes)
    seen: list[str] = []
    states: list[dict[str, Any]] = []
    for _ in range(data.draw(st.integers(1, 3), label="stops")):
        parts = data.draw(st.integers(1, 4), label="parts")
        rows = data.draw(st.integers(1, 6), label="rows")
        said = []
        for index in range(parts):
            stream = labels.batches(rows, part=(index, parts), resume=states)
            seen += advance(stream, data.draw(st.integers(0, 4), label="blocks"))
            said.append(json.loads(json.dumps(stream.state())))
            stream.close()
        states = data.draw(st.permutations(said), label="order")
    parts = data.draw(st.integers(1, 5), label="last parts")
    for index in range(parts):
        seen += advance(labels.batches(4, part=(index, parts), resume=states), 1000)
    assert sorted(seen) == sorted(f"s/{row}.é" for row in range(sum(sizes)))
