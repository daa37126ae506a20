"""A trained student from its card: built again, or as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.teachers.models import PictureModel, build_model, load_weights
from softlabel.pipeline.training.cards import read_card
from softlabel.schemas.errors import DataError
from softlabel.schemas.params import ExportParams
from softlabel.schemas.reports.training import StudentCard
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import Preprocess, TeacherSpec


def load_student(path: Path) -> tuple[StudentCard, PictureModel]:
    """The card in file `path` and its model with its weights, on the CPU, in eval mode.

    Raises ParameterError, DataError.
    """
    card = read_card(path)
    weights = path.parent / card.weights
    inner = build_model(card.model, card.model_args, len(card.classes), card.channels)
    load_weights(inner, weights)
    if file_sha256(weights) != card.weights_sha256:
        raise DataError(f"{weights}: is not the file that {path} describes; train again")
    return card, PictureModel(inner, card.mean, card.std).eval()


def student_onnx(card: StudentCard, model: PictureModel, pixels: Array) -> bytes:
    """The student as the ONNX file that 'export' makes of its card.

    pixels: uint8 `[N, H, W, C]`, any number of them, to compare ONNX Runtime with PyTorch on.
    Raises DataError where torch cannot export it, CheckFailed where the two disagree.
    """
    from softlabel.pipeline.teachers.export import (
        OUTPUT_NAME,
        PARITY_BATCH_SIZES,
        check_parity,
        export_onnx,
    )

    usual = ExportParams(model=card.model)
    spec = TeacherSpec(
        preprocess=Preprocess(
            height=card.height,
            width=card.width,
            channels=card.channels,
            resize=card.resize,
            interpolation=card.interpolation,
            mean=card.mean,
            std=card.std,
            layout="NHWC",
            in_graph=True,
        ),
        classes=card.classes,
        output=OUTPUT_NAME,
        opset=usual.opset,
    )
    model = model.cpu()
    exported = export_onnx(model, spec, usual.opset)
    enough = np.resize(pixels, (max(PARITY_BATCH_SIZES), *pixels.shape[1:]))
    check_parity(model, exported, enough, usual.tolerance)
    return exported
