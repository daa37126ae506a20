"""Types of the parameters that name teachers: an ensemble, or an ONNX file of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from softlabel.schemas.params.shared import MeanOf, Paths, Positive, check_mean
from softlabel.schemas.teacher import Interpolation, OutputKind

Teachers = Annotated[
    Paths,
    Field(
        min_length=1,
        description="the teacher's ONNX file; given several times, an ensemble: the mean of what "
        "they say, their classes mapped by name to the first one's",
    ),
]
Weights = Annotated[
    tuple[Positive, ...],
    Field(description="weight of each teacher of an ensemble, in their order; default: all alike"),
]
EnsembleMean = Annotated[
    MeanOf,
    Field(
        description="what is averaged over an ensemble: raw logits, or probabilities at a "
        "temperature"
    ),
]
EnsembleTemperature = Annotated[
    Positive | None,
    Field(description="for mean_of 'probs': T of the probabilities that are averaged"),
]
ForeignClasses = Annotated[
    tuple[str, ...],
    Field(description="for an ONNX file without our metadata: class names, or @FILE"),
]
ForeignOutput = Annotated[
    str | None,
    Field(description="for an ONNX file without our metadata: the output that holds the logits"),
]
ForeignKind = Annotated[
    OutputKind | None,
    Field(description="for an ONNX file without our metadata: what that output is"),
]
ForeignLayout = Annotated[
    Literal["NHWC", "NCHW"] | None,
    Field(description="for an ONNX file without our metadata: order of the input's axes"),
]
ForeignMean = Annotated[
    tuple[float, ...],
    Field(description="for an ONNX file without our metadata: per-channel mean, pictures in 0..1"),
]
ForeignStd = Annotated[
    tuple[Positive, ...],
    Field(description="for an ONNX file without our metadata: per-channel deviation"),
]
ForeignHeight = Annotated[
    int | None,
    Field(
        gt=0,
        description="for an ONNX file without our metadata that leaves its picture height open "
        "[pixels]",
    ),
]
ForeignWidth = Annotated[
    int | None,
    Field(gt=0, description="the same for the picture width [pixels]"),
]
ForeignResize = Annotated[
    int | None,
    Field(
        gt=0,
        description="for an ONNX file without our metadata: shorter side that encoded pictures "
        "are scaled to before the centre is cropped; needs --interpolation [pixels]",
    ),
]
ForeignInterpolation = Annotated[
    Interpolation | None,
    Field(
        description="for an ONNX file without our metadata: how encoded pictures are scaled; "
        "default: they have the teacher's size already"
    ),
]


def check_ensemble(
    teachers: tuple[Path, ...],
    weights: tuple[float, ...],
    mean_of: MeanOf,
    temperature: float | None,
) -> None:
    """Raise ValueError where weights or mean are not of these teachers."""
    if len(teachers) == 1 and (weights or mean_of == "probs"):
        raise ValueError(
            "weights and mean_of are of an ensemble, and there is one teacher; give several"
        )
    check_mean(len(teachers), "teachers", weights, mean_of, temperature)
