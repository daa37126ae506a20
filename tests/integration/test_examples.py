"""Each example learns as the command line does: the same losses on the same batches."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from softlabel.schemas.params import InferParams, TrainParams
from softlabel.stages import infer, train_student
from tests.conftest import Project

EPOCHS, BATCH, STEPS = 2, 50, 10
SMALL: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH}


@pytest.fixture(autouse=True)
def examples(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(repo_root / "examples")


@pytest.fixture(scope="module")
def labelled(make_project: Callable[[], Project]) -> Path:
    project = make_project()
    source = project.source(shards=(300, 200))
    labels = project.root / "labels"
    infer.run(InferParams(teacher=project.teacher(), source=source, output=labels, device="cpu"))
    return project.root


@pytest.fixture
def model(labelled: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    return importlib.import_module("student").student(num_classes=10)  # type: ignore[no-any-return]


@pytest.fixture
def wanted(labelled: Path, request: pytest.FixtureRequest) -> list[float]:
    """The mean losses of the command line's epochs."""
    params = TrainParams(
        model="student:student",
        source=labelled / "data/train",
        labels=labelled / "labels",
        loss="kd",
        logger="none",
        device="cpu",
        output=labelled / request.node.name,
        **SMALL,
    )
    return [record.loss for record in train_student.run(params).history]


def means(losses: list[float]) -> list[float]:
    """The mean losses of epochs, all batches being of one size."""
    assert len(losses) == EPOCHS * STEPS
    return [sum(losses[epoch * STEPS :][:STEPS]) / STEPS for epoch in range(EPOCHS)]


def close(losses: list[float], wanted: list[float]) -> bool:
    return losses == pytest.approx(wanted, rel=1e-5)


def example(name: str, needs: str) -> Any:
    pytest.importorskip(needs, reason=f"the example {name} needs {needs}")
    return importlib.import_module(name)


@pytest.mark.parametrize("stopped", [None, 13])
def test_plain_pytorch(
    labelled: Path, model: Any, wanted: list[float], tmp_path: Path, stopped: int | None
) -> None:
    """Stopped within an epoch and gone on with, it takes the very same steps."""
    train = importlib.import_module("plain_pytorch").train
    places = (labelled / "data/train", labelled / "labels", tmp_path / "checkpoint.pt")
    losses = train(model, *places, last_step=stopped, **SMALL)
    if stopped is not None:
        assert len(losses) == stopped
        other = importlib.import_module("student").student(num_classes=10)
        losses += train(other, *places, **SMALL)
    assert close(means(losses), wanted)


def test_timm(labelled: Path, model: Any, wanted: list[float]) -> None:
    train = example("with_timm", "timm").train
    losses, average = train(model, labelled / "data/train", labelled / "labels", **SMALL)
    assert close(losses, wanted)
    pairs = zip(average.parameters(), model.parameters(), strict=True)
    assert any((one != two).any() for one, two in pairs)


def test_transformers(
    labelled: Path, model: Any, wanted: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("with_transformers", "transformers")
    losses: list[float] = []
    trainer = module.make_trainer(
        model,
        labelled / "data/train",
        labelled / "labels",
        batch_size=BATCH,
        output_dir=str(tmp_path),
        num_train_epochs=EPOCHS,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    compute = trainer.compute_loss

    def listening(*arguments: Any, **settings: Any) -> Any:
        loss = compute(*arguments, **settings)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(trainer, "compute_loss", listening)
    trainer.train()
    assert close(means(losses), wanted)


# Lightning has advice on what is meant here: few workers, a dataset with a length, a second fit.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning(labelled: Path, model: Any, wanted: list[float], tmp_path: Path) -> None:
    """The second fit goes on from a checkpoint within an epoch."""
    module = example("with_lightning", "lightning")
    lightning = sys.modules["lightning"]
    losses: list[float] = []

    class Listening(lightning.Callback):  # type: ignore[name-defined,misc]
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(outputs["loss"].item())

    def fit(model: Any, checkpoint: Path | None = None) -> None:
        saving = lightning.pytorch.callbacks.ModelCheckpoint(
            tmp_path, "middle", every_n_train_steps=STEPS + 3, save_top_k=-1
        )
        trainer = lightning.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Listening(), saving],
        )
        samples = module.StoredLabels(labelled / "data/train", labelled / "labels", BATCH)
        student = module.Student(model, labelled / "labels")
        trainer.fit(student, datamodule=samples, ckpt_path=checkpoint, weights_only=True)

    fit(model)
    assert close(means(losses), wanted)
    rest = losses[STEPS + 3 :]
    losses.clear()
    other = importlib.import_module("student").student(num_classes=10)
    fit(other, tmp_path / "middle.ckpt")
    assert losses == pytest.approx(rest, rel=1e-5)
