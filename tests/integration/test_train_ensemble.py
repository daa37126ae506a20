"""Several label sets at training time: what training on their merge would be, without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import softlabel
from softlabel.pipeline.training import trainer
from softlabel.schemas.errors import IdentityError
from softlabel.schemas.params import ConvertParams, InferParams, MergeParams, TrainParams
from softlabel.schemas.reports import TrainReport
from softlabel.stages import convert, infer, merge, train_student
from tests.conftest import CLASSES

if TYPE_CHECKING:
    from tests.conftest import Command, Project

TRAIN = (
    "train-student", "--model", "softlabel.pipeline.small_models:mlp", "--loss", "kd", "--epochs",
    "3", "--batch-size", "64", "--logger", "none", "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(make_project: Callable[[], Project]) -> Project:
    """500 samples, and what two teachers say of them: `one`, and in another shape `two`.

    The second set has its classes in another order.
    """
    project = make_project()
    project.source()
    project.teacher("models/one.onnx")
    project.teacher("models/two.onnx", sharpness=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        label("one", codec="dense-f32")
        label("two", "straight", codec="dense-f16", batch_size=10, shard_rows=70, layout="sidecar")
        Path("classes").write_text("\n".join(CLASSES[::-1]))
        convert.run(ConvertParams(labels="straight", output="two", classes="classes"))
    return project


@pytest.fixture
def inside(world: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The same in a folder of the test's own, entered."""
    project = world.copy(tmp_path / "world")
    monkeypatch.chdir(project.root)
    return project


def label(name: str, output: str | None = None, **settings: Any) -> None:
    teacher = f"models/{name}.onnx"
    allowed = {"allow_bad_teacher": True, "temperatures": (1.0, 2.0)}
    values = {"teacher": teacher, "output": output or name} | allowed | settings
    infer.run(InferParams.model_validate(values))


def train(output: str, **settings: Any) -> TrainReport:
    values = {
        "model": "softlabel.pipeline.small_models:mlp",
        "loss": "kd",
        "temperature": 3.0,
        "epochs": 3,
        "batch_size": 64,
        "logger": "none",
        "device": "cpu",
        "output": output,
    }
    return train_student.run(TrainParams.model_validate(values | settings))


def expect_same_training(one: TrainReport, other: TrainReport) -> None:
    for first, second in zip(one.history, other.history, strict=True):
        assert first.loss == pytest.approx(second.loss, rel=1e-6)
        assert first.soft_kl == pytest.approx(second.soft_kl, rel=1e-6, abs=1e-7)
    weights = [load_file(report.output / "student.safetensors") for report in (one, other)]
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"labels_weights": (3.0, 1.0)}, {"weights": (3.0, 1.0)}),
        (
            {"mean_of": "probs", "mean_temperature": 2.0, "labels_weights": (1.0, 2.0)},
            {"mean": "probs", "temperature": 2.0, "weights": (1.0, 2.0)},
        ),
    ],
    ids=["alike", "weighted", "probabilities"],
)
def test_it_is_training_on_their_merge(
    inside: Project, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    merge.run(MergeParams(labels=("one", "two"), output="mean", codec="dense-f32", **theirs))
    before = sorted(path.name for path in Path().iterdir())
    several = train("several", labels=["one", "two"], **ours)
    assert sorted(path.name for path in Path().iterdir()) == sorted([*before, "several"])
    expect_same_training(several, train("merged", labels="mean"))
    alone = train("alone", labels="one")
    assert several.history[-1].soft_kl != pytest.approx(alone.history[-1].soft_kl, rel=1e-3)


def test_sets_that_stand_in_another_order_join_by_key(inside: Project) -> None:
    """Such a set is looked up; whichever stand in the source's order are read beside it."""
    labels = softlabel.open("one")
    keys = labels.to_arrow()["key"].to_pylist()[::-1]
    Path("keys").write_text("".join(f"{key}\n" for key in keys))
    convert.run(ConvertParams(labels="one", output="turned", keys="keys"))
    assert not softlabel.open("turned").manifest.aligned
    beside = train("beside", labels=["one", "two"])
    expect_same_training(train("mixed", labels=["turned", "two"]), beside)
    assert {path.name.partition(".")[0] for path in Path().glob("*.lookup*")} == {"turned"}
    alone = train("alone", labels="one")
    expect_same_training(train("looked-up", labels=["turned", "turned"]), alone)


def test_what_was_averaged_is_recorded(inside: Project, command: Command) -> None:
    flags = ("--labels", "one", "--labels", "two", "--labels-weights", "3", "--labels-weights", "1")
    outcome = command(*TRAIN, *flags, "--output", "student", "--json")
    assert outcome.code == 0, outcome.stderr
    merge.run(
        MergeParams(labels=("one", "two"), output="mean", codec="dense-f32", weights=(3.0, 1.0))
    )
    mean = softlabel.open("mean").manifest
    for name in ("student.json", "train.json"):
        record = json.loads(Path(f"student/{name}").read_text())
        assert record["labels_identity_sha256"] == mean.identity_sha256
        assert record["labels_mean"]["parents"] == [
            softlabel.open(n).identity for n in ("one", "two")
        ]
        assert record["labels_mean"]["weights"] == [0.75, 0.25]
    settings = json.loads(Path("student/train.json").read_text())["settings"]
    assert settings["labels"] == ["one", "two"]
    assert settings["labels_weights"] == [3, 1]


def test_a_stopped_run_goes_on_with_the_same_mean_alone(
    inside: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"labels": ["one", "two"], "checkpoint_steps": 3}
    quiet = train("quiet", **settings)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "validate", stop)
        with pytest.raises(KeyboardInterrupt):
            train("student", **settings)
    with pytest.raises(IdentityError, match="labels' identity"):
        train("student", **settings, labels_weights=(1.0, 2.0))
    assert train("student", **settings).history == quiet.history
    name = "student.safetensors"
    assert inside.files("student")[name] == inside.files("quiet")[name]


REFUSED = [
    ("missing", ("--labels", "one", "--labels", "nowhere"), 2, "no such label set"),
    (
        "weights",
        ("--labels", "one", "--labels", "two", "--labels-weights", "1"),
        2,
        "weights are 1",
    ),
    ("probs", ("--labels", "one", "--labels", "two", "--mean-of", "probs"), 2, "needs the temper"),
    ("topk", ("--labels", "one", "--labels", "topk"), 3, "topk kept 3 of 10 classes"),
    ("source", ("--labels", "one", "--labels", "elsewhere"), 3, "differs from one in source"),
    ("grid", ("--labels", "one", "--labels", "grid"), 3, "differs from one in temperatures"),
    (
        "hint",
        ("--labels", "one", "--labels", "two", "--hint-layer", "0", "--hint-weight", "1"),
        2,
        "hint_layer learns the features of one label set",
    ),
]


@pytest.mark.parametrize(("made", "flags", "code", "says"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_does_not_belong_together_is_refused(
    inside: Project, command: Command, made: str, flags: tuple[str, ...], code: int, says: str
) -> None:
    if made == "topk":
        label("two", "topk", codec="topk", k=3)
    if made == "grid":
        label("two", "grid", temperatures=(1.0,))
    if made == "source":
        inside.source("data/other", shards=(300, 201))
        label("two", "elsewhere", source="data/other")
    outcome = command(*TRAIN, *flags, "--output", "student")
    assert outcome.code == code, outcome.stderr
    assert says in outcome.stderr
    assert not Path("student").exists()
