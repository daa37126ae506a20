"""Types of parameters that several stages take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from softlabel.schemas.augment import Transforms
from softlabel.schemas.teacher import Interpolation

Device = Literal["auto", "cpu", "cuda"]
TeacherDevice = Literal["auto", "cpu", "cuda", "tensorrt"]
IfDifferent = Literal["error", "replace"]
OnBadSample = Literal["stop", "skip"]
MeanOf = Literal["logits", "probs"]
Positive = Annotated[float, Field(gt=0)]
BatchSize = Annotated[int, Field(ge=1)] | Literal["auto"]


def _several(value: object) -> object:
    """A list of the one path that was given."""
    return (value,) if isinstance(value, str | Path) else value


Paths = Annotated[
    tuple[Path, ...], BeforeValidator(_several, json_schema_input_type=Path | tuple[Path, ...])
]
Metrics = Annotated[
    Path | None,
    Field(
        description="folder that receives metrics.json, and plots where there are any, for DVC; "
        "default: nothing is written",
    ),
]
Workers = Annotated[
    int | None,
    Field(
        ge=0,
        description="threads that decode pictures, which changes no label; default: as many as "
        "processors [threads]",
    ),
]
Views = Annotated[
    int,
    Field(
        ge=1,
        le=65536,
        description="augmented versions of each sample that are labelled, a row each; more than "
        "one need --augment",
    ),
]
Augment = Annotated[
    Transforms,
    Field(
        description="what makes a view of a picture: torchvision transforms by name, in their "
        "order, such as ["
        '{"name": "random_resized_crop", "scale": [0.25, 1]}, "horizontal_flip"]',
    ),
]
ViewSeed = Annotated[int, Field(ge=0, description="seed of the views; of no use without --augment")]
Resize = Annotated[
    int | None,
    Field(
        gt=0,
        description="shorter side that encoded pictures are scaled to before the centre is "
        "cropped; default: they are scaled to height x width whatever their shape [pixels]",
    ),
]
Scaling = Annotated[
    Interpolation | None,
    Field(description="how encoded pictures are scaled; default: not, they have the size already"),
]


def check_mean(
    members: int, kind: str, weights: Sequence[float], mean: MeanOf, temperature: float | None
) -> None:
    """Raise ValueError where weights or temperature do not go with such a mean of so many."""
    if weights and len(weights) != members:
        raise ValueError(f"weights are {len(weights)} for {members} {kind}; give one each")
    if mean == "probs" and temperature is None:
        raise ValueError("mean 'probs' needs the temperature of the probabilities; give one")
    if mean == "logits" and temperature is not None:
        raise ValueError("temperature is of mean 'probs'; leave it out for mean 'logits'")
