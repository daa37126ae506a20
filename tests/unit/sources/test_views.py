"""Views: pure functions of seed, key and view, whoever makes them and whatever runs beside."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from softlabel.pipeline import sources
from softlabel.pipeline.sources import augmenting
from softlabel.pipeline.sources.augmenting import apply, build
from softlabel.pipeline.sources.image_folder import open_image_folder
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.parquet import write_source_shard
from softlabel.pipeline.sources.replaying import replayed
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.sources.views import augmentation_here, view_seed
from softlabel.schemas.augment import (
    TRANSFORMS,
    AnyTransform,
    ColorJitter,
    HorizontalFlip,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
)
from softlabel.schemas.errors import DataError, EnvironmentFault, ParameterError
from softlabel.schemas.labelset import Identity
from softlabel.schemas.sample import SampleBlock
from softlabel.schemas.teacher import Framing, Preprocess
from tests.unit.encoded import segments, whole

FRAMING = Framing(height=24, width=20, channels=3, resize=28, interpolation="bicubic")
USUAL: tuple[AnyTransform, ...] = (
    RandomResizedCrop(scale=(0.2, 1.0)),
    HorizontalFlip(),
    ColorJitter(brightness=0.4, saturation=0.4, hue=0.1),
    RandAugment(),
)
VIEWS = 3
# Arguments with which a transform does something to every picture.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "affine": {"degrees": 20, "translate": (0.2, 0.2), "scale": (0.5, 2), "shear": 10},
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2},
    "grayscale": {"p": 0.5},
    "random_erasing": {"p": 0.9},
}


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of slow gradients, which looks alike at all sizes."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty JPEG pictures of two classes, no two of one size."""
    for row in range(20):
        path = tmp_path / "pictures" / "ab"[row % 2] / f"{row:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth(40 + row, 70 - row, row).save(path, quality=90)
    return tmp_path / "pictures"


@pytest.fixture
def source(folder: Path) -> Source:
    return open_image_folder(folder).framed(FRAMING, "the test")


@pytest.fixture
def noise() -> Iterator[None]:
    """Another thread that draws from torch's global generator all the time, and reseeds it."""
    done = threading.Event()

    def draw() -> None:
        while not done.is_set():
            torch.manual_seed(3)
            torch.rand(5)

    thread = threading.Thread(target=draw)
    thread.start()
    yield
    done.set()
    thread.join()


def viewed(source: Source, *transforms: AnyTransform, seed: int = 0, views: int = VIEWS) -> Source:
    return source.viewed(augmentation_here(transforms or USUAL), seed, views)


def identity(framing: Framing, *transforms: AnyTransform, **fields: Any) -> Identity:
    values = {"augment": augmentation_here(transforms), "views": VIEWS, "seed": 0} | fields
    return Identity(
        teacher_sha256=("0" * 64,),
        preprocess=Preprocess(**framing.model_dump(), mean=(0.5,) * 3, std=(0.5,) * 3),
        classes=("a", "b"),
        output="logits",
        output_kind="logits",
        source=(),
        temperatures=(1.0,),
        codec="dense-f16",
        **values,
    )


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name in TRANSFORMS for mode in ("RGB", "L")[: 1 + (name != "grayscale")]],
)
def test_a_transform_draws_as_torchvision_does_from_a_seed_of_its_own(
    name: str, mode: str, request: pytest.FixtureRequest
) -> None:
    transform = TRANSFORMS[name](**ARGUMENTS.get(name, {}))
    image = smooth(24, 20).convert(mode)
    steps = build([transform], (24, 20))
    before = torch.get_rng_state()
    made = [np.asarray(apply(steps, image, seed)) for seed in range(30)]
    assert torch.equal(before, torch.get_rng_state())
    assert len({array.tobytes() for array in made}) > 1
    for seed, array in enumerate(made):
        torch.manual_seed(seed)
        assert np.array_equal(np.asarray(steps[0](image)), array)
    request.getfixturevalue("noise")
    again = [np.asarray(apply(steps, image, seed)) for seed in range(30)]
    assert all(np.array_equal(*both) for both in zip(made, again, strict=True))


