"""A run's loss by name: each trains from a label set, and T and a follow their schedules."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from softlabel.pipeline.training.distillation import certain, distillation_terms, soft_term
from softlabel.pipeline.training.losses import (
    dist_loss,
    dkd_loss,
    hard_loss,
    jensen_shannon,
    kd_loss,
    logit_mse,
    reverse_kl,
    standardise,
)
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.params import TrainParams
from softlabel.stages import train_student
from tests.unit.builders import CLASSES, write_labels, write_source

SOFT_LOSSES = ("kd", "dkd", "dist", "mse", "reverse-kl", "js")


def params(**settings: object) -> TrainParams:
    return TrainParams.model_validate(
        {
            "model": "softlabel.pipeline.small_models:mlp",
            "labels": "labels",
            "model_args": {"inputs": 6},
            "loss": "kd",
            "epochs": 5,
            **settings,
        }
    )


def test_temperature_and_weight_stay_by_default() -> None:
    settings = params(temperature=3, soft_weight=0.4)
    assert {soft_term(settings, epoch) for epoch in range(5)} == {soft_term(settings, 0)}
    assert (soft_term(settings, 2).temperature, soft_term(settings, 2).weight) == (3, 0.4)


def test_linear_and_cosine_go_from_first_to_last() -> None:
    line = params(temperature=2, temperature_end=10, soft_weight=1, soft_weight_end=0)
    assert [soft_term(line, epoch).temperature for epoch in range(5)] == [2, 4, 6, 8, 10]
    assert [soft_term(line, epoch).weight for epoch in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    bow = line.model_copy(update={"soft_schedule": "cosine"})
    temperatures = [soft_term(bow, epoch).temperature for epoch in range(5)]
    assert temperatures == pytest.approx([2, 6 - np.sqrt(8), 6, 6 + np.sqrt(8), 10])


def test_a_single_epoch_has_the_first_values() -> None:
    settings = params(epochs=1, temperature=2, temperature_end=10)
    assert soft_term(settings, 0).temperature == 2


@pytest.mark.parametrize("loss", SOFT_LOSSES)
@pytest.mark.parametrize("plain", [True, False])
def test_the_total_is_that_of_the_formula(loss: str, plain: bool) -> None:
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    labels = torch.randint(0, 4, (6,))
    settings = params(loss=loss, standardise=not plain, label_smoothing=0.1, other_weight=3)
    term = soft_term(settings.model_copy(update={"temperature": 2.0, "soft_weight": 0.3}), 0)
    terms = distillation_terms(settings, term, student, teacher, labels)
    s, t = (student, teacher) if plain else (standardise(student), standardise(teacher))
    soft = {
        "kd": kd_loss(s, t, labels, 1.0, 2.0).soft,
        "dkd": dkd_loss(s, t, labels, 2.0, 1.0, 3.0),
        "dist": dist_loss(s, t, 2.0),
        "mse": logit_mse(s, t),
        "reverse-kl": reverse_kl(s, t, 2.0),
        "js": jensen_shannon(s, t, 2.0),
    }[loss]
    assert soft is not None and terms.soft is not None
    torch.testing.assert_close(terms.soft, soft)
    factor = 1 if loss == "mse" else 4
    wanted = 0.7 * hard_loss(student, labels, 0.1) + 0.3 * factor * soft
    torch.testing.assert_close(terms.total, wanted)


@pytest.mark.parametrize("loss", SOFT_LOSSES)
def test_every_loss_learns_what_the_teacher_says(tmp_path: Path, loss: str) -> None:
    source = write_source(tmp_path / "data", (40, 24))
    write_labels(tmp_path / "labels", source)
    report = train_student.run(
        params(
            loss=loss,
            source=source.path,
            labels=tmp_path / "labels",
            output=tmp_path / "out",
            batch_size=16,
            soft_weight=1.0,
            learning_rate=0.01,
            epochs=8,
            logger="none",
        )
    )
    first, last = report.history[0], report.history[-1]
    assert first.soft is not None and last.soft is not None
    assert last.soft < first.soft
    assert report.loss == loss


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"loss": "dkd"}, "loss 'dkd'"),
        ({"loss": "mse"}, "loss 'mse'"),
        ({"standardise": True}, "standardise"),
        ({"temperature_end": 8}, "temperature_end"),
    ],
)
def test_what_a_topk_set_cannot_give_is_refused(
    tmp_path: Path, settings: dict[str, object], what: str
) -> None:
    source = write_source(tmp_path / "data", (8,))
    labels = write_labels(tmp_path / "labels", source, codec="topk", k=2)
    run = params(source=source.path, labels=labels, output=tmp_path / "out", **settings)
    with pytest.raises(ParameterError, match=f"train: {what} needs the logits of all classes"):
        train_student.run(run)


@pytest.mark.parametrize("tail", ["bucket", "spread"])
def test_with_one_class_left_out_sparse_labels_train_like_dense_ones(
    tmp_path: Path, tail: str
) -> None:
    source = write_source(tmp_path / "data", (40, 24))
    histories = []
    for codec, k in (("dense-f16", None), ("topk", len(CLASSES) - 1)):
        labels = write_labels(tmp_path / codec, source, codec=codec, k=k)
        run = params(
            source=source.path,
            labels=labels,
            output=tmp_path / "out",
            batch_size=16,
            shuffle_rows=30,
            tail=tail,
            logger="none",
        )
        histories.append([record.soft_kl for record in train_student.run(run).history])
    assert histories[1] == pytest.approx(histories[0], rel=1e-3)


def test_a_bucket_asks_less_than_a_spread_tail(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (64,))
    labels = write_labels(tmp_path / "labels", source, codec="topk", k=1)
    first = {}
    for tail in ("bucket", "spread"):
        run = params(
            source=source.path,
            labels=labels,
            output=tmp_path / "out",
            batch_size=64,
            epochs=1,
            tail=tail,
            logger="none",
        )
        first[tail] = train_student.run(run).history[0].soft_kl
    bucket, spread = first["bucket"], first["spread"]
    assert bucket is not None and spread is not None
    # The log-sum inequality: what is the same in the tail is not asked for.
    assert bucket < spread


def test_soft_losses_need_labels() -> None:
    with pytest.raises(ValidationError, match="loss is 'dkd' and labels is not set"):
        params(loss="dkd", labels=())


OWN = {"targets": "self", "labels": ()}
PEERS = {"targets": "peers", "labels": (), "members": 2}


def test_the_weight_of_own_predictions_rises_to_its_value_in_the_last_epoch() -> None:
    settings = params(**OWN, soft_weight=0.8, epochs=4)
    terms = [soft_term(settings, epoch) for epoch in range(4)]
    assert [term.weight for term in terms] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert {term.temperature for term in terms} == {1.0}


def test_the_first_teacher_of_oneself_is_the_hard_label() -> None:
    student, labels = torch.randn(6, 4, requires_grad=True), torch.randint(0, 4, (6,))
    settings = params(**OWN, soft_weight=0.8, label_smoothing=0.1)
    teacher = certain(labels, student)
    terms = distillation_terms(settings, soft_term(settings, 0), student, teacher, labels)
    hard, sure = hard_loss(student, labels, 0.1), hard_loss(student, labels)
    torch.testing.assert_close(terms.total, (1 - 0.16) * hard + 0.16 * sure)
    terms.total.backward()
    assert student.grad is not None and bool(student.grad.isfinite().all())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (OWN | {"loss": "hard"}, "targets are 'self' and loss is 'hard'; give --loss kd"),
        (OWN | {"loss": "dkd"}, "targets 'self' go with loss 'kd'"),
        (OWN | {"temperature": 4.0}, "targets 'self' are taken at T = 1"),
        (OWN | {"soft_weight_end": 0.1}, "leave temperature, temperature_end and soft_weight_end"),
        (OWN | {"calibration": "c.json"}, "calibration is of stored labels"),
        (OWN | {"members": 2}, "several members need targets 'peers'"),
        (PEERS | {"members": 1}, "targets 'peers' need two members or more"),
        (PEERS | {"labels": "labels"}, "targets 'peers' need no labels"),
        (PEERS | {"patience": 2, "validation": "data"}, "go together to the last epoch; leave pat"),
        ({"member_data": "disjoint"}, "member_data 'disjoint' is of targets 'peers'"),
        (OWN | {"exchange_steps": 9}, "exchange_steps is of targets 'peers'; leave it out"),
        (
            PEERS | {"exchange_steps": 9, "exchange_epochs": 1},
            "by exchange_steps; give one of them",
        ),
        (PEERS | {"burn_in": 5}, "burn_in is 5 of 5 epochs, so no member would ever teach"),
    ],
)
def test_targets_that_cannot_be_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        params(**settings)


def test_own_predictions_are_taken_at_temperature_one_even_where_that_is_said() -> None:
    assert soft_term(params(**OWN, temperature=1), 0).temperature == 1
