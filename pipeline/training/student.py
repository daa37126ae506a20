"""Building a trained student again from its card."""

from __future__ import annotations

from pathlib import Path

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.teachers.models import PictureModel, build_model, load_weights
from softlabel.pipeline.training.cards import read_card
from softlabel.schemas.errors import DataError
from softlabel.schemas.reports import StudentCard


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
