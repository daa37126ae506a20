"""The pictures that a label set's teacher saw, for those who read its labels."""

from __future__ import annotations

from pathlib import Path

from softlabel.pipeline.sources.fitting import size
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Identity


def replayed(source: Source, identity: Identity, folder: Path) -> Source:
    """The framed source with the views that the labels in `folder` are of; without, as it is.

    In the teacher's size these are its pictures bit for bit. In another one they are drawn by the
    same numbers: the same crop, flip and jitter. Raises DataError where the set does not say how
    its views were made, ParameterError where a transform draws otherwise at this size,
    EnvironmentFault where torchvision is missing or of another release.
    """
    augment = identity.augment
    if augment is None:
        if identity.views > 1:
            raise DataError(
                f"{folder}: holds {identity.views} views of each sample and does not say how they "
                "were made, so their pictures cannot be made again; label the source again"
            )
        return source
    assert identity.preprocess is not None, "views are of pictures"
    taught = identity.preprocess.shape
    sized = [transform.name for transform in augment.transforms if transform.sized]
    same_size = source.shape[:2] == taught[:2]
    if source.shape[2] != taught[2] or (sized and not same_size):
        why = f"{sized[0]} draws otherwise at another" if sized else "their colours count"
        raise ParameterError(
            f"{folder}: its views are of pictures of {size(taught)}, and {why}; take those, not "
            f"{size(source.shape)}, or label again for this size"
        )
    return source.viewed(augment, identity.seed, identity.views)
