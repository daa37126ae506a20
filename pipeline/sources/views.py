"""Views: augmented versions of pictures, a pure function of seed, key and view.

Whoever makes them, in whatever thread, order or process, makes the same pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
from PIL import Image

from softlabel.pipeline.sources.pictures import Decoder, decoded, framed
from softlabel.schemas.augment import Augmentation, RandomResizedCrop, Transform
from softlabel.schemas.errors import EnvironmentFault
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import Framing

if TYPE_CHECKING:
    from types import ModuleType

INSTALL = "pip install 'softlabel[vision]' in builds that match torch"


class Views:
    """Makes the views of pictures in one size.

    count: views a sample has. Raises EnvironmentFault where torchvision is missing, or other
    releases are installed than those that made the labels' views.
    """

    def __init__(self, augmentation: Augmentation, seed: int, count: int, framing: Framing) -> None:
        _check_releases(augmentation)
        self.count = count
        self._seed = seed
        self._framing = framing
        # The crop comes to the model's size by itself, from the whole picture.
        self._crops = isinstance(augmentation.transforms[0], RandomResizedCrop)
        augmenting = _augmenting()
        self._steps = augmenting.build(augmentation.transforms, (framing.height, framing.width))
        self._apply = augmenting.apply

    def make_all(
        self,
        pictures: Array | Sequence[bytes | None],
        keys: pa.StringArray,
        numbers: npt.NDArray[np.integer],
        decoder: Decoder,
    ) -> tuple[Array, dict[int, str]]:
        """Of each of N pictures the views of these numbers `[N, M]`.

        The result is uint8 `[N * M, height, width, channels]`, views of one picture together, and
        by row why a picture cannot be used. pictures: stored arrays or encoded, each of which is
        decoded once.
        """
        shape = self._framing.shape

        def make(row: int) -> Array:
            picture = pictures[row]
            if isinstance(picture, np.ndarray):
                image = Image.fromarray(picture if shape[2] == 3 else picture[:, :, 0])
            else:
                image = decoded(picture, shape[2])
            return self._make(image, keys[row].as_py(), numbers[row].tolist())

        rows, each = numbers.shape
        made, bad = decoder.make_all(rows, (each, *shape), make)
        return made.reshape(rows * each, *shape), bad

    def _make(self, image: Image.Image, key: str, numbers: Sequence[int]) -> Array:
        start = image if self._crops else framed(image, self._framing)
        seeds = [view_seed(self._seed, key, number) for number in numbers]
        made = [np.asarray(self._apply(self._steps, start, seed), np.uint8) for seed in seeds]
        return np.stack(made).reshape(len(made), *self._framing.shape)


def view_seed(seed: int, key: str, view: int) -> int:
    """The number that a view's random generator starts from: of SHA-256 the first 8 bytes."""
    digest = hashlib.sha256(f"{seed}\0{view}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def augmentation_here(transforms: tuple[Transform, ...]) -> Augmentation:
    """These transforms by the releases that are installed. Raises EnvironmentFault."""
    return Augmentation(transforms=transforms, **_releases())


def _check_releases(augmentation: Augmentation) -> None:
    here = _releases()
    others = [
        f"{name} {getattr(augmentation, name)}, not {release}"
        for name, release in here.items()
        if getattr(augmentation, name) != release
    ]
    if others:
        raise EnvironmentFault(
            f"the views were made by {' and '.join(others)}, and other releases may draw or round "
            "otherwise; install those, or label again with these"
        )


def _releases() -> dict[str, str]:
    versions = {"pillow": PIL.__version__, **_augmenting().releases()}
    # What follows the plus is the build: CPU and CUDA builds draw and round alike.
    return {name: version.partition("+")[0] for name, version in versions.items()}


def _augmenting() -> ModuleType:
    try:
        from softlabel.pipeline.sources import augmenting
    except (ImportError, RuntimeError) as error:
        raise EnvironmentFault(
            f"views need torchvision, which cannot be imported ({error}); {INSTALL}"
        ) from error
    return augmenting