def test_arguments_reach_torchvision() -> None:
    (step,) = build([RandomResizedCrop(scale=(0.3, 0.4), interpolation="bicubic")], (24, 20))
    wanted = v2.RandomResizedCrop((24, 20), (0.3, 0.4), interpolation=v2.InterpolationMode.BICUBIC)
    torch.manual_seed(5)
    image = wanted(smooth(50, 60))
    assert np.array_equal(np.asarray(apply([step], smooth(50, 60), 5)), np.asarray(image))


def test_a_view_is_made_from_seed_key_and_number_alone(source: Source, noise: None) -> None:
    block = whole(viewed(source.decoded_by(0)))
    assert block.inputs.shape == (60, 24, 20, 3)
    assert block.keys.to_pylist()[:4] == ["a/00.jpg"] * 3 + ["a/02.jpg"]
    assert block.labels.to_pylist()[::3] == [0] * 10 + [1] * 10
    assert block.views is not None and block.views.tolist() == [0, 1, 2] * 20
    assert len({picture.tobytes() for picture in block.inputs}) == 60
    for workers in (1, 2, 4):
        again = whole(viewed(source.decoded_by(workers)))
        assert np.array_equal(again.inputs, block.inputs)
    one = viewed(source).reopen().read([segments(source)[1].model_copy(update={"rows": 1})])
    assert np.array_equal(one.inputs, block.inputs[30:33])
    assert not np.array_equal(whole(viewed(source, seed=1)).inputs, block.inputs)
    # More views leave those there were as they are.
    more = whole(viewed(source, views=5)).inputs.reshape(20, 5, 24, 20, 3)
    assert np.array_equal(more[:, :3].reshape(block.inputs.shape), block.inputs)


def test_the_seed_is_as_the_format_says() -> None:
    assert view_seed(7, "a/00.jpg", 2) == 0xC819_1801_9A63_8B73


def test_any_one_view_of_each_may_be_had(source: Source) -> None:
    views = viewed(source)
    every = whole(views).inputs.reshape(20, VIEWS, 24, 20, 3)
    numbers = np.arange(10) * 7 % VIEWS
    stored = views.read_stored(segments(source)[:1], np.arange(10))
    assert np.array_equal(
        views.pictures(stored.keys, stored.pictures, numbers), every[np.arange(10), numbers]
    )
    assert np.array_equal(views.pictures(stored.keys, stored.pictures), every[:10, 0])


def test_a_single_view_has_no_number(source: Source) -> None:
    block = whole(viewed(source, views=1))
    assert block.views is None
    assert not np.array_equal(block.inputs, whole(source).inputs)


def test_without_a_crop_the_frame_comes_first(source: Source) -> None:
    plain = whole(source).inputs
    flipped = whole(viewed(source, HorizontalFlip(p=1.0), views=1)).inputs
    assert np.array_equal(flipped, plain[:, :, ::-1])


@pytest.mark.parametrize("channels", [1, 3])
def test_stored_arrays_have_views_too(tmp_path: Path, channels: int) -> None:
    pixels = np.stack([np.asarray(smooth(9, 7, row)) for row in range(6)])[..., :channels]
    keys = pa.array([f"n{row}" for row in range(6)])
    block = SampleBlock(keys, pixels, pa.array([0] * 6, pa.int32()))
    (tmp_path / "data").mkdir()
    write_source_shard(tmp_path / "data" / "part-00000.parquet", block, ("a", "b"))
    source = open_source(tmp_path / "data")
    flips = whole(viewed(source, HorizontalFlip(p=0.5), views=8)).inputs.reshape(6, 8, -1)
    for row in range(6):
        wanted = {pixels[row].tobytes(), pixels[row, :, ::-1].tobytes()}
        assert {view.tobytes() for view in flips[row]} == wanted


def test_pictures_of_two_channels_have_no_views(tmp_path: Path) -> None:
    np.save(tmp_path / "two.npy", np.zeros((3, 4, 5, 2), np.uint8))
    with pytest.raises(DataError, match="4x5 with 2 channels, and views are made of those with 1"):
        viewed(open_source(tmp_path / "two.npy"))


