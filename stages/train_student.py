"""train-student: a model from hard labels, smoothed labels or a stored label set."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import ValidationError

from softlabel.pipeline.classes import class_map
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.publish import make_folder, publish_bytes
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.models import (
    PictureModel,
    build_model,
    check_fits,
    count_parameters,
    weights_bytes,
)
from softlabel.pipeline.training.cards import CARD_FILE, TRAIN_FILE, WEIGHTS_FILE
from softlabel.pipeline.training.curves import dvclive_curves
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.loop import Validation, device_name, make_fabric, train
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import sha256_of
from softlabel.schemas.model import report_json
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports import CalibrateReport, EpochRecord, StudentCard, TrainReport
from softlabel.schemas.teacher import Framing


def run(params: TrainParams, progress: Progress | None = None) -> TrainReport:
    """Train one model and publish its weights, its report and, last, its card.

    Raises ParameterError, DataError, EnvironmentFault.
    """
    progress = progress or Quiet()
    begin = time.perf_counter()
    labels = _soft_labels(params)
    classes = () if labels is None else labels.classes
    source = open_source(params.source).naming(classes)
    framing = _framing(params, source, labels)
    source = source.framed(framing, "the student")
    if not source.classes:
        raise DataError(
            f"{source.path}: names no classes; train from a label set, or prepare the source with "
            "its class names"
        )
    validation = _validation(params, source, framing)
    fitted = 1.0 if labels is None else _fitted_temperature(params, labels)
    sparse = labels is not None and labels.manifest.identity.codec == "topk"
    samples = JoinedSamples(
        source,
        labels,
        fitted * params.temperature,
        sparse=sparse and params.loss == "kd" and params.tail == "bucket",
    )
    fabric = make_fabric(params.device, params.precision)
    torch.manual_seed(params.seed)
    model = _picture_model(params, source)
    folder = params.output / f"{params.run}-{params.seed}" if params.run else params.output
    make_folder(folder)
    (folder / CARD_FILE).unlink(missing_ok=True)
    steps = math.ceil(samples.rows / params.batch_size)
    progress.say(f"{params.model}, {count_parameters(model):,} parameters, {device_name(fabric)}")
    progress.start(folder.name, params.epochs, "epochs")
    history: list[EpochRecord] = []
    with _curves(params, folder) as log:

        def on_epoch(record: EpochRecord) -> None:
            history.append(record)
            log(record)
            progress.advance(1)

        train(
            params,
            fabric,
            model,
            lambda epoch: samples.epoch(params.seed, epoch, params.batch_size, params.shuffle_rows),
            steps,
            validation,
            on_epoch,
            fitted,
        )
    report = TrainReport(
        output=folder,
        run=params.run or folder.name,
        seed=params.seed,
        loss=params.loss,
        parameters=count_parameters(model),
        samples=samples.rows,
        steps=steps * params.epochs,
        device=device_name(fabric),
        seconds=time.perf_counter() - begin,
        labels_identity_sha256=labels.identity if labels else None,
        history=tuple(history),
    )
    _publish(params, source, labels, model, folder, report)
    return report


def _soft_labels(params: TrainParams) -> LabelSet | None:
    if params.loss == "hard" or params.labels is None:
        return None
    labels = open_labelset(params.labels)
    needs_all = params.loss in ("dkd", "dist", "mse") or params.standardise
    if labels.manifest.identity.codec == "topk" and (needs_all or params.temperature_end):
        wanted = "standardise" if params.standardise else f"loss {params.loss!r}"
        if params.loss == "kd" and params.temperature_end:
            wanted = "temperature_end"
        raise ParameterError(
            f"train: {wanted} needs the logits of all classes at any temperature, and "
            f"{params.labels} keeps {labels.manifest.identity.k} of them; use loss 'kd' at one "
            "temperature, or label again with --codec dense-f16"
        )
    return labels


def _fitted_temperature(params: TrainParams, labels: LabelSet) -> float:
    """The T that `calibrate` fitted to this teacher; 1 where none was asked for."""
    if params.calibration is None:
        return 1.0
    try:
        report = CalibrateReport.model_validate_json(params.calibration.read_bytes())
    except FileNotFoundError as error:
        raise ParameterError(
            f"{params.calibration}: no such calibration; make it with 'softlabel calibrate'"
        ) from error
    except ValidationError as error:
        raise DataError(
            f"{params.calibration}: is no calibration.json; make it with 'softlabel calibrate'"
        ) from error
    if report.teacher_sha256 != labels.manifest.identity.teacher_sha256:
        raise DataError(
            f"{params.calibration}: was fitted to another teacher than that of {labels.folder}; "
            "calibrate with labels of this one"
        )
    return report.temperature


def _framing(params: TrainParams, source: Source, labels: LabelSet | None) -> Framing:
    """How the student sees pictures: as told, else in the size of the source's first.

    Encoded ones have as many channels as the teacher took, or three: a source may begin with a
    grey picture and go on in colour.
    """
    height, width, channels = source.shape
    if source.framing is not None:
        taught = None if labels is None else labels.manifest.identity.preprocess
        channels = params.channels or (taught.channels if taught else 3)
    elif params.channels not in (None, channels):
        raise ParameterError(
            f"train.channels: is {params.channels}, the pictures of {source.path} have {channels}"
        )
    try:
        return Framing(
            height=params.height or height,
            width=params.width or width,
            channels=channels,
            resize=params.resize,
            interpolation=params.interpolation,
        )
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ParameterError(f"train: {reason}") from error


def _validation(params: TrainParams, source: Source, framing: Framing) -> Validation | None:
    """The source to validate on, seen as the student sees it, its classes found by name."""
    if params.validation is None:
        return None
    validation = (
        open_source(params.validation).naming(source.classes).framed(framing, "the student")
    )
    names = (f"source {source.path}", f"source {validation.path}")
    return Validation(validation, class_map(source.classes, validation.classes, names))


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
    inner = build_model(params.model, params.model_args, len(source.classes), channels)
    model = PictureModel(inner, mean, std)
    check_fits(model, params.model, source.shape, len(source.classes))
    return model


def _curves(
    params: TrainParams, folder: Path
) -> contextlib.AbstractContextManager[Callable[[EpochRecord], None]]:
    if params.logger == "dvclive":
        return dvclive_curves(folder)
    return contextlib.nullcontext(lambda record: None)


def _publish(
    params: TrainParams,
    source: Source,
    labels: LabelSet | None,
    model: PictureModel,
    folder: Path,
    report: TrainReport,
) -> None:
    weights = weights_bytes(model.model)
    height, width, channels = source.shape
    soft = params.loss != "hard"
    card = StudentCard(
        run=report.run,
        seed=params.seed,
        model=params.model,
        model_args=params.model_args,
        weights=WEIGHTS_FILE,
        weights_sha256=sha256_of(weights),
        classes=source.classes,
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
        labels_identity_sha256=labels.identity if labels else None,
    )
    publish_bytes(folder / WEIGHTS_FILE, weights)
    publish_bytes(folder / TRAIN_FILE, report_json(report))
    publish_bytes(folder / CARD_FILE, report_json(card))
