"""Encoded pictures into arrays of one shape, within bounds, several at a time.

Scaling and cropping are torchvision's on Pillow pictures: the longer side of a scaled picture is
cut to whole pixels, the crop's corner rounded. Pictures stay as they are stored: no rotation by
what EXIF says, as ImageFolder and timm do it.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, UnidentifiedImageError

from softlabel.pipeline.teachers.devices import cpu_threads
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import Framing

# Readers that take nothing but pictures; a few kilobytes may claim to be any number of pixels.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Of those, the ones that keep every number as it was.
EXACT_FORMATS = ("PNG", "BMP", "GIF", "TIFF", "PPM")
MOST_PIXELS = 2**26
# Of one picture as it is stored: what these pixels take, and far more than anybody's JPEG.
MOST_BYTES = 2**29
# Names that such pictures have, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
# What a shard reads at a time, whichever is reached first.
PIECE_PICTURES = 256
PIECE_BYTES = 64 * 2**20
# More than eight bits a channel: a conversion would cut off what is above 255.
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# Pictures that a thread decodes in one go.
PORTION = 8
# Of an object that an error names: another in every run.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class BadPicture(ValueError):
    """A picture that cannot be used, and why: the same words for the same picture, whenever."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Decoder:
    """Decodes with a number of threads; which one decodes what changes nothing.

    workers: threads beside the caller's; 0 for none; default: the processors of this process. A
    forked process starts threads of its own.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._workers = cpu_threads() if workers is None else workers
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(self._workers, "decode") if self._workers else None

    def decode_all(
        self, pictures: Sequence[bytes | None], framing: Framing
    ) -> tuple[Array, dict[int, str]]:
        """The pictures as uint8 `[N, height, width, channels]`, and by row why one cannot be used.

        The rows of those are not filled.
        """
        return self.make_all(
            len(pictures), framing.shape, lambda row: decode(pictures[row], framing)
        )

    def make_all(
        self,
        rows: int,
        shape: tuple[int, ...],
        make: Callable[[int], Array],
        kind: type[np.integer] = np.uint8,
    ) -> tuple[Array, dict[int, str]]:
        """What `make` gives for each row, `[rows, *shape]`; and the rows it refuses, why.

        It refuses one by raising BadPicture. kind: of the numbers that it gives.
        """
        arrays = np.empty((rows, *shape), kind)

        def portion(first: int) -> dict[int, str]:
            bad = {}
            for row in range(first, min(first + PORTION, rows)):
                try:
                    arrays[row] = make(row)
                except BadPicture as error:
                    bad[row] = error.reason
            return bad

        if self._process != os.getpid():
            # The parent's threads are not here, and its pool would wait for them for ever.
            self._start()
        run = map if self._pool is None else self._pool.map
        bad: dict[int, str] = {}
        for found in run(portion, range(0, rows, PORTION)):
            bad |= found
        return arrays, bad


def decode(data: bytes | None, framing: Framing) -> Array:
    """One picture as uint8 `[height, width, channels]`. Raises BadPicture."""
    image = decoded(data, framing.channels)
    return np.asarray(framed(image, framing), np.uint8).reshape(framing.shape)


def decoded(data: bytes | None, channels: int) -> Image.Image:
    """One picture in its own size, with one channel or three. Raises BadPicture."""
    if channels not in (1, 3):
        raise BadPicture(f"encoded pictures have 1 or 3 channels, {channels} are wanted")
    image = _opened(data)
    if image.mode in DEEP_MODES:
        raise BadPicture(
            f"the picture has more than eight bits a channel (mode {image.mode}); convert it"
        )
    try:
        return _converted(image, channels)
    except MemoryError:
        raise
    # Whatever a damaged file makes Pillow's readers stumble over, struct.error and KeyError too.
    except Exception as error:
        raise _undecodable(error) from error


def decoded_mask(data: bytes | None) -> Array:
    """The class numbers of one encoded mask, `[height, width]`. Raises BadPicture."""
    image = _opened(data)
    if image.format not in EXACT_FORMATS:
        raise BadPicture(
            f"its mask is a {image.format}, which blurs the numbers of classes; write PNG"
        )
    if image.mode not in ("1", "L", "P", *DEEP_MODES) or image.mode == "F":
        raise BadPicture(
            f"its mask is in colour (mode {image.mode}); write the number of a class in each pixel"
        )
    try:
        return np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(error) from error


def framed(image: Image.Image, framing: Framing) -> Image.Image:
    """The decoded picture in the framing's size. Raises BadPicture."""
    if framing.interpolation is not None:
        image = _scaled_and_cropped(image, framing, Image.Resampling[framing.interpolation.upper()])
    if image.size != (framing.width, framing.height):
        raise BadPicture(
            f"the picture is {image.height}x{image.width}, {framing.height}x{framing.width} is "
            "wanted; pass --interpolation (and --resize, to keep shapes) to the command that "
            "describes the model: export, train-student, or infer for somebody else's ONNX file"
        )
    return image


def picture_shape(data: bytes | None) -> tuple[int, int, int]:
    """Height, width and channels (1 for grey ones, else 3) of one picture. Raises BadPicture."""
    image = _opened(data)
    return image.height, image.width, 1 if image.mode in ("1", "L", "LA") else 3


def _opened(data: bytes | None) -> Image.Image:
    if data is None:
        raise BadPicture(
            "there is no picture (paths are not opened); write its bytes into the file, or leave "
            "the row out"
        )
    if not data:
        raise BadPicture("the picture is empty; mend or remove it")
    if len(data) > MOST_BYTES:
        raise BadPicture(f"the picture has more than {MOST_BYTES >> 20} MiB; mend or remove it")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise BadPicture(f"it is no picture of a kind that is read ({kinds})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPicture(f"the picture claims to be huge; {_too_many()}") from error
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(error) from error
    if image.width * image.height > MOST_PIXELS:
        raise BadPicture(f"the picture claims {image.height}x{image.width} pixels; {_too_many()}")
    return image


def _undecodable(error: Exception) -> BadPicture:
    reason = _ADDRESS.sub("", " ".join(str(error).split())) or type(error).__name__
    return BadPicture(f"the picture cannot be decoded ({reason}); mend or remove it")


def _too_many() -> str:
    return f"more than {MOST_PIXELS >> 20} megapixels are not decoded"


def _converted(image: Image.Image, channels: int) -> Image.Image:
    image.load()
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    # Without an alpha channel it changes no pixel, but makes Pillow warn.
    image.info.pop("transparency", None)
    return image.convert(mode)


def _scaled_and_cropped(
    image: Image.Image, framing: Framing, method: Image.Resampling
) -> Image.Image:
    if framing.resize is None:
        return _scaled(image, (framing.width, framing.height), method)
    short = min(image.size)
    width, height = (
        framing.resize if side == short else framing.resize * side // short for side in image.size
    )
    scaled = _scaled(image, (width, height), method)
    left = round((width - framing.width) / 2)
    top = round((height - framing.height) / 2)
    return scaled.crop((left, top, left + framing.width, top + framing.height))


def _scaled(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    if size == image.size:
        return image
    width, height = size
    # Pillow scales the width first: a strip of one pixel's width may become gigabytes on the way.
    if width * max(height, image.height) > MOST_PIXELS:
        raise BadPicture(
            f"the picture is {image.height}x{image.width} and would be scaled to {height}x{width}; "
            f"more than {MOST_PIXELS >> 20} megapixels are not made"
        )
    return image.resize(size, method)