def test_a_table_of_numbers_has_no_views(tmp_path: Path) -> None:
    table = pa.table({"age": [1.0, 2.0], "label": [0, 1]})
    pq.write_table(table, tmp_path / "people.parquet")
    with pytest.raises(DataError, match="holds numbers, and views are of pictures; leave augment"):
        viewed(open_source(tmp_path / "people.parquet"))


def test_another_size_is_drawn_alike(folder: Path) -> None:
    """The same crop, flip and jitter: a small student sees what its teacher saw, smaller."""
    kinds = (RandomResizedCrop(scale=(0.1, 0.3)), HorizontalFlip(), ColorJitter(brightness=0.5))
    large = open_image_folder(folder).framed(_square(64), "the teacher")
    small = open_image_folder(folder).framed(_square(16), "the student")
    taught = whole(replayed(large, identity(_square(64), *kinds), folder)).inputs
    seen = whole(replayed(small, identity(_square(64), *kinds), folder)).inputs
    shrunk = taught.reshape(60, 16, 4, 16, 4, 3).mean(axis=(2, 4))
    apart = np.abs(shrunk - seen).mean(axis=(1, 2, 3))
    assert apart.max() < 4
    assert np.abs(shrunk - np.roll(seen, 1, axis=0)).mean(axis=(1, 2, 3)).mean() > 20


def _square(side: int) -> Framing:
    return Framing(height=side, width=side, channels=3, interpolation="bilinear")


@pytest.mark.parametrize("transform", [RandomCrop(padding=2), RandomErasing()])
def test_what_is_drawn_by_the_size_stays_at_it(folder: Path, transform: Any) -> None:
    small = open_image_folder(folder).framed(_square(16), "the student")
    wanted = f"64x64 with 3 channels, and {transform.name} draws otherwise at another"
    with pytest.raises(ParameterError, match=wanted):
        replayed(small, identity(_square(64), transform), folder)
    assert replayed(small, identity(_square(16), transform), folder).views == VIEWS


def test_a_grey_student_of_a_coloured_teacher_is_refused(folder: Path) -> None:
    grey = Framing(height=24, width=20, channels=1, interpolation="bicubic")
    source = open_image_folder(folder).framed(grey, "the student")
    with pytest.raises(ParameterError, match="24x20 with 3 channels, and their colours count"):
        replayed(source, identity(FRAMING, HorizontalFlip()), folder)


def test_views_of_unknown_making_are_refused(source: Source, folder: Path) -> None:
    unknown = identity(FRAMING, HorizontalFlip(), augment=None)
    with pytest.raises(DataError, match="3 views of each sample and does not say how they were"):
        replayed(source, unknown, folder)
    assert replayed(source, unknown.model_copy(update={"views": 1}), folder) is source


@pytest.mark.parametrize("library", ["pillow", "torch", "torchvision"])
def test_other_releases_are_refused(source: Source, library: str) -> None:
    other = augmentation_here(USUAL).model_copy(update={library: "0.1"})
    with pytest.raises(EnvironmentFault, match=rf"made by {library} 0\.1, not \d.*; install those"):
        source.viewed(other, 0, 2)


def test_the_build_of_a_release_does_not_matter() -> None:
    assert "+" not in "".join(augmentation_here(USUAL).model_dump(exclude={"transforms"}).values())


def test_without_torchvision_the_extra_is_named(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, augmenting.__name__)
    monkeypatch.delattr(sources, "augmenting")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(EnvironmentFault, match=r"views need torchvision.*softlabel\[vision\]"):
        viewed(source)


def test_a_bad_picture_is_named(folder: Path) -> None:
    (folder / "a" / "04.jpg").write_bytes(b"no picture")
    source = open_image_folder(folder).framed(FRAMING, "the test")
    with pytest.raises(DataError, match=r"key 'a/04\.jpg': it is no picture"):
        whole(viewed(source))
