"""How a student sees pictures where nobody says it whole."""

from __future__ import annotations

from pydantic import ValidationError

from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.training.ensemble import Labels
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.teacher import Framing, Interpolation


def student_framing(
    source: Source,
    labels: Labels | None,
    section: str,
    height: int | None,
    width: int | None,
    channels: int | None,
    resize: int | None,
    interpolation: Interpolation | None,
) -> Framing:
    """As told, else in the size of the source's first picture.

    Encoded ones have as many channels as the teacher took, or three: a source may begin with a
    grey picture and go on in colour. section: what errors call the place of these settings. Raises
    ParameterError.
    """
    first = source.shape
    if source.framing is not None:
        taught = None if labels is None else labels.manifest.identity.preprocess
        first = (first[0], first[1], channels or (taught.channels if taught else 3))
    elif channels not in (None, first[2]):
        raise ParameterError(
            f"{section}.channels: is {channels}, the pictures of {source.path} have {first[2]}"
        )
    try:
        return Framing(
            height=height or first[0],
            width=width or first[1],
            channels=first[2],
            resize=resize,
            interpolation=interpolation,
        )
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ParameterError(f"{section}: {reason}") from error
