from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from softlabel.pipeline.codecs.factored import Factored, FactoredRows, Head
from softlabel.pipeline.codecs.sparse import SparseTargets
from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.fabric import make_fabric
from softlabel.pipeline.training.lesson import Lesson
from softlabel.pipeline.training.mixing import Mixture, draw_mixture
from softlabel.schemas.params import TrainParams

ROWS, CLASSES = 6, 5
T, SOFT_WEIGHT, SMOOTHING = 2.0, 0.7, 0.1
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 10, 1), np.uint8)
SHARE = 0.3
MIXTURE = Mixture(np.array([3, 0, 5, 1, 4, 2]), SHARE, None)


def parameters(**changed: Any) -> TrainParams:
    usual = {
        "model": "a:b", "loss": "kd", "labels": "labels", "temperature": T,
        "soft_weight": SOFT_WEIGHT, "label_smoothing": SMOOTHING,
    }  # fmt: skip
    return TrainParams.model_validate(usual | changed)


def draw(epoch: int = 1, step: int = 2, rank: int = 0, **changed: Any) -> Mixture:
    found = draw_mixture(parameters(**changed), PIXELS, epoch, step, rank)
    assert found is not None
    return found


def batch(**targets: Any) -> TrainingBatch:
    random = np.random.default_rng(1)
    keys = pa.array([f"sample-{row}" for row in range(ROWS)])
    labels = random.integers(0, CLASSES, ROWS, np.int64)
    teacher = random.normal(size=(ROWS, CLASSES)).astype(np.float32)
    return TrainingBatch(keys, PIXELS, labels, **({"teacher": teacher} | targets))


