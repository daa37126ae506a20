"""Decoding: the same pixels as torchvision on Pillow pictures, and nothing but pictures."""

from __future__ import annotations

import io
import multiprocessing
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from torchvision.transforms import InterpolationMode, v2

from softlabel.pipeline.sources import pictures
from softlabel.pipeline.sources.pictures import BadPicture, Decoder, decode, picture_shape
from softlabel.schemas.sample import Array
from softlabel.schemas.teacher import Framing

METHODS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
SMALL = Framing(height=5, width=7, channels=3, interpolation="bilinear")


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(height: int, width: int, seed: int = 0) -> bytes:
    return encoded(Image.fromarray(pixels(height, width, seed=seed)))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claims(width: int, height: int, size: int = 10**5) -> bytes:
    """A small PNG that says it has so many pixels of one bit, and has `size` bytes of them."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(size))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("height", "width"), [(40, 53), (53, 40), (37, 37), (36, 36), (20, 91), (91, 20), (36, 200)]
)
@pytest.mark.parametrize("crop", [(32, 32), (36, 36), (31, 34), (1, 36)])
def test_resize_and_crop_are_torchvisions(
    method: Any, height: int, width: int, crop: tuple[int, int]
) -> None:
    picture = Image.fromarray(pixels(height, width))
    framing = Framing(height=crop[0], width=crop[1], channels=3, resize=36, interpolation=method)
    steps = (v2.Resize(36, InterpolationMode(method), antialias=True), v2.CenterCrop(crop))
    assert np.array_equal(decode(encoded(picture), framing), v2.Compose(steps)(picture))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(9, 20), (20, 9), (40, 53), (60, 60)])
def test_scaling_to_a_shape_is_torchvisions(method: Any, size: tuple[int, int]) -> None:
    picture = Image.fromarray(pixels(40, 53))
    framing = Framing(height=size[0], width=size[1], channels=3, interpolation=method)
    wanted = v2.Resize(size, InterpolationMode(method), antialias=True)(picture)
    assert np.array_equal(decode(encoded(picture), framing), wanted)


def test_every_size_is_torchvisions() -> None:
    """The longer side in whole pixels, and the crop's corner, over many sizes."""
    framing = Framing(height=9, width=10, channels=1, resize=11, interpolation="nearest")
    steps = v2.Compose([v2.Resize(11, InterpolationMode.NEAREST), v2.CenterCrop((9, 10))])
    for height in range(1, 40, 2):
        for width in range(1, 40):
            picture = Image.fromarray(pixels(height, width, 1)[..., 0])
            assert np.array_equal(decode(encoded(picture), framing)[..., 0], steps(picture))


def test_a_picture_of_the_wanted_size_is_not_touched() -> None:
    values = pixels(6, 4)
    assert np.array_equal(decode(png(6, 4), Framing(height=6, width=4, channels=3)), values)


MODES: dict[str, Callable[[], bytes]] = {
    "1": lambda: encoded(Image.fromarray(pixels(6, 8)).convert("1")),
    "L": lambda: encoded(Image.fromarray(pixels(6, 8)).convert("L")),
    "LA": lambda: encoded(Image.fromarray(pixels(6, 8, 4)).convert("LA")),
    "P": lambda: encoded(Image.fromarray(pixels(6, 8)).convert("P")),
    "P with alpha": lambda: encoded(
        Image.fromarray(pixels(6, 8)).convert("P"), transparency=bytes(range(256))
    ),
    "P with one transparent": lambda: encoded(
        Image.fromarray(pixels(6, 8)).convert("P"), transparency=7
    ),
    "L with one transparent": lambda: encoded(
        Image.fromarray(pixels(6, 8)).convert("L"), transparency=7
    ),
    "RGB with one transparent": lambda: encoded(
        Image.fromarray(pixels(6, 8)), transparency=(1, 2, 3)
    ),
    "GIF": lambda: encoded(Image.fromarray(pixels(6, 8)), "GIF"),
    "RGBA": lambda: encoded(Image.fromarray(pixels(6, 8, 4))),
    "CMYK": lambda: encoded(Image.fromarray(pixels(6, 8)).convert("CMYK"), "JPEG"),
    "CMYK TIFF": lambda: encoded(Image.fromarray(pixels(6, 8)).convert("CMYK"), "TIFF"),
    "YCbCr": lambda: encoded(Image.fromarray(pixels(6, 8)).convert("YCbCr"), "TIFF"),
    "WEBP": lambda: encoded(Image.fromarray(pixels(6, 8)), "WEBP"),
    "BMP": lambda: encoded(Image.fromarray(pixels(6, 8)), "BMP"),
    "PPM": lambda: encoded(Image.fromarray(pixels(6, 8)), "PPM"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_modes_are_converted_as_pillow_does(mode: str, channels: int) -> None:
    data = MODES[mode]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    found = decode(data, Framing(height=6, width=8, channels=channels))
    assert np.array_equal(found, np.asarray(wanted).reshape(6, 8, channels))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I", "TIFF"), ("F", "TIFF")],
)
def test_deep_pictures_are_refused(mode: str, kind: str) -> None:
    data = encoded(Image.new(mode, (8, 6)), kind)
    with pytest.raises(BadPicture, match=r"more than eight bits a channel .mode .*convert it"):
        decode(data, Framing(height=6, width=8, channels=3))


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("1", (6, 8, 1)), ("LA", (6, 8, 1)), ("P", (6, 8, 3)), ("RGBA", (6, 8, 3))],
)
def test_the_shape_is_told_without_decoding(
    monkeypatch: pytest.MonkeyPatch, mode: str, shape: tuple[int, int, int]
) -> None:
    data = MODES[mode]()
    refuse_to_decode(monkeypatch)
    assert picture_shape(data) == shape


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: object) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


