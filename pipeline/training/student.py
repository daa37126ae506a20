"""A trained student from its card: built again, or as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.teachers.models import PictureModel, build_model, load_weights
from softlabel.pipeline.teachers.position_model import PositionModel
from softlabel.pipeline.teachers.sequence_model import SequenceModel
from softlabel.pipeline.training.cards import read_card
from softlabel.schemas.errors import DataError
from softlabel.schemas.params import ExportParams
from softlabel.schemas.reports.training import StudentCard
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import TeacherSpec


def load_student(path: Path) -> tuple[StudentCard, PictureModel | SequenceModel]:
    """The card in file `path` and its model with its weights, on the CPU, in eval mode.

    Raises ParameterError, DataError.
    """
    card = read_card(path)
    weights = path.parent / card.weights
    inner = build_model(card.model, card.model_args, len(card.classes), card.channels)
    load_weights(inner, weights)
    if file_sha256(weights) != card.weights_sha256:
        raise DataError(f"{weights}: is not the file that {path} describes; train again")
    if card.inputs is not None:
        return card, SequenceModel(inner, [one.name for one in card.inputs]).eval()
    if card.grid is not None:
        return card, PositionModel(inner, card.mean, card.std, len(card.classes)).eval()
    return card, PictureModel(inner, card.mean, card.std).eval()


def student_onnx(card: StudentCard, model: PictureModel | SequenceModel, samples: Array) -> bytes:
    """The student as the ONNX file that 'export' makes of its card.

    samples: inputs of any number, as `SampleBlock` has them, to compare ONNX Runtime with PyTorch
    on. Raises DataError where torch cannot export it, CheckFailed where the two disagree.
    """
    from softlabel.pipeline.teachers.export import (
        OUTPUT_NAME,
        PARITY_BATCH_SIZES,
        check_parity,
        export_onnx,
    )
    from softlabel.pipeline.teachers.sequence_export import check_sequence_parity, export_sequences

    usual = ExportParams(model=card.model)
    spec = TeacherSpec(
        preprocess=card.preprocess,
        inputs=card.inputs,
        positions=card.positions or None,
        grid=card.grid,
        classes=card.classes,
        output=OUTPUT_NAME,
        opset=usual.opset,
    )
    enough = np.resize(samples, (max(PARITY_BATCH_SIZES), *samples.shape[1:]))
    model = model.cpu()
    if isinstance(model, SequenceModel):
        exported = export_sequences(model, spec, enough, usual.opset)
        check_sequence_parity(model, exported, enough, usual.tolerance)
        return exported
    exported = export_onnx(model, spec, usual.opset)
    check_parity(model, exported, enough, usual.tolerance)
    return exported