class Student(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        weights = torch.linspace(-1, 1, 80 * CLASSES).reshape(80, CLASSES)
        return pixels.flatten(1).float() / 255 @ weights


def lesson(**changed: Any) -> Lesson:
    return Lesson(parameters(**changed), make_fabric("cpu", "32-true"), Student(), 1.0)


def test_a_mixture_is_a_function_of_seed_and_place() -> None:
    kinds: tuple[Any, ...] = ({"mixup": 0.8}, {"cutmix": 1.0})
    for kind in kinds:
        again = [draw(**kind).share, draw(**kind).partners.tolist(), draw(**kind).box]
        assert [draw(**kind).share, draw(**kind).partners.tolist(), draw(**kind).box] == again
        others = [draw(seed=1, **kind), draw(epoch=2, **kind), draw(step=3, **kind)]
        others.append(draw(rank=1, **kind))
        assert all(other.partners.tolist() != again[1] for other in others)
        assert len({draw(**kind).share, *(other.share for other in others)}) > 3
        assert sorted(draw(**kind).partners) == list(range(ROWS))


def test_neither_and_both() -> None:
    assert draw_mixture(parameters(), PIXELS, 0, 0, 0) is None
    boxes = [draw(step=step, mixup=0.2, cutmix=1.0).box is None for step in range(100)]
    assert 30 < sum(boxes) < 70


def test_the_share_of_cutmix_is_that_of_the_pixels_that_stay() -> None:
    own, other = torch.zeros(ROWS, 8, 10, 1, dtype=torch.uint8), torch.ones(ROWS, 8, 10, 1)
    shares = []
    for step in range(50):
        mixture = draw(step=step, cutmix=1.0)
        mixed = mixture.pixels(own, other.byte())
        assert mixed.dtype == torch.uint8
        taken = mixed[0].float().mean()
        assert mixture.share == pytest.approx(1 - float(taken))
        shares.append(mixture.share)
    assert min(shares) < 0.3 < 0.9 < max(shares)
    assert not own.any()


def test_mixup_mixes_pixels_in_its_share() -> None:
    own, other = torch.tensor([[10], [0]]).byte(), torch.tensor([[20], [255]]).byte()
    mixed = Mixture(np.array([0, 1]), 0.25, None).pixels(own, other)
    assert mixed.tolist() == [[17.5], [191.25]]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_logits_have_the_mean_of_the_soft_targets(share: float) -> None:
    own, other = torch.randn(2, 4, CLASSES, dtype=torch.float64)
    own[0, 2] = other[0, 2] = -torch.inf
    mixed = Mixture(np.arange(4), share, None).logits(own, other, T)
    expected = share * F.softmax(own / T, 1) + (1 - share) * F.softmax(other / T, 1)
    torch.testing.assert_close(F.softmax(mixed / T, 1), expected)


def test_hard_and_soft_targets_are_mixed_alike() -> None:
    """The loss of mixed pictures against targets that are written out."""
    whole = batch()
    got = lesson().mixed(whole, whole.take(MIXTURE.partners), MIXTURE, epoch=0)
    pixels = torch.from_numpy(PIXELS).float()
    student = Student()(SHARE * pixels + (1 - SHARE) * pixels[MIXTURE.partners])
    assert whole.teacher is not None
    one_hot = F.one_hot(torch.from_numpy(whole.labels), CLASSES).float()
    hard = (1 - SMOOTHING) * one_hot + SMOOTHING / CLASSES
    soft = F.softmax(torch.from_numpy(whole.teacher) / T, 1)
    hard, soft = (SHARE * all_ + (1 - SHARE) * all_[MIXTURE.partners] for all_ in (hard, soft))
    terms = F.cross_entropy(student, hard), F.cross_entropy(student / T, soft)
    torch.testing.assert_close((got.terms.hard, got.terms.soft), terms)
    total = (1 - SOFT_WEIGHT) * terms[0] + SOFT_WEIGHT * T**2 * terms[1]
    torch.testing.assert_close(got.terms.total, total)
    kl = terms[1] - torch.special.entr(soft).sum(1).mean()
    torch.testing.assert_close(got.terms.soft_kl, kl)
    assert got.labels.tolist() == whole.labels[MIXTURE.partners].tolist()


def test_hard_labels_alone() -> None:
    whole = batch(teacher=None)
    got = lesson(loss="hard").mixed(whole, whole.take(MIXTURE.partners), MIXTURE, epoch=0)
    assert got.terms.soft is None
    sides = [
        F.cross_entropy(got.student, torch.from_numpy(labels), label_smoothing=SMOOTHING)
        for labels in (whole.labels, whole.labels[MIXTURE.partners])
    ]
    torch.testing.assert_close(got.terms.total, SHARE * sides[0] + (1 - SHARE) * sides[1])


def test_kept_classes_are_mixed_side_by_side() -> None:
    """The cross-entropy against the one's kept classes and rest, and against the other's."""
    random = np.random.default_rng(2)
    ids = np.stack([random.permutation(CLASSES)[:2] for _ in range(ROWS)]).astype(np.uint16)
    logits = random.normal(size=(ROWS, 2)).astype(np.float32)
    tail = random.normal(size=ROWS).astype(np.float32)
    whole = batch(teacher=None, sparse=SparseTargets(ids, logits, tail, T))
    got = lesson().mixed(whole, whole.take(MIXTURE.partners), MIXTURE, epoch=0)
    logs = F.log_softmax(got.student / T, 1)
    losses = []
    for row in range(ROWS):
        kept = torch.from_numpy(ids[row].astype(np.int64))
        values = torch.tensor([*(logits[row] / T), tail[row]])
        targets = F.softmax(values, 0)
        per_student = torch.stack(
            [
                -(targets[:2] * logs[other, kept]).sum()
                - targets[2] * torch.log1p(-logs[other, kept].exp().sum())
                for other in range(ROWS)
            ]
        )
        losses.append(per_student)
    table = torch.stack(losses)
    rows = torch.arange(ROWS)
    expected = SHARE * table[rows, rows] + (1 - SHARE) * table[MIXTURE.partners, rows]
    assert got.terms.soft is not None
    torch.testing.assert_close(got.terms.soft, expected.mean(), rtol=1e-4, atol=1e-5)


def test_factored_rows_are_mixed_as_the_logits_that_they_make() -> None:
    random = np.random.default_rng(3)
    weight = random.normal(size=(CLASSES, 3)).astype(np.float32)
    codec = Factored(Head(weight, np.zeros(CLASSES, np.float32)), (T,))
    features = random.normal(size=(ROWS, 3)).astype(np.float16)
    logits = codec.head.logits(features)
    stored = FactoredRows(codec, features, logits.argmax(axis=1).astype(np.uint16))
    losses = [
        lesson().mixed(whole, whole.take(MIXTURE.partners), MIXTURE, epoch=0).terms.total
        for whole in (batch(teacher=None, factored=stored), batch(teacher=logits))
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": "self", "temperature": 1.0}, "do not go with targets 'self'"),
        ({"hint_layer": "layer", "hint_weight": 1.0}, "do not go with hint_layer"),
    ],
)
def test_what_it_does_not_go_with(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parameters(mixup=0.2, **changed)