NOISE = Image.fromarray(pixels(60, 80))
BAD = {
    "nothing": (b"", "the picture is empty; mend"),
    "no picture": (b"hello, world", "no picture of a kind that is read .JPEG, PNG,"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="6"/>', "no picture of a"),
    "pdf": (encoded(NOISE, "PDF"), "no picture of a kind"),
    "eps": (encoded(NOISE, "EPS"), "no picture of a kind"),
    "ico": (encoded(NOISE, "ICO"), "no picture of a kind"),
    "truncated jpeg": (encoded(NOISE, "JPEG")[:2000], "cannot be decoded .*truncated"),
    "truncated png": (encoded(NOISE)[:2000], "cannot be decoded .*truncated"),
    "truncated webp": (encoded(NOISE, "WEBP")[:800], "cannot be decoded|no picture"),
    "truncated tiff": (encoded(NOISE, "TIFF")[:2000], "cannot be decoded"),
    "truncated gif": (encoded(NOISE, "GIF")[:2000], "cannot be decoded .*truncated"),
    "truncated bmp": (encoded(NOISE, "BMP")[:2000], "cannot be decoded .*truncated"),
    "truncated ppm": (encoded(NOISE, "PPM")[:2000], "cannot be decoded .*truncated"),
    "jpeg header": (encoded(NOISE, "JPEG")[:30], "cannot be decoded|no picture of a kind"),
    "broken png": (encoded(NOISE).replace(b"IDAT", b"IDAX"), "cannot be decoded|no picture"),
    "no width": (b"P6 0 5 255 ", "no picture of a kind"),
    "bomb": (claims(20000, 20000), "claims to be huge; more than 64 megapixels are not decoded"),
    "warned bomb": (claims(10000, 10000), "claims to be huge; more than 64 megapixels"),
    "quiet bomb": (claims(9000, 8000), "claims 8000x9000 pixels; more than 64 megapixels"),
    "line": (
        claims(2, 30_000_000, 60_000_000),
        "is 30000000x2 and would be scaled to 5x7; more than 64",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused(name: str) -> None:
    data, problem = BAD[name]
    with pytest.raises(BadPicture, match=problem) as caught:
        decode(data, SMALL)
    assert "\n" not in caught.value.reason


@pytest.mark.parametrize("name", ["bomb", "warned bomb", "quiet bomb"])
def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data, problem = BAD[name]
    assert len(data) < 4096
    refuse_to_decode(monkeypatch)
    for use in (picture_shape, lambda data: decode(data, SMALL)):
        with pytest.raises(BadPicture, match=problem):
            use(data)


def test_a_thin_picture_is_not_scaled_up_to_gigabytes() -> None:
    framing = Framing(height=224, width=224, channels=3, resize=256, interpolation="bilinear")
    for size in ((1, 10**6), (10**6, 1)):
        with pytest.raises(BadPicture, match=r"would be scaled to .*; more than 64 megapixels are"):
            decode(encoded(Image.new("L", size)), framing)


def test_a_picture_of_too_many_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_BYTES", 2**20)
    with pytest.raises(BadPicture, match="has more than 1 MiB; mend or remove it"):
        decode(png(4, 4) + bytes(2**20), SMALL)


@pytest.mark.parametrize("error", [struct.error("odd"), KeyError("x"), UserWarning("corrupt EXIF")])
@pytest.mark.parametrize("place", ["open", "load"])
def test_whatever_pillow_raises_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, place: str
) -> None:
    def stumble(*arguments: object, **options: object) -> None:
        raise error

    if place == "open":
        monkeypatch.setattr(Image, "open", stumble)
    else:
        monkeypatch.setattr(ImageFile.ImageFile, "load", stumble)
    with pytest.raises(BadPicture, match=r"cannot be decoded .*(odd|x|EXIF).*; mend or remove it"):
        decode(png(4, 4), SMALL)


def test_damaged_pictures_raise_nothing_else() -> None:
    random = np.random.default_rng(1)
    refused = 0
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"):
        whole = encoded(Image.fromarray(pixels(20, 30)), kind)
        for _ in range(150):
            data = bytearray(whole)
            for place in random.integers(0, min(len(data), 400), 4):
                data[place] = random.integers(0, 256)
            try:
                found = decode(bytes(data), SMALL)
            except BadPicture:
                refused += 1
            else:
                assert found.shape == SMALL.shape
    assert refused > 200


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(BadPicture, match="is 6x4, 4x6 is wanted; pass --interpolation"):
        decode(png(6, 4), Framing(height=4, width=6, channels=3))


def test_more_channels_are_refused() -> None:
    with pytest.raises(BadPicture, match="have 1 or 3 channels, 4 are wanted"):
        decode(png(4, 6), Framing(height=4, width=6, channels=4))


MANY = [png(20 + index % 5, 30, seed=index) for index in range(45)]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_threads_change_nothing(workers: int) -> None:
    alone, bad = Decoder(0).decode_all(MANY, SMALL)
    assert bad == {}
    assert alone.shape == (45, 5, 7, 3)
    assert np.array_equal(alone[30], decode(MANY[30], SMALL))
    assert np.array_equal(Decoder(workers).decode_all(MANY, SMALL)[0], alone)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_bad_rows_are_told_and_change_no_other(workers: int) -> None:
    decoder = Decoder(workers)
    alone, _ = Decoder(0).decode_all(MANY, SMALL)
    for bad in ((20, 21, 40), (7, 8), (44,)):
        mixed = [b"" if row in bad else data for row, data in enumerate(MANY)]
        arrays, reasons = decoder.decode_all(mixed, SMALL)
        assert reasons == dict.fromkeys(bad, "the picture is empty; mend or remove it")
        kept = [row for row in range(45) if row not in bad]
        assert np.array_equal(arrays[kept], alone[kept])


def test_no_pictures_are_an_empty_array() -> None:
    assert Decoder(2).decode_all([], SMALL)[0].shape == (0, 5, 7, 3)


@pytest.mark.parametrize("place", ["open", "load"])
def test_want_of_memory_is_no_fault_of_the_picture(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A run that skips what cannot be used must not take it for that."""

    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    if place == "open":
        monkeypatch.setattr(Image, "open", fail)
    else:
        monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(MemoryError):
        decode(png(4, 4), SMALL)


def test_a_reason_is_the_same_in_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(image: object) -> None:
        raise OSError(f"cannot read <_io.BytesIO object at {id(image):#x}>")

    monkeypatch.setattr(ImageFile.ImageFile, "load", stumble)
    with pytest.raises(BadPicture, match=r"\(cannot read <_io.BytesIO object>\)"):
        decode(png(4, 4), SMALL)


def decode_and_send(decoder: Decoder, queue: Any) -> None:
    queue.put(decoder.decode_all(MANY, SMALL)[0].tobytes())


# Python warns of forks beside threads; these idle ones hold nothing.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_decodes_too() -> None:
    decoder = Decoder(2)
    wanted = decoder.decode_all(MANY, SMALL)[0].tobytes()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=decode_and_send, args=(decoder, queue))
    child.start()
    try:
        assert queue.get(timeout=60) == wanted
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()


def test_idle_threads_do_not_keep_the_process() -> None:
    program = (
        "from softlabel.pipeline.sources.pictures import Decoder\n"
        "from softlabel.schemas.teacher import Framing\n"
        "import sys\n"
        "framing = Framing(height=5, width=7, channels=3, interpolation='bilinear')\n"
        "decoder = Decoder(4)\n"
        "print(len(decoder.decode_all([sys.stdin.buffer.read()] * 40, framing)[0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=MANY[0], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"40\n", b"")
