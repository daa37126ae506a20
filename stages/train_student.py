"""train-student: a model from hard labels, smoothed labels or a stored label set."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from lightning_fabric import Fabric

from softlabel.pipeline.labelset.lease import lease
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.publish import file_sha256, make_folder, publish_bytes, remove_temporaries
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.models import (
    PictureModel,
    build_model,
    check_fits,
    count_parameters,
    weights_bytes,
)
from softlabel.pipeline.training.cards import CARD_FILE, ONNX_FILE, TRAIN_FILE, WEIGHTS_FILE
from softlabel.pipeline.training.checkpoints import open_checkpoints
from softlabel.pipeline.training.curves import curves
from softlabel.pipeline.training.fabric import device_name, make_fabric
from softlabel.pipeline.training.inputs import TrainingInputs, open_inputs
from softlabel.pipeline.training.loop import train
from softlabel.pipeline.training.optimizing import make_optimizer
from softlabel.pipeline.training.student import student_onnx
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.labelset import sha256_of
from softlabel.schemas.model import report_json
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports import EpochRecord, StudentCard, TrainReport

PARITY_ROWS = 16


def run(params: TrainParams, progress: Progress | None = None) -> TrainReport:
    """Train one model and publish its weights, its report and, last, its card.

    A run that was stopped goes on from its last checkpoint. Raises ParameterError, DataError,
    IdentityError, EnvironmentFault, LeaseHeld.
    """
    begin = time.perf_counter()
    inputs = open_inputs(params)
    fabric = make_fabric(params.device, params.precision)
    torch.manual_seed(params.seed)
    model = _picture_model(params, inputs.source)
    # Refuses what it does not take before anything is written or removed.
    make_optimizer(params, model)
    folder = params.output / f"{params.run}-{params.seed}" if params.run else params.output
    make_folder(folder)
    with lease(folder):
        remove_temporaries(folder)
        return _train(params, inputs, fabric, model, folder, progress or Quiet(), begin)


def _train(
    params: TrainParams,
    inputs: TrainingInputs,
    fabric: Fabric,
    model: PictureModel,
    folder: Path,
    progress: Progress,
    begin: float,
) -> TrainReport:
    start = params.weights and file_sha256(params.weights)
    checkpoints = open_checkpoints(folder, params, inputs.identities | {"weights file": start})
    for name in (CARD_FILE, ONNX_FILE):
        (folder / name).unlink(missing_ok=True)
    samples = inputs.samples
    steps = math.ceil(samples.rows / params.batch_size)
    progress.say(f"{params.model}, {count_parameters(model):,} parameters, {device_name(fabric)}")
    done = checkpoints.steps_done(steps)
    if done:
        progress.say(f"{folder}: goes on after {done:,} of {steps * params.epochs:,} steps")
    progress.start(folder.name, params.epochs, "epochs")
    history: list[EpochRecord] = []
    with curves(params, folder) as log:

        def on_epoch(record: EpochRecord) -> None:
            history.append(record)
            log(record)
            progress.advance(1)

        best_epoch = train(
            params,
            fabric,
            model,
            lambda epoch, first: samples.epoch(
                params.seed, epoch, params.batch_size, params.shuffle_rows, first
            ),
            steps,
            inputs.validation,
            on_epoch,
            inputs.fitted_temperature,
            checkpoints,
        )
    report = TrainReport(
        output=folder,
        run=params.run or folder.name,
        seed=params.seed,
        loss=params.loss,
        parameters=count_parameters(model),
        samples=samples.rows,
        rejects=inputs.source.rows - samples.rows,
        steps=steps * len(history),
        device=device_name(fabric),
        seconds=time.perf_counter() - begin,
        labels_identity_sha256=inputs.labels.identity if inputs.labels else None,
        best_epoch=best_epoch,
        history=tuple(history),
    )
    _publish(params, inputs, model, folder, report)
    checkpoints.remove()
    return report


def _picture_model(params: TrainParams, source: Source) -> PictureModel:
    channels = source.shape[2]
    mean = params.mean or (0.5,) * channels
    std = params.std or (0.5,) * channels
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ParameterError(
                f"train: {name} has {len(values)} values, the pictures of {params.source} have "
                f"{channels} channels; give one each"
            )
    inner = build_model(
        params.model, params.model_args, len(source.classes), channels, params.weights
    )
    model = PictureModel(inner, mean, std)
    check_fits(model, params.model, source.shape, len(source.classes))
    return model


def _publish(
    params: TrainParams,
    inputs: TrainingInputs,
    model: PictureModel,
    folder: Path,
    report: TrainReport,
) -> None:
    weights = weights_bytes(model.model)
    height, width, channels = inputs.source.shape
    soft = params.loss != "hard"
    card = StudentCard(
        run=report.run,
        seed=params.seed,
        model=params.model,
        model_args=params.model_args,
        weights=WEIGHTS_FILE,
        weights_sha256=sha256_of(weights),
        classes=inputs.source.classes,
        height=height,
        width=width,
        channels=channels,
        resize=params.resize,
        interpolation=params.interpolation,
        mean=tuple(params.mean) or (0.5,) * channels,
        std=tuple(params.std) or (0.5,) * channels,
        parameters=report.parameters,
        loss=params.loss,
        temperature=params.temperature if soft and params.loss != "mse" else None,
        soft_weight=params.soft_weight if soft else None,
        label_smoothing=params.label_smoothing,
        labels_identity_sha256=report.labels_identity_sha256,
    )
    if params.export_onnx:
        first = inputs.source.reopen().first(PARITY_ROWS).inputs
        publish_bytes(folder / ONNX_FILE, student_onnx(card, model, first))
    publish_bytes(folder / WEIGHTS_FILE, weights)
    publish_bytes(folder / TRAIN_FILE, report_json(report))
    publish_bytes(folder / CARD_FILE, report_json(card))
