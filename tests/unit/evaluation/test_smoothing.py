"""The signs of label smoothing: worked numbers, and two teachers that were really trained."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from softlabel.pipeline.codecs.codec import shift_rows
from softlabel.pipeline.codecs.numerics import softmax
from softlabel.pipeline.evaluation import class_means
from softlabel.pipeline.evaluation.smoothing import SmoothingSums
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.packing import make_packing
from softlabel.pipeline.small_models import conv_net
from softlabel.pipeline.sources.digits import read_digits
from softlabel.schemas.soft_targets import SMOOTHED, SmoothingSigns
from tests.unit.blocks import packing_of
from tests.unit.label_sets import numbered, write_set

if TYPE_CHECKING:
    from tests.conftest import Command

TAUGHT, EPOCHS = 500, 20

Logits = npt.NDArray[np.float32]


def signs(probs: list[list[float]], told: list[list[float]] | None = None) -> SmoothingSigns:
    sums = SmoothingSums(len(probs[0]))
    for index, row in enumerate(probs):
        values = np.array([row], np.float32)
        kept = None if told is None else np.log(np.array([told[index]], np.float32))
        sums.add(values, values.argmax(axis=1), kept)
    found = sums.signs()
    assert found is not None
    return found


def test_worked() -> None:
    found = signs([[0.8, 0.1, 0.1], [0.6, 0.4, 0.0], [0.1, 0.1, 0.8]])
    assert found.rows == 3
    assert found.non_target_mass == pytest.approx((0.2 + 0.4 + 0.2) / 3)
    assert found.steadiness == pytest.approx((0.8 / 3) ** 2 / ((0.04 + 0.16 + 0.04) / 3))
    # Two halves of the mass are as even as can be; all of it in one class is not.
    assert found.evenness == pytest.approx(2 / 3)
    # Class 0 has two rows, each (0.1, -0.15, 0.05) from their mean; class 2 has one.
    assert found.stability == pytest.approx(1 - (0.01 + 0.0225 + 0.0025) / 2)


def test_the_classes_that_topk_left_out_are_not_taken_for_even() -> None:
    dense = [[0.7, 0.2, 0.025, 0.025, 0.025, 0.025]]
    found = signs(dense, [[0.7, 0.2, 0.05]])
    share = 0.8
    wanted = -(share * math.log(share) + (1 - share) * math.log(1 - share)) / math.log(2)
    assert found.evenness == pytest.approx(wanted, rel=1e-6)
    assert found.non_target_mass == pytest.approx(0.3)


def test_a_teacher_that_is_certain_of_all_rows_is_not_smoothed() -> None:
    found = signs([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert (found.non_target_mass, found.evenness, found.stability) == (0, 0, 1)
    assert not found.smoothed


def test_with_too_many_classes_there_is_no_stability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_means, "MOST_CLASSES", 2)
    assert signs([[0.8, 0.1, 0.1]]).stability is None


@pytest.fixture(scope="module")
def taught() -> dict[float, Logits]:
    """Logits for the digits they were taught, of small nets by the label smoothing they had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {smoothing: _taught(smoothing) for smoothing in (0.0, 0.1)}
    finally:
        torch.set_num_threads(threads)


def _taught(smoothing: float) -> Logits:
    samples = read_digits().slice(0, TAUGHT)
    pictures = torch.from_numpy(samples.inputs.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(samples.hard_labels().astype(np.int64))
    torch.manual_seed(0)
    net = conv_net(10, 1, 16, 2)
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    for _ in range(EPOCHS):
        for batch in torch.randperm(TAUGHT).split(64):
            optimizer.zero_grad()
            loss(net(pictures[batch]), labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return np.asarray(net.eval()(pictures).numpy(), np.float32)


@pytest.mark.parametrize("codec", ["dense-f16", "topk"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_inspect_warns_of_a_smoothed_teacher_alone(
    taught: dict[float, Logits],
    tmp_path: Path,
    command: "Command",
    smoothing: float,
    codec: str,
) -> None:
    logits = taught[smoothing]
    identity = packing_of("dense-f16").identity.model_copy(
        update={
            "classes": tuple("0123456789"),
            "codec": codec,
            "k": 6 if codec == "topk" else None,
        }
    )
    packing = make_packing(identity)
    rows = shift_rows(logits)
    block = LabelBlock(
        pa.array([""] * TAUGHT),
        pa.nulls(TAUGHT, pa.int32()),
        rows.top1,
        rows.shift,
        packing.codec.encode(rows),
        packing.codec,
    )
    write_set(tmp_path / "labels", packing, numbered([block]))
    shown = command("inspect", "--labels", str(tmp_path / "labels")).stdout
    assert (f"warning: {SMOOTHED}" in shown) == (smoothing > 0)
    mass = 1 - softmax(logits, 1.0).max(axis=1).mean()
    assert f"beside the top-1 at T=1: mass {mass:.4f}"[:-1] in shown
