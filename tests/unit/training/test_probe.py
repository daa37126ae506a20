"""The pictures on which mutual information is estimated, and what a model's logits make of them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.training.fabric import make_fabric
from softlabel.pipeline.training.probe import (
    InformationProbe,
    measure_information,
    open_probe,
    shifted,
)
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Reject
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports.training import InformationBasis
from tests.unit.builders import CLASSES, numbers_of_pixels, write_source


def parameters(**changed: Any) -> TrainParams:
    return TrainParams.model_validate({"model": "a:b", "information_samples": 6} | changed)


def chosen(source: Source, *rejects: Reject, **changed: Any) -> list[int]:
    probe = open_probe(parameters(**changed), source, rejects)
    assert probe is not None
    return list(map(int, numbers_of_pixels(probe.pixels)))


def test_the_first_of_each_class(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (5, 20))
    assert chosen(source) == [0, 4, 8, 1, 5, 9]
    pair = (CLASSES[3], CLASSES[2])
    assert chosen(source, information_classes=pair) == [3, 7, 11, 2, 6, 10]
    probe = open_probe(parameters(information_classes=pair), source, ())
    assert probe is not None
    assert probe.pair == (3, 2)
    assert probe.basis == InformationBasis(classes=pair, samples=6, draws=20, shift=2 / 32)


def test_samples_that_are_not_trained_on_are_left_out(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (1, 20))
    left_out = [
        Reject(key="n0", source="part-00000.parquet", row=0, reason="no picture"),
        Reject(key="n5", source="part-00001.parquet", row=4, reason="no picture"),
    ]
    assert chosen(source, *left_out) == [4, 8, 12, 1, 9, 13]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    source = write_source(tmp_path / "data", (9,))
    assert open_probe(parameters(information_samples=0), source, ()) is None
    wanted = f"data: has 2 samples of class '{CLASSES[1]}', information_samples wants 3; ask"
    with pytest.raises(DataError, match=wanted):
        open_probe(parameters(), source, ())
    with pytest.raises(ParameterError, match="information_classes: 'unheard' is no class of"):
        open_probe(parameters(information_classes=("unheard", CLASSES[0])), source, ())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"information_samples": 3}, "information_samples is 3, must be even"),
        ({"information_classes": ["a"]}, "must be two different names"),
        ({"information_classes": ["a", "a"]}, "must be two different names"),
        (
            {"information_samples": 0, "information_classes": ["a", "b"]},
            "information_classes need information_samples",
        ),
    ],
)
def test_settings_that_do_not_go_together(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameters(**changed)


class Offsets:
    """Gives these offsets where random ones are asked for."""

    def __init__(self, down: float, right: float) -> None:
        self.offsets = np.array([[down], [right]])

    def uniform(self, low: float, high: float, size: tuple[int, int]) -> np.ndarray:
        assert size == (2, 1)
        assert low <= self.offsets.min() <= self.offsets.max() <= high
        return self.offsets


@pytest.mark.parametrize(
    ("most", "down", "right", "wanted"),
    [
        (1.5, 0, 0, [[0, 100, 200], [20, 120, 220]]),
        (1.5, 0, 1, [[100, 200, 200], [120, 220, 220]]),
        (1.5, -1.5, 0, [[0, 100, 200], [0, 100, 200]]),
        (1.5, 0.5, -0.25, [[10, 85, 185], [20, 95, 195]]),
        (1.5, 1.5, 1.5, [[170, 220, 220], [170, 220, 220]]),
        (1.0, 1, 1, [[120, 220, 220], [120, 220, 220]]),
    ],
)
def test_pictures_are_moved_and_their_edge_is_repeated(
    most: float, down: float, right: float, wanted: list[list[int]]
) -> None:
    picture = np.array([[0, 100, 200], [20, 120, 220]], np.uint8)[None, :, :, None]
    moved = shifted(picture, most, Offsets(down, right))  # type: ignore[arg-type]
    assert moved.dtype == np.uint8
    assert moved[0, :, :, 0].tolist() == wanted


def test_each_picture_is_moved_in_its_own_way() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (1, 6, 7, 3), np.uint8).repeat(50, axis=0)
    moved = shifted(pictures, 0.25, np.random.default_rng(0))
    assert moved.shape == (50, 6, 7, 3)
    assert len({one.tobytes() for one in moved}) == 50


class Fixed(nn.Module):
    """Logits that are `weights` times a picture's mean, `apart` from class to class."""

    def __init__(self, weight: float, apart: float) -> None:
        super().__init__()
        self.weight, self.apart = weight, apart
        self.dropout = nn.Dropout(0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        mean = pixels.float().mean(dim=(1, 2, 3))
        difference = self.weight * mean + self.apart * (mean >= 4)
        logits: Tensor = self.dropout(
            torch.stack([mean, difference, torch.zeros_like(mean)], dim=1)
        )
        return logits


@pytest.mark.parametrize(
    ("weight", "apart", "wanted"),
    [(0.0, 0.0, 0.0), (0.0, 5.0, math.log(2)), (1.0, 0.0, math.log(8))],
    ids=["nothing", "the class alone", "each picture"],
)
def test_what_logits_tell_apart(weight: float, apart: float, wanted: float) -> None:
    # Pictures of one value: no shift changes them.
    pixels = np.repeat(np.arange(8, dtype=np.uint8), 12).reshape(8, 3, 4, 1)
    basis = InformationBasis(classes=("a", "b"), samples=8, draws=3, shift=1)
    probe = InformationProbe(basis, (1, 2), pixels, seed=0)
    model = Fixed(weight, apart).train()
    measured = measure_information(model, make_fabric("cpu", "32-true"), probe)
    assert measured == {"mutual_information": pytest.approx(wanted, abs=1e-9)}


def test_logits_that_are_not_finite_stop() -> None:
    basis = InformationBasis(classes=("a", "b"), samples=2, draws=2, shift=1)
    probe = InformationProbe(basis, (1, 2), np.zeros((2, 2, 2, 1), np.uint8), seed=0)
    fabric = make_fabric("cpu", "32-true")
    with pytest.raises(DataError, match="mutual information: the logits are not finite; lower"):
        measure_information(Fixed(math.nan, 0.0), fabric, probe)
