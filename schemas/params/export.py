"""Parameters of export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from softlabel.schemas.location import GivenLocation
from softlabel.schemas.model import Record
from softlabel.schemas.params.shared import (
    Metrics,
    Positive,
    Resize,
    Scaling,
)
from softlabel.schemas.teacher import OutputKind


class ExportParams(Record):
    """Turn a trained PyTorch model into a verified ONNX teacher."""

    model: str = Field(
        description="package.module:function, timm:NAME, torchvision:NAME, or the student.json "
        "that train-student wrote (it names weights, classes and preprocessing too)"
    )
    model_args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the factory (num_classes is given)"
    )
    weights: Path | None = Field(
        None, description="safetensors file, or a checkpoint that torch reads with weights_only"
    )
    classes: tuple[str, ...] = Field(
        (), description="class names in the order of the outputs; or @FILE with a name a line"
    )
    height: int | None = Field(
        None,
        gt=0,
        description="picture height; default for timm:NAME, here and below: as timm feeds it "
        "[pixels]",
    )
    width: int | None = Field(None, gt=0, description="picture width [pixels]")
    channels: int | None = Field(None, gt=0, description="picture channels")
    resize: Resize = None
    interpolation: Scaling = None
    mean: tuple[float, ...] = Field((), description="per-channel mean of pictures scaled to 0..1")
    std: tuple[Positive, ...] = Field(
        (), description="per-channel deviation of pictures scaled to 0..1"
    )
    output_kind: OutputKind = Field("logits", description="what the model gives")
    features: bool = Field(
        False, description="give out the inputs of the last layer too, for 'infer --features auto'"
    )
    output: Path = Field(Path("models/teacher.onnx"), description="the ONNX file to publish")
    metrics: Metrics = None
    opset: int = Field(20, ge=18, le=23, description="ONNX operator set")
    samples: GivenLocation | None = Field(
        None,
        description="source whose first rows feed the parity check; default: random pictures; "
        "of a model of sequences its columns say what the model takes",
    )
    tolerance: Positive = Field(
        1e-4,
        description="largest |ONNX Runtime - PyTorch| allowed, times max(1, largest |logit|)",
    )
