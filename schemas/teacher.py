"""What a teacher says of itself: preprocessing, classes and the kind of its output."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from softlabel.schemas.model import Record

METADATA_KEY = "softlabel.teacher"
FORMAT_VERSION: Final = 1


class Preprocess(Record):
    """How a uint8 picture `[height, width, channels]` becomes the model's input.

    `(x / 255 - mean) / std` per channel. With `in_graph` the model does this arithmetic itself
    and takes uint8 `NHWC`; otherwise the caller does it and hands over float32 in `layout`.
    """

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    channels: int = Field(gt=0)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: Literal["NHWC", "NCHW"] = "NCHW"
    in_graph: bool = False

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Preprocess:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"{name} has {len(values)} values for {self.channels} channels; give one each"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, got {min(self.std)}")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one picture."""
        return (self.height, self.width, self.channels)


class TeacherSpec(Record):
    """Everything about a teacher that its graph does not say; stored inside the ONNX file."""

    format_version: Literal[1] = FORMAT_VERSION
    preprocess: Preprocess
    classes: tuple[str, ...] = Field(min_length=2)
    output: str
    output_kind: Literal["logits"] = "logits"
    opset: int | None = None

    @model_validator(mode="after")
    def _classes_are_unique(self) -> TeacherSpec:
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(f"class name {twice!r} appears twice")
        return self
