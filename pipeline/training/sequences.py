"""What a student of sequences is fed: the columns that its forward has arguments for."""

from __future__ import annotations

from collections.abc import Sequence

from softlabel.pipeline.sources.sequences import offered_inputs
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.models import build_model
from softlabel.pipeline.teachers.sequence_model import taken_inputs
from softlabel.pipeline.training.ensemble import Labels
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.params import TrainParams
from softlabel.schemas.teacher import NumberInput

_OF_PICTURES = ("height", "width", "channels", "resize", "interpolation", "mean", "std")
_TRICKS = ("mixup", "cutmix", "information_samples")


def of_sequences(source: Source, labels: Labels | None) -> bool:
    """Whether samples are sequences: their labels are of positions."""
    positions = labels is not None and labels.manifest.identity.positions
    return source.numbers is not None and (positions or source.listed)


def sequence_inputs(params: TrainParams, source: Source) -> tuple[NumberInput, ...]:
    """What the model of `params` takes of the source's lists and of their masks.

    The model is built for its forward's sake alone. Raises ParameterError where it takes none of
    them, or where a setting does not go with sequences.
    """
    _check_settings(params)
    model = build_model(params.model, params.model_args, len(source.classes), None)
    return taken_inputs(model, params.model, offered_inputs(source.numbers or {}))


def named_inputs(source: Source, names: Sequence[str] | None) -> tuple[NumberInput, ...]:
    """The source's lists and masks of these names; all of them by default.

    Raises ParameterError where there is none of a name.
    """
    offered = {one.name: one for one in offered_inputs(source.numbers or {})}
    wanted = list(offered) if names is None else names
    missing = [name for name in wanted if name not in offered]
    if missing:
        raise ParameterError(
            f"{source.path}: has no lists of numbers {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(repr, offered))}"
        )
    return tuple(offered[name] for name in wanted)


def _check_settings(params: TrainParams) -> None:
    given = [name for name in _OF_PICTURES if getattr(params, name)]
    given += [name for name in _TRICKS if getattr(params, name)]
    if given:
        raise ParameterError(
            f"train: {', '.join(given)} are of pictures, and {params.source} has sequences; leave "
            "them out"
        )
    if params.targets != "stored":
        raise ParameterError(
            f"train: targets {params.targets!r} are of pictures, and {params.source} has "
            "sequences; use a stored label set"
        )
