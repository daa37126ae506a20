"""What makes a view of a picture: torchvision's transforms by name, typed, with their arguments."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from softlabel.schemas.model import Record
from softlabel.schemas.teacher import Interpolation

Chance = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
# Beyond these, a picture of many pixels would be stretched into gigabytes on its way.
Ratio = Annotated[float, Field(ge=0.1, le=10)]
Strength = Annotated[float, Field(ge=0)]
Zoom = Annotated[float, Field(gt=0)]
Degrees = Annotated[float, Field(ge=0, le=180)]
Byte = Annotated[int, Field(ge=0, le=255)]
Sampling = Literal["nearest", "bilinear", "bicubic"]


class Transform(Record):
    """One step of an augmentation; its fields are the arguments of torchvision's class.

    sized: what it draws depends on the picture's height and width, so that it can be drawn again
    at the teacher's size alone.
    """

    sized: ClassVar[bool] = False

    @model_validator(mode="after")
    def _ranges_are_low_to_high(self) -> Transform:
        for name in ("scale", "ratio"):
            given = getattr(self, name, None)
            if given is not None and given[0] > given[1]:
                raise ValueError(f"{name} is {list(given)}; give the lower end first")
        return self


class RandomResizedCrop(Transform):
    """A part of the decoded picture, scaled to the model's height and width."""

    name: Literal["random_resized_crop"] = "random_resized_crop"
    scale: tuple[Share, Share] = (0.08, 1.0)
    ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"


class RandomCrop(Transform):
    """The picture padded on all sides, and a part of it in the model's height and width."""

    sized: ClassVar[bool] = True
    name: Literal["random_crop"] = "random_crop"
    padding: int = Field(4, ge=1)
    padding_mode: Literal["constant", "edge", "reflect", "symmetric"] = "constant"
    fill: Byte = 0


class HorizontalFlip(Transform):
    """Left and right exchanged."""

    name: Literal["horizontal_flip"] = "horizontal_flip"
    p: Chance = 0.5


class VerticalFlip(Transform):
    """Top and bottom exchanged."""

    name: Literal["vertical_flip"] = "vertical_flip"
    p: Chance = 0.5


class Rotation(Transform):
    """Turned by up to so many degrees either way."""

    name: Literal["rotation"] = "rotation"
    degrees: Annotated[float, Field(gt=0, le=180)] = 15.0
    interpolation: Sampling = "nearest"
    fill: Byte = 0


class Affine(Transform):
    """Turned, moved by shares of width and height, scaled and sheared by degrees."""

    name: Literal["affine"] = "affine"
    degrees: Degrees = 0.0
    translate: tuple[Chance, Chance] | None = None
    scale: tuple[Zoom, Zoom] | None = None
    shear: Annotated[float, Field(ge=0, lt=90)] | None = None
    interpolation: Sampling = "nearest"
    fill: Byte = 0

    @model_validator(mode="after")
    def _something_moves(self) -> Affine:
        if not (self.degrees or self.translate or self.scale or self.shear):
            raise ValueError("affine changes nothing; give degrees, translate, scale or shear")
        return self


class ColorJitter(Transform):
    """Brightness, contrast and saturation times 1 - x to 1 + x, hue turned by up to its share."""

    name: Literal["color_jitter"] = "color_jitter"
    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    @model_validator(mode="after")
    def _something_changes(self) -> ColorJitter:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError(
                "color_jitter changes nothing; give brightness, contrast, saturation or hue"
            )
        return self


class Grayscale(Transform):
    """Without its colours."""

    name: Literal["grayscale"] = "grayscale"
    p: Chance = 0.1


class RandAugment(Transform):
    """Some random operations of one magnitude (Cubuk et al. 2020)."""

    name: Literal["rand_augment"] = "rand_augment"
    num_ops: int = Field(2, ge=1)
    magnitude: int = Field(9, ge=0)
    num_magnitude_bins: int = Field(31, ge=2)
    interpolation: Sampling = "nearest"
    fill: Byte = 0

    @model_validator(mode="after")
    def _the_magnitude_is_one_of_the_bins(self) -> RandAugment:
        if self.magnitude >= self.num_magnitude_bins:
            raise ValueError(
                f"magnitude is {self.magnitude} of {self.num_magnitude_bins} bins; "
                f"give at most {self.num_magnitude_bins - 1}"
            )
        return self


class TrivialAugment(Transform):
    """One random operation of a random magnitude (Müller and Hutter 2021, wide)."""

    name: Literal["trivial_augment"] = "trivial_augment"
    num_magnitude_bins: int = Field(31, ge=2)
    interpolation: Sampling = "nearest"
    fill: Byte = 0


class AutoAugment(Transform):
    """A random pair of operations of a learned policy (Cubuk et al. 2019)."""

    name: Literal["auto_augment"] = "auto_augment"
    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"
    interpolation: Sampling = "nearest"
    fill: Byte = 0


class RandomErasing(Transform):
    """A rectangle of one value (Zhong et al. 2020)."""

    sized: ClassVar[bool] = True
    name: Literal["random_erasing"] = "random_erasing"
    p: Chance = 0.5
    scale: tuple[Share, Share] = (0.02, 0.33)
    ratio: tuple[Ratio, Ratio] = (0.3, 3.3)
    value: Byte = 0


AnyTransform = (
    RandomResizedCrop
    | RandomCrop
    | HorizontalFlip
    | VerticalFlip
    | Rotation
    | Affine
    | ColorJitter
    | Grayscale
    | RandAugment
    | TrivialAugment
    | AutoAugment
    | RandomErasing
)
TRANSFORMS: dict[str, type[Transform]] = {
    kind.model_fields["name"].default: kind for kind in get_args(AnyTransform)
}


def _named(value: Any) -> Any:
    """A bare name stands for the transform with its default arguments."""
    return {"name": value} if isinstance(value, str) else value


def _frames_first(transforms: tuple[Transform, ...]) -> tuple[Transform, ...]:
    if any(isinstance(transform, RandomResizedCrop) for transform in transforms[1:]):
        raise ValueError("random_resized_crop takes the picture as it is decoded; give it first")
    return transforms


Named = Annotated[AnyTransform, Field(discriminator="name"), BeforeValidator(_named)]
Transforms = Annotated[tuple[Named, ...], AfterValidator(_frames_first)]


def check_views(views: int, transforms: Transforms) -> None:
    """Raise ValueError where there shall be several views and nothing tells them apart."""
    if views > 1 and not transforms:
        raise ValueError(
            f"views is {views} and augment is empty, so all of them would be alike; give both"
        )


class Augmentation(Record):
    """How views are made, as a label set's identity says it.

    pillow, torch, torchvision: the releases that drew and made the pictures; others may draw or
    round otherwise.
    """

    transforms: Transforms = Field(min_length=1)
    pillow: str
    torch: str
    torchvision: str
