"""Samples that cannot be used keep their slots while the teacher runs, and get no labels."""

from collections.abc import Sequence

import numpy as np
import pytest

from softlabel.pipeline.inference.usable import Slots
from softlabel.schemas.labelset import Reject
from softlabel.schemas.sample import Array, TeacherOutput
from tests.unit.builders import numbers_of_keys, numbers_of_logits, samples, teacher


def slots(rejected: Sequence[int]) -> Slots:
    rejects = {
        slot: Reject(key=f"n{slot}", source="a", row=slot, reason="a test") for slot in rejected
    }
    return Slots(samples(4), rejects)


@pytest.mark.parametrize("rejected", [[], [0], [3], [1, 2], [0, 2, 3]])
def test_the_others_are_run_in_their_places(rejected: Sequence[int]) -> None:
    seen = []

    def run(inputs: Array) -> TeacherOutput:
        seen.append(len(inputs))
        logits = teacher(inputs)
        return TeacherOutput(logits, logits[:, :2])

    usable = slots(rejected).run(run)
    assert usable is not None
    block, output = usable
    kept = [slot for slot in range(4) if slot not in rejected]
    assert numbers_of_keys(block.keys) == kept
    assert block.hard_labels().tolist() == kept
    assert numbers_of_logits(output.logits - 5) == kept
    assert output.features is not None
    assert np.array_equal(output.features, output.logits[:, :2])
    assert seen == [4]


def test_where_none_can_be_used_the_teacher_is_not_asked() -> None:
    def run(inputs: Array) -> TeacherOutput:
        raise AssertionError("there is nothing to ask about")

    assert slots(range(4)).run(run) is None
