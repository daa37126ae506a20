"""A student's layer, regressed to the teacher's features, and a training that learns them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from softlabel.pipeline.codecs.codec import encode_rows
from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.labelset.folder import publish_head
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.packing import make_packing
from softlabel.pipeline.small_models import conv_net, mlp
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.models import PictureModel
from softlabel.pipeline.teachers.sequence_model import SequenceModel
from softlabel.pipeline.training.hints import (
    Hinted,
    HintedModel,
    hint_loss,
    pooled,
    with_hint,
)
from softlabel.pipeline.training.losses import LossTerms, hard_loss
from softlabel.pipeline.training.student import load_student
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports import TrainReport
from softlabel.schemas.sample import POSITIONS
from softlabel.stages import train_student
from tests.unit.blocks import write_set
from tests.unit.builders import make_identity, samples, write_labels, write_source

SHAPE = (8, 8, 1)
PICTURES = torch.randint(0, 256, (5, *SHAPE), dtype=torch.uint8)


def seeing(model: nn.Module) -> PictureModel:
    return PictureModel(model, (0.5,), (0.5,))


def test_the_loss_is_half_the_mean_square_worked_by_hand() -> None:
    teacher = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    # (0 + 4 + 1 + 9) / 4 / 2
    assert float(hint_loss(student, teacher)) == 1.75


def test_tokens_and_maps_become_their_means() -> None:
    maps = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert pooled(maps).tolist() == [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]]
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    assert pooled(tokens).tolist() == [[2.0, 3.0], [8.0, 9.0]]


@pytest.mark.parametrize(
    ("inner", "layer", "own"),
    [(mlp(4, inputs=64, hidden=6), "hidden", 6), (conv_net(4, width=3, depth=2), "2", 6)],
)
def test_the_layer_is_heard_and_regressed(inner: nn.Module, layer: str, own: int) -> None:
    student = seeing(inner)
    model = HintedModel(student, layer, 7, PICTURES[:1])
    assert model.regressor.in_features == own
    said = model(PICTURES)
    assert isinstance(said, Hinted)
    assert said.logits.shape == (5, 4)
    assert said.features.shape == (5, 7)
    hint_loss(said.features, torch.randn(5, 7)).backward()
    first = next(dict(inner.named_modules())[layer].parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0
    assert list(inner.parameters())[-1].grad is None
    model.eval()
    assert torch.equal(model(PICTURES), student(PICTURES))


def test_a_layer_that_is_not_there_is_named_with_those_that_are() -> None:
    wanted = "hint_layer: the student has no layer 'body'; it has hidden, head"
    with pytest.raises(ParameterError, match=wanted):
        HintedModel(seeing(mlp(4, inputs=64)), "body", 7, PICTURES[:1])


def test_a_layer_without_features_is_refused() -> None:
    inner = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, 64)), nn.Linear(64, 4))
    with pytest.raises(ParameterError, match=r"hint_layer: '0' gives no features \[N, D\]"):
        HintedModel(seeing(inner), "0", 7, PICTURES[:1])


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.turned = nn.Identity()
        self.head = nn.Linear(6, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.turned(self.embed(input_ids).mT).mT)  # type: ignore[no-any-return]


SEQUENCES = {
    "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
    POSITIONS: torch.tensor([[True, True, True], [True, True, False]]),
}


def test_a_layer_of_sequences_is_regressed_position_by_position() -> None:
    inner = Tagger()
    model = HintedModel(SequenceModel(inner, ["input_ids"]), "embed", 7, SEQUENCES)
    said = model(SEQUENCES)
    assert isinstance(said, Hinted)
    assert said.logits.shape == (5, 4)
    told = model.regressor(inner.embed(torch.tensor([1, 2, 3, 4, 5])))
    assert torch.equal(said.features, told)


def test_a_layer_that_does_not_speak_of_positions_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"'turned' gives no features \[N, L, D\] of seq"):
        HintedModel(SequenceModel(Tagger(), ["input_ids"]), "turned", 7, SEQUENCES)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_source(tmp_path / "data", (64,))


def stored(folder: Path, source: Source, factored: bool = False) -> LabelSet:
    """Labels of all samples with three features each, which follow from the sample's number."""
    block = samples(source.rows)
    numbers = block.inputs[:, 0, 0].astype(np.float32) / 64
    features = np.concatenate([numbers, 1 - 2 * numbers, 0 * numbers + 0.5], axis=1)
    head = Head(np.eye(4, 3, dtype=np.float32), np.zeros(4, np.float32))
    more: dict[str, Any] = {"features": 3, "features_output": "inner"}
    if factored:
        more = {"codec": "factored", "head_sha256": head.digest()}
    identity = make_identity(source).model_copy(update=more)
    packing = make_packing(identity, head=head if factored else None)
    rows = encode_rows(packing.codec, head.logits(features), features)
    labels = LabelBlock(
        keys=block.keys,
        labels=block.labels,
        top1=rows.top1,
        shift=rows.shift,
        payload=rows.columns,
        codec=packing.codec,
        features=None if factored else features.astype(np.float16),
    )
    write_set(folder, packing, [labels])
    if factored:
        publish_head(folder, head)
    return open_labelset(folder)


