"""What a training reads, opened and checked before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from softlabel.pipeline.classes import class_map
from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.training.distillation import soft_term
from softlabel.pipeline.training.ensemble import LabelEnsemble, Labels
from softlabel.pipeline.training.framing import student_framing
from softlabel.pipeline.training.hints import feature_width
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.positions import seen_positions
from softlabel.pipeline.training.probe import InformationProbe, open_probe
from softlabel.pipeline.training.sequences import of_sequences, sequence_inputs
from softlabel.pipeline.training.validation import Validation
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import sha256_of
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports import CalibrateReport
from softlabel.schemas.teacher import Framing, NumberInput, SequenceInputs


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """The samples as the student sees them, their soft labels, and those to validate on.

    fitted_temperature: divides the teacher's logits alone. features: how many the hints learn from,
    None without hints. probe: what mutual information is estimated on, None where it is not.
    inputs: what a student of sequences is fed, None of pictures.
    """

    source: Source
    labels: Labels | None
    samples: JoinedSamples
    validation: Validation | None
    fitted_temperature: float
    features: int | None
    probe: InformationProbe | None
    inputs: tuple[NumberInput, ...] | None

    @property
    def identities(self) -> dict[str, Any]:
        """What tells these inputs from others under the same names, JSON values."""
        validation = self.validation and _fingerprint(self.validation.source)
        return {
            "source files": _fingerprint(self.source),
            "validation files": validation,
            "labels' identity": self.labels.identity if self.labels else None,
            "samples": self.samples.rows,
            "fitted temperature": self.fitted_temperature,
        }


def open_inputs(params: TrainParams) -> TrainingInputs:
    """Open what `params` name.

    Raises ParameterError, and DataError where it does not fit together.
    """
    labels = _soft_labels(params)
    beside = _beside_hard(params)
    told = beside if labels is None else labels
    classes = () if told is None else told.classes
    source = open_source(params.source).naming(classes)
    inputs = None
    if of_sequences(source, labels):
        _refuse_unnamed(source)
        inputs = sequence_inputs(params, source)
        seen = partial(Source.fed, wanted=SequenceInputs(inputs=inputs), taker="the student")
    else:
        framing = _framing(params, source, labels)
        seen = partial(Source.framed, wanted=framing, taker="the student")
    source = seen_positions(params, seen(source), told)
    _refuse_unnamed(source)
    validation = _validation(params, source, seen)
    without = beside if beside is not None and beside.rejects else None
    fitted = 1.0 if labels is None else _fitted_temperature(params, labels)
    sparse = labels is not None and labels.manifest.identity.codec == "topk"
    width = feature_width(labels) if isinstance(labels, LabelSet) and params.hint_layer else None
    samples = JoinedSamples(
        source,
        labels,
        fitted * soft_term(params, 0).temperature,
        sparse=sparse and params.loss == "kd" and params.tail == "bucket",
        factored=isinstance(labels, LabelSet) and isinstance(labels.codec, Factored),
        features=width is not None,
        without=without,
    )
    probe = open_probe(params, source, () if told is None else told.rejects)
    return TrainingInputs(source, labels, samples, validation, fitted, width, probe, inputs)


def _refuse_unnamed(source: Source) -> None:
    if not source.classes:
        raise DataError(
            f"{source.path}: names no classes; train from a label set, or prepare the source with "
            "its class names"
        )


def _framing(params: TrainParams, source: Source, labels: Labels | None) -> Framing:
    return student_framing(
        source,
        labels,
        "train",
        params.height,
        params.width,
        params.channels,
        params.resize,
        params.interpolation,
    )


def _fingerprint(source: Source) -> str:
    files = [file.model_dump_json() for file in source.files]
    return sha256_of("\n".join(files).encode())


def _soft_labels(params: TrainParams) -> Labels | None:
    if params.loss == "hard" or not params.labels:
        return None
    labels = _opened(params)
    needs_all = params.loss in ("dkd", "dist", "mse") or params.standardise
    if labels.manifest.identity.codec == "topk" and (needs_all or params.temperature_end):
        wanted = "standardise" if params.standardise else f"loss {params.loss!r}"
        if params.loss == "kd" and params.temperature_end:
            wanted = "temperature_end"
        raise ParameterError(
            f"train: {wanted} needs the logits of all classes at any temperature, and "
            f"{labels.folder} keeps {labels.manifest.identity.k} of them; use loss 'kd' at one "
            "temperature, or label again with --codec dense-f16"
        )
    return labels


def _beside_hard(params: TrainParams) -> Labels | None:
    """The label set beside hard labels, which are of its classes and positions.

    Without the samples that it leaves out, the training is of the same samples as those that it is
    compared with.
    """
    return _opened(params) if params.loss == "hard" and params.labels else None


def _opened(params: TrainParams) -> Labels:
    if len(params.labels) == 1:
        return open_labelset(params.labels[0])
    return LabelEnsemble(params.labels, params.labels_weights, params.mean_temperature)


def _fitted_temperature(params: TrainParams, labels: Labels) -> float:
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


def _validation(
    params: TrainParams, source: Source, seen: Callable[[Source], Source]
) -> Validation | None:
    """The source to validate on, seen as the student sees it, its classes found by name."""
    if params.validation is None:
        return None
    validation = seen(open_source(params.validation))
    if source.grid is not None:
        validation = validation.on_grid(source.grid)
    validation = validation.naming(source.classes)
    names = (f"source {source.path}", f"source {validation.path}")
    return Validation(validation, class_map(source.classes, validation.classes, names))
