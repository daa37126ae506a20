"""What train-student does beside training: weights to start from, ONNX on wish, loggers."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from softlabel.schemas.errors import EnvironmentFault, ParameterError
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports import TrainReport
from softlabel.schemas.reports.training import InformationBasis
from softlabel.stages import train_student

if TYPE_CHECKING:
    from tests.conftest import Command, Project

MLP = "softlabel.pipeline.small_models:mlp"


def parameters(**changed: Any) -> TrainParams:
    usual = {"model": MLP, "epochs": 2, "logger": "none", "output": "student", "device": "cpu"}
    return TrainParams.model_validate(usual | changed)


def weights_of(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "student.safetensors")


def test_weights_to_start_from(project: Project, command: Command) -> None:
    train_student.run(parameters())
    start = "student/student.safetensors"
    # Next to no learning: what comes out is what went in.
    train_student.run(parameters(weights=start, learning_rate=1e-12, output="again"))
    torch.testing.assert_close(weights_of("again"), weights_of("student"))
    train_student.run(parameters(learning_rate=1e-12, output="other"))
    moved = weights_of("other")["head.weight"] - weights_of("again")["head.weight"]
    assert moved.abs().max() > 1e-3
    hidden = json.dumps({"hidden": 5})
    outcome = command("train-student", "--model", MLP, "--model-args", hidden, "--weights", start)
    assert outcome.code == 3
    assert "does not fit the model" in outcome.stderr


def test_timm_fits_pretrained_weights_to_other_classes_and_channels(project: Project) -> None:
    timm = pytest.importorskip("timm")
    pretrained = timm.create_model("test_resnet", num_classes=3, in_chans=3)
    torch.nn.init.constant_(pretrained.layer1[0].conv1.weight, 0.125)
    save_file(pretrained.state_dict(), "pretrained.safetensors")
    params = parameters(
        model="timm:test_resnet", weights="pretrained.safetensors", learning_rate=1e-12, epochs=1
    )
    train_student.run(params)
    found = weights_of("student")
    assert found["fc.weight"].shape[0] == 10
    assert found["conv1.0.weight"].shape[1] == 1
    torch.testing.assert_close(
        found["layer1.0.conv1.weight"], torch.full_like(found["layer1.0.conv1.weight"], 0.125)
    )


def test_other_weights_are_another_run(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_student.run(parameters(output="one"))
    train_student.run(parameters(output="two", seed=1))
    Path("start.safetensors").write_bytes(Path("one/student.safetensors").read_bytes())
    params = parameters(weights="start.safetensors")
    monkeypatch.setattr(train_student, "publish_bytes", _full)
    with pytest.raises(KeyboardInterrupt):
        train_student.run(params)
    monkeypatch.undo()
    monkeypatch.chdir(project.root)
    Path("start.safetensors").write_bytes(Path("two/student.safetensors").read_bytes())
    outcome = command(
        "train-student", "--model", MLP, "--epochs", "2", "--logger", "none", "--output",
        "student", "--device", "cpu", "--weights", "start.safetensors",
    )  # fmt: skip
    assert outcome.code == 3
    assert "weights file" in outcome.stderr


def _full(path: Path, data: bytes) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_onnx_on_wish_is_what_export_makes(project: Project, command: Command) -> None:
    train_student.run(parameters(export_onnx=True))
    card = "student/student.json"
    assert command("export", "--model", card, "--output", "exported.onnx").code == 0
    assert Path("student/student.onnx").read_bytes() == Path("exported.onnx").read_bytes()
    train_student.run(parameters())
    assert not Path("student/student.onnx").exists()


def test_tensorboard_has_each_epoch_once(project: Project) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        report = train_student.run(parameters(logger="tensorboard"))
    events = EventAccumulator("student/tensorboard").Reload()
    scalars = events.Scalars("loss")
    assert [event.step for event in scalars] == [0, 1]
    assert [event.value for event in scalars] == pytest.approx([e.loss for e in report.history])


def test_mlflow_hears_of_parameters_and_epochs(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the library, which is no part of the test environment."""
    told: list[tuple[str, Any]] = []

    class Run:
        def __enter__(self) -> None:
            told.append(("begin", None))

        def __exit__(self, *error: object) -> None:
            told.append(("end", None))

    mlflow: Any = types.ModuleType("mlflow")
    mlflow.exceptions = types.SimpleNamespace(MlflowException=RuntimeError)
    mlflow.start_run = lambda run_name: Run()
    mlflow.log_params = lambda values: told.append(("params", values["batch_size"]))
    mlflow.log_metrics = lambda values, step: told.append(("metrics", (step, values["loss"])))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    report = train_student.run(parameters(logger="mlflow"))
    metrics = [("metrics", (record.epoch, record.loss)) for record in report.history]
    assert told == [("begin", None), ("params", 128), *metrics, ("end", None)]


@pytest.mark.parametrize(
    ("logger", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")]
)
def test_a_logger_that_is_not_installed(
    project: Project, monkeypatch: pytest.MonkeyPatch, logger: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentFault, match=rf"pip install 'softlabel\[{logger}\]'"):
        train_student.run(parameters(logger=logger))


def test_settings_that_do_not_fit_together(project: Project, command: Command) -> None:
    for flags, words in (
        (("--schedule", "step"), "schedule 'step' and step_epochs go together"),
        (("--patience", "2"), "patience needs a validation source"),
        (("--warmup-epochs", "2", "--epochs", "2"), "warmup_epochs is 2, must be below the 2"),
        (("--optimizer", "adamww"), "did you mean 'adamw'"),
    ):
        outcome = command("train-student", "--model", MLP, "--output", "student", *flags)
        assert outcome.code == 2
        assert words in outcome.stderr
    assert not Path("student").exists()


def test_predictions_are_kept_by_one_process(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = types.SimpleNamespace(world_size=2, global_rank=1, is_global_zero=False)
    monkeypatch.setattr(train_student, "launch_fabric", lambda *_, **__: two)
    params = parameters(loss="kd", targets="self", temperature=1.0)
    with pytest.raises(ParameterError, match="'self' are kept by one process; start it without"):
        train_student.run(params)
    assert not Path("student").exists()


def test_more_ranks_than_gpus(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(EnvironmentFault, match="2 ranks here and torch sees 1 CUDA devices"):
        train_student.run(parameters(device="cuda"))
    assert not Path("student").exists()


def test_mutual_information_over_the_epochs(project: Project, command: Command) -> None:
    train_student.run(parameters(output="plain"))
    pair = {"information_samples": 20, "information_classes": ("3", "0")}
    report = train_student.run(parameters(**pair))
    told = [record.mutual_information for record in report.history]
    assert len(told) == 2
    assert all(value is not None and -0.1 < value <= math.log(20) for value in told)
    assert report.information == InformationBasis(
        classes=("3", "0"), samples=20, draws=20, shift=0.25
    )
    assert TrainReport.model_validate_json(Path("student/train.json").read_bytes()) == report
    # To look changes nothing.
    torch.testing.assert_close(weights_of("student"), weights_of("plain"), rtol=0, atol=0)
    outcome = command(
        "train-student", "--model", MLP, "--epochs", "1", "--logger", "none", "--output", "third",
        "--information-samples", "20",
    )  # fmt: skip
    assert "mutual information of picture and logits" in outcome.stdout
    assert "of at most 3.00 nats (20 samples of" in outcome.stdout
