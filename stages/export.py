"""export: a trained PyTorch model into a verified ONNX teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from softlabel.pipeline.classes import read_class_names
from softlabel.pipeline.dvc_files import publish_metrics
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.publish import make_folder, publish_bytes, refuse_folder
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.sequences import offered_inputs
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.export import (
    FEATURES_NAME,
    OUTPUT_NAME,
    PARITY_BATCH_SIZES,
    Parity,
    check_parity,
    export_onnx,
)
from softlabel.pipeline.teachers.models import (
    PictureModel,
    build_model,
    count_parameters,
    load_weights,
)
from softlabel.pipeline.teachers.position_model import with_positions
from softlabel.pipeline.teachers.sequence_export import check_sequence_parity, export_sequences
from softlabel.pipeline.teachers.sequence_model import SequenceModel, check_said, taken_inputs
from softlabel.pipeline.teachers.timm_config import timm_preprocessing
from softlabel.pipeline.training.cards import read_card
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.labelset import sha256_of
from softlabel.schemas.params import ExportParams
from softlabel.schemas.reports import ExportReport
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import Grid, Preprocess, TeacherSpec

OF_PICTURES = ("height", "width", "channels", "resize", "interpolation", "mean", "std")


def run(params: ExportParams, progress: Progress | None = None) -> ExportReport:
    """Publish the ONNX file once ONNX Runtime and PyTorch agree; otherwise publish nothing.

    Raises ParameterError, DataError, EnvironmentFault, and CheckFailed where they disagree.
    """
    progress = progress or Quiet()
    if params.model.endswith(".json"):
        params = _from_card(params)
    elif params.model.startswith("timm:"):
        params = params.model_copy(update=timm_preprocessing(params))
    refuse_folder(params.output)
    samples = None if params.samples is None else open_source(params.samples)
    progress.say(f"exporting {params.model}")
    if samples is not None and samples.numbers is not None:
        done = _sequences(params, samples)
    else:
        done = _pictures(params, samples)
    make_folder(params.output.parent)
    publish_bytes(params.output, done.file)
    report = ExportReport(
        output=params.output,
        bytes=len(done.file),
        sha256=sha256_of(done.file),
        parameters=done.parameters,
        opset=params.opset,
        checked_batch_sizes=PARITY_BATCH_SIZES,
        checked_on=done.checked_on,
        max_difference=done.parity.difference,
        allowed_difference=done.parity.allowed,
    )
    if params.metrics is not None:
        figures = ("bytes", "parameters", "opset", "max_difference", "allowed_difference")
        publish_metrics(
            params.metrics / "metrics.json", {name: getattr(report, name) for name in figures}
        )
    return report


class _Done(NamedTuple):
    """An exported file and what was found of it."""

    file: bytes
    parity: Parity
    parameters: int
    checked_on: str


def _pictures(params: ExportParams, samples: Source | None) -> _Done:
    spec = _spec(params)
    preprocess = spec.preprocess
    assert preprocess is not None
    inner = build_model(params.model, params.model_args, len(spec.classes), preprocess.channels)
    assert params.weights is not None
    load_weights(inner, params.weights)
    model: PictureModel = PictureModel(inner, preprocess.mean, preprocess.std)
    positions = with_positions(model, preprocess.shape, len(spec.classes))
    if positions is not None:
        model, grid = positions
        spec = _of_positions(spec, grid)
    pixels, checked_on = _parity_pixels(params, spec, preprocess, samples)
    exported = export_onnx(model, spec, params.opset)
    parity = check_parity(model, exported, pixels, params.tolerance)
    return _Done(exported, parity, count_parameters(inner), checked_on)


def _of_positions(spec: TeacherSpec, grid: Grid) -> TeacherSpec:
    if spec.features is not None:
        raise ParameterError(
            "export: features are of models that say one thing a picture, and this one speaks of "
            "positions; leave --features out"
        )
    return spec.model_copy(update={"positions": True, "grid": grid})


def _sequences(params: ExportParams, samples: Source) -> _Done:
    _check_sequences(params)
    classes = read_class_names(params.classes)
    inner = build_model(params.model, params.model_args, len(classes), None)
    assert params.weights is not None
    load_weights(inner, params.weights)
    inputs = taken_inputs(inner, params.model, offered_inputs(samples.numbers or {}))
    spec = TeacherSpec(
        inputs=inputs,
        positions=True,
        classes=classes,
        output=OUTPUT_NAME,
        output_kind=params.output_kind,
        opset=params.opset,
    )
    rows = max(PARITY_BATCH_SIZES)
    tokens = np.resize(samples.fed(spec, params.model).first(rows).inputs, rows)
    model = SequenceModel(inner, [one.name for one in inputs])
    check_said(model, params.model, tokens, len(classes))
    exported = export_sequences(model, spec, tokens, params.opset)
    parity = check_sequence_parity(model, exported, tokens, params.tolerance)
    checked_on = f"samples of {params.samples}"
    return _Done(exported, parity, count_parameters(inner), checked_on)


def _check_sequences(params: ExportParams) -> None:
    needed = ("weights", "classes")
    _refuse_missing([name for name in needed if not getattr(params, name)])
    given = [name for name in (*OF_PICTURES, "features") if getattr(params, name)]
    if given:
        raise ParameterError(
            f"export: {', '.join(given)} are of pictures, and {params.samples} has none; leave "
            "them out"
        )


def _from_card(params: ExportParams) -> ExportParams:
    """Fill model, weights, classes and preprocessing from a student.json; flags go first."""
    path = Path(params.model)
    card = read_card(path)
    if card.inputs is not None and params.samples is None:
        raise ParameterError(
            f"export: {path} is of sequences, which are checked on real ones; pass --samples"
        )
    known = {
        "model_args": card.model_args,
        "weights": path.parent / card.weights,
        "classes": card.classes,
        "height": card.height,
        "width": card.width,
        "channels": card.channels,
        "resize": card.resize,
        "interpolation": card.interpolation,
        "mean": card.mean,
        "std": card.std,
    }
    filled = {name: value for name, value in known.items() if not getattr(params, name)}
    return params.model_copy(update=filled | {"model": card.model})


def _spec(params: ExportParams) -> TeacherSpec:
    needed = ("weights", "classes", "height", "width", "channels", "mean", "std")
    _refuse_missing([name for name in needed if not getattr(params, name)])
    try:
        return TeacherSpec(
            preprocess=Preprocess(
                height=params.height or 0,
                width=params.width or 0,
                channels=params.channels or 0,
                resize=params.resize,
                interpolation=params.interpolation,
                mean=params.mean,
                std=params.std,
                layout="NHWC",
                in_graph=True,
            ),
            classes=read_class_names(params.classes),
            output=OUTPUT_NAME,
            output_kind=params.output_kind,
            features=FEATURES_NAME if params.features else None,
            opset=params.opset,
        )
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ParameterError(f"export: {reason}") from error


def _refuse_missing(missing: Sequence[str]) -> None:
    if missing:
        flags = ", ".join("--" + name for name in missing)
        raise ParameterError(
            f"export: a teacher needs its {', '.join(missing)}; pass {flags}, or give --model the "
            "student.json that train-student wrote"
        )


def _parity_pixels(
    params: ExportParams, spec: TeacherSpec, preprocess: Preprocess, samples: Source | None
) -> tuple[Array, str]:
    rows = max(PARITY_BATCH_SIZES)
    if samples is None:
        random = np.random.default_rng(0)
        return random.integers(0, 256, (rows, *preprocess.shape), np.uint8), "random pictures"
    pixels = samples.fed(spec, params.model).first(rows).inputs
    return np.resize(pixels, (rows, *preprocess.shape)), f"samples of {params.samples}"