def taught(source: Source, labels: LabelSet, **settings: Any) -> TrainReport:
    values = {
        "model": "softlabel.pipeline.small_models:mlp",
        "model_args": {"inputs": 6, "hidden": 8},
        "source": source.path,
        "labels": labels.folder,
        "loss": "kd",
        "temperature": 2.0,
        "soft_weight": 0.5,
        "hint_layer": "hidden",
        "epochs": 6,
        "batch_size": 16,
        "learning_rate": 0.02,
        "logger": "none",
        "output": labels.folder.with_name("student"),
    }
    return train_student.run(TrainParams.model_validate(values | settings))


@pytest.mark.parametrize("factored", [True, False])
def test_jointly_the_hint_has_its_weight(tmp_path: Path, source: Source, factored: bool) -> None:
    labels = stored(tmp_path / "labels", source, factored)
    report = taught(source, labels, hint_weight=3.0, epochs=40, learning_rate=0.1)
    for record in report.history:
        assert record.soft is not None and record.hint is not None
        whole = 0.5 * record.hard + 0.5 * 4 * record.soft + 3 * record.hint
        assert record.loss == pytest.approx(whole, rel=1e-5)
    # They follow from the picture: who met another sample's would not come so near.
    assert record.hint is not None and record.hint < 0.01


def test_the_regressor_is_no_part_of_the_student(tmp_path: Path, source: Source) -> None:
    report = taught(source, stored(tmp_path / "labels", source), hint_weight=1.0)
    _, student = load_student(report.output / "student.json")
    assert set(student.state_dict()) == {
        f"model.{layer}.{part}" for layer in ("hidden", "head") for part in ("weight", "bias")
    }
    assert report.parameters == sum(values.numel() for values in student.state_dict().values())


def test_in_two_stages_the_hint_comes_first_and_alone(tmp_path: Path, source: Source) -> None:
    labels = stored(tmp_path / "labels", source)
    report = taught(source, labels, hint_epochs=3)
    first, second = report.history[:3], report.history[3:]
    assert [record.loss for record in first] == [record.hint for record in first]
    for record in second:
        assert record.soft is not None
        assert record.loss == pytest.approx(0.5 * record.hard + 2 * record.soft, rel=1e-5)


def test_the_hint_moves_nothing_after_its_layer() -> None:
    inner = mlp(4, inputs=64, hidden=6)
    model = HintedModel(seeing(inner), "hidden", 7, PICTURES[:1])
    before = {name: values.clone() for name, values in inner.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    said = model(PICTURES)
    params = TrainParams(
        model="a:b", loss="kd", labels=Path("x"), hint_layer="hidden", hint_epochs=1, epochs=2
    )
    hard = hard_loss(said.logits, torch.arange(5) % 4)
    terms = with_hint(params, 0, LossTerms(hard, hard), said.features, torch.randn(5, 7))
    terms.total.backward()
    optimizer.step()
    moved = {name for name, values in inner.state_dict().items() if not values.equal(before[name])}
    assert moved == {"hidden.weight", "hidden.bias"}


def test_labels_without_features_are_refused(tmp_path: Path, source: Source) -> None:
    labels = open_labelset(write_labels(tmp_path / "labels", source))
    wanted = "labels: stores no features, which hint_layer learns from; infer again with --features"
    with pytest.raises(DataError, match=wanted):
        taught(source, labels, hint_weight=1.0)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "hint_layer goes with hint_weight or hint_epochs above 0"),
        ({"hint_layer": None, "hint_epochs": 1}, "hint_layer goes with hint_weight or hint_epochs"),
        ({"hint_weight": 1, "loss": "hard"}, "hint_layer learns from stored labels"),
        ({"hint_weight": 1, "targets": "self"}, "hint_layer learns from stored labels"),
        ({"hint_epochs": 6}, "hint_epochs are 6 of 6 epochs, so no output would ever learn"),
        ({"hint_weight": 1, "compile": True}, "a hook, which compile does not take"),
    ],
)
def test_hints_that_cannot_be_are_refused(settings: dict[str, Any], problem: str) -> None:
    values = {"model": "a:b", "loss": "kd", "labels": "x", "hint_layer": "y", "epochs": 6}
    if settings.get("targets") == "self":
        values |= {"temperature": 1}
    with pytest.raises(ValidationError, match=problem):
        TrainParams.model_validate(values | settings)
