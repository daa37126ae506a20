"""What verify says of kept classes that no writer of ours leaves: once, in order, of the set."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softlabel.schemas.params import VerifyParams
from softlabel.stages import verify
from tests.unit.blocks import block_of, packing_of, write_set

Payload = dict[str, Any]


def twice(payload: Payload) -> Payload:
    ids = payload["ids"].copy()
    ids[1, 2] = ids[1, 1]
    return payload | {"ids": ids}


def foreign(payload: Payload) -> Payload:
    ids = payload["ids"].copy()
    ids[1, 2] = 60_000
    return payload | {"ids": ids}


def rising(payload: Payload) -> Payload:
    return payload | {"logits": np.ascontiguousarray(payload["logits"][:, [0, 2, 1]])}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (twice, "a class is kept twice"),
        (foreign, "a kept class is outside the classes"),
        (rising, "the kept logits do not fall"),
    ],
)
def test_kept_classes(tmp_path: Path, change: Callable[[Payload], Payload], said: str) -> None:
    packing = packing_of("topk", "packed")
    sound = block_of(packing)
    labels = write_set(tmp_path / "labels", packing, [sound])
    assert verify.run(VerifyParams(labels=labels)).problems == ()
    broken = replace(sound, payload=change(dict(sound.payload)))
    labels = write_set(tmp_path / "broken", packing, [broken])
    report = verify.run(VerifyParams(labels=labels))
    assert said in " ".join(problem.message for problem in report.problems)
    assert report.exit_code == 1
