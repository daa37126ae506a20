"""Students of pictures' positions: segmenters, that learn something of each."""

from __future__ import annotations

from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.models import PictureModel, check_fits
from softlabel.pipeline.teachers.position_model import with_positions
from softlabel.pipeline.training.agreement import check_positions, positions_of
from softlabel.pipeline.training.ensemble import Labels
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.params import TrainParams

_TRICKS = ("mixup", "cutmix", "hint_layer", "information_samples")


def seen_positions(params: TrainParams, source: Source, labels: Labels | None) -> Source:
    """The framed source with the positions that the labels are of; as it is without any.

    Raises ParameterError where a setting does not go with positions, DataError where the student
    sees another part of the pictures than the teacher did.
    """
    grid = None if labels is None else labels.manifest.identity.grid
    if labels is None or grid is None:
        return source
    _check_settings(params)
    own = source.on_grid(grid).naming(labels.classes)
    check_positions(own, labels, "the student")
    return own


def speaking_of(model: PictureModel, source: Source, reference: str) -> PictureModel:
    """The student as one of positions, where its source has them; else as it is.

    Raises ParameterError where it does not take the source's pictures, or speaks of other positions
    than these have.
    """
    classes = len(source.classes)
    found = with_positions(model, source.shape, classes)
    if found is None:
        check_fits(model, reference, source.shape, classes, source.grid)
    grid = None if found is None else found[1]
    if grid != source.grid:
        wanted = positions_of(source.grid)
        raise ParameterError(
            f"model {reference!r}: speaks of {positions_of(grid)}, and its labels are of {wanted}; "
            "let it resize what it says to these, or take labels of another teacher"
        )
    return model if found is None else found[0]


def _check_settings(params: TrainParams) -> None:
    given = [name for name in _TRICKS if getattr(params, name)]
    if params.targets != "stored":
        given.append(f"targets {params.targets!r}")
    if given:
        raise ParameterError(
            f"train: {', '.join(given)} are of pictures with one label, and the labels of "
            f"{params.source} are of positions; leave them out"
        )
