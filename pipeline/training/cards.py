"""student.json, the card beside a student's weights: find it and read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.reports.training import StudentCard

CARD_FILE = "student.json"
WEIGHTS_FILE = "student.safetensors"
TRAIN_FILE = "train.json"
ONNX_FILE = "student.onnx"


def read_card(path: Path) -> StudentCard:
    """The card in file `path`. Raises ParameterError, DataError."""
    if not path.is_file():
        raise ParameterError(f"{path}: no such card; 'softlabel train-student' writes it")
    try:
        return StudentCard.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise DataError(
            f"{path}: is no student card ({where}: {problem['msg']}); train the student again"
        ) from error


def find_cards(paths: Sequence[Path]) -> list[Path]:
    """The cards at `paths`, each a card, a student's folder or a folder of such folders; sorted.

    Raises ParameterError where a path holds none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            cards = [path]
        elif (path / CARD_FILE).is_file():
            cards = [path / CARD_FILE]
        else:
            cards = sorted(path.glob(f"*/{CARD_FILE}"))
        if not cards:
            raise ParameterError(
                f"{path}: no {CARD_FILE} there or one folder below; "
                "train with 'softlabel train-student' or name another --models"
            )
        found += cards
    return list(dict.fromkeys(found))
