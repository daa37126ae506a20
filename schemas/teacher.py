"""What a teacher says of itself: preprocessing, classes and the kind of its output."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Final, Literal, Protocol

from pydantic import Field, model_validator

from softlabel.schemas.model import Record

METADATA_KEY = "softlabel.teacher"
FORMAT_VERSION: Final = 1
OutputKind = Literal["logits", "probabilities", "log-probabilities"]
# The smallest normal float32: what a probability of zero counts as, for its logarithm.
PROBABILITY_FLOOR: Final = 2.0**-126


# Height and width of the positions that a picture has, where something is said of each.
Grid = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


class Framing(Record):
    """How an encoded picture of any size becomes uint8 `[height, width, channels]`.

    interpolation: as Pillow names them, with its antialiasing. resize: the shorter side that a
    picture is scaled to, its shape kept, before the centre is cropped. Without `resize` it is
    scaled to height and width whatever its shape; without `interpolation` it is not scaled and
    must have that size.
    """

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    channels: int = Field(gt=0)
    resize: int | None = Field(None, gt=0)
    interpolation: Interpolation | None = None

    @model_validator(mode="after")
    def _the_crop_lies_inside(self) -> Framing:
        if self.resize is not None and self.interpolation is None:
            raise ValueError("resize is given and interpolation is not; give both")
        if self.resize is not None and self.resize < max(self.height, self.width):
            raise ValueError(
                f"resize is {self.resize}, which is less than the {self.height}x{self.width} that "
                "are cropped from it"
            )
        return self

    @classmethod
    def of(cls, record: Record) -> Framing:
        """The framing that stands among the fields of another record."""
        return cls.model_validate({name: getattr(record, name) for name in cls.model_fields})

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one picture."""
        return (self.height, self.width, self.channels)

    @property
    def part_of_picture(self) -> tuple[Fraction, Fraction] | None:
        """Height and width of what is seen, in shorter sides of the picture; None for all of it."""
        if self.resize is None:
            return None
        return Fraction(self.height, self.resize), Fraction(self.width, self.resize)


class Preprocess(Record):
    """How a picture becomes the model's input.

    To uint8 `[height, width, channels]` as `Framing` says, by `resize` and `interpolation`. Then
    `(x / 255 - mean) / std` per channel: with `in_graph` the model does this arithmetic itself
    and takes uint8 `NHWC`; otherwise the caller does it and hands over float32 in `layout`.
    """

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    channels: int = Field(gt=0)
    resize: int | None = Field(None, gt=0)
    interpolation: Interpolation | None = None
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
        if self.resize is not None or self.interpolation is not None:
            _ = self.framing  # is checked as it is built
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one picture."""
        return (self.height, self.width, self.channels)

    @property
    def framing(self) -> Framing:
        """How encoded pictures come to that shape."""
        return Framing.of(self)


class NumberInput(Record):
    """A named input of numbers: what a teacher of tables or tokens takes in place of a picture.

    dtype: as NumPy names it. shape: of one sample, -1 where the graph leaves an axis open.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class SequenceInputs(Record):
    """Sequences as a student is fed them, where no teacher or card says it."""

    inputs: tuple[NumberInput, ...]
    preprocess: None = None
    positions: Literal[True] = True
    grid: None = None


class Fed(Protocol):
    """Whatever says what a teacher is fed: pictures as `preprocess` makes them, or `inputs`."""

    @property
    def preprocess(self) -> Preprocess | None:
        """How a picture becomes the model's input; None where it takes none."""

    @property
    def inputs(self) -> tuple[NumberInput, ...] | None:
        """The named numbers that it takes in their place; None where it takes a picture."""

    @property
    def positions(self) -> bool | None:
        """Whether it speaks of each position of a sequence, or of a picture."""

    @property
    def grid(self) -> Grid | None:
        """Height and width of the positions of a picture, which stand row by row; else None."""


def check_fed(fed: Fed) -> None:
    """Raise ValueError unless there are either pictures, maybe with positions, or numbers."""
    if (fed.preprocess is None) == (not fed.inputs):
        raise ValueError("preprocess and inputs go in each other's place; give one")
    if fed.grid is not None and (fed.preprocess is None or not fed.positions):
        raise ValueError("grid is of pictures' positions; give preprocess, and positions as true")


class TeacherSpec(Record):
    """Everything about a teacher that its graph does not say; stored inside the ONNX file.

    inputs: of a teacher that takes no pictures, in place of `preprocess`. positions: true where it
    says something of each position, else null. grid: of a picture's positions, which stand row by
    row; null where there are none. features: the output that holds its penultimate features, null
    without one.
    """

    format_version: Literal[1] = FORMAT_VERSION
    preprocess: Preprocess | None = None
    inputs: tuple[NumberInput, ...] | None = None
    classes: tuple[str, ...] = Field(min_length=2)
    output: str
    output_kind: OutputKind = "logits"
    positions: bool | None = None
    grid: Grid | None = None
    features: str | None = None
    opset: int | None = None

    @property
    def probability_floor(self) -> float | None:
        """What smaller probabilities are taken for; None where the teacher gives none."""
        return PROBABILITY_FLOOR if self.output_kind == "probabilities" else None

    @model_validator(mode="after")
    def _is_fed(self) -> TeacherSpec:
        check_fed(self)
        return self

    @model_validator(mode="after")
    def _classes_are_unique(self) -> TeacherSpec:
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(f"class name {twice!r} appears twice")
        return self
