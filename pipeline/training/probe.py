"""What two logits tell of the pictures that were trained on, taken epoch by epoch on a few."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import nn

from softlabel.pipeline.evaluation.information import mutual_information
from softlabel.pipeline.labelset.rejects import RejectedRows
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Reject, Segment
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports.training import InformationBasis
from softlabel.schemas.sample import Array

DRAWS = 20
READ_ROWS = 8192
FORWARD_ROWS = 1024


class InformationProbe(NamedTuple):
    """Training samples of two classes, uint8 `[N, H, W, C]`, and which logits are theirs."""

    basis: InformationBasis
    pair: tuple[int, int]
    pixels: Array
    seed: int


def open_probe(
    params: TrainParams, source: Source, rejects: Iterable[Reject]
) -> InformationProbe | None:
    """The first samples of the two classes in the source's order, as many of each.

    rejects: samples that are not trained on. None where none are asked for. Raises ParameterError
    where the classes are not the source's, DataError where there are too few samples of one.
    """
    if not params.information_samples:
        return None
    classes = params.information_classes or source.classes[:2]
    if len(classes) < 2:
        raise DataError(f"{source.path}: has one class, information_samples are of two")
    unknown = [name for name in classes if name not in source.classes]
    if unknown:
        raise ParameterError(
            f"train: information_classes: {unknown[0]!r} is no class of {source.path}"
        )
    first, second = (source.classes.index(name) for name in classes)
    each = params.information_samples // 2
    pixels = np.concatenate(_first_of(source, RejectedRows(rejects), (first, second), each))
    shift = params.information_shift * min(pixels.shape[1:3])
    basis = InformationBasis(
        classes=(classes[0], classes[1]), samples=len(pixels), draws=DRAWS, shift=shift
    )
    return InformationProbe(basis, (first, second), pixels, params.seed)


def measure_information(
    model: nn.Module, fabric: Fabric, probe: InformationProbe | None
) -> dict[str, float]:
    """The mutual information in nats under the name that an epoch's record has for it.

    Raises DataError where the logits are not finite.
    """
    if probe is None:
        return {}
    model.eval()
    random = np.random.default_rng(probe.seed)
    drawn = [
        _difference(model, fabric, shifted(probe.pixels, probe.basis.shift, random), probe.pair)
        for _ in range(probe.basis.draws)
    ]
    try:
        return {"mutual_information": mutual_information(np.stack(drawn, axis=1))}
    except ValueError as error:
        raise DataError(f"train: mutual information: {error}; lower --learning-rate") from error


def shifted(pixels: Array, most: float, random: np.random.Generator) -> Array:
    """Each picture of `[N, H, W, C]` moved by up to `most` pixels up or down, left or right.

    Its edge is repeated; between pixels it is interpolated linearly.
    """
    rows, height, width, _ = pixels.shape
    margin = math.ceil(most)
    borders = ((0, 0), (margin, margin + 1), (margin, margin + 1), (0, 0))
    padded = np.pad(pixels, borders, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    places = margin + random.uniform(-most, most, (2, rows))
    whole = np.floor(places).astype(np.int64)
    part = (places - whole)[:, :, None, None, None].astype(np.float32)
    moved = np.zeros((rows, pixels.shape[3], height, width), np.float32)
    for down, right in itertools.product((0, 1), (0, 1)):
        share = np.abs(1 - down - part[0]) * np.abs(1 - right - part[1])
        moved += share * windows[np.arange(rows), whole[0] + down, whole[1] + right]
    return np.ascontiguousarray(np.moveaxis(moved.round().astype(np.uint8), 1, 3))


def _difference(
    model: nn.Module, fabric: Fabric, pixels: Array, pair: tuple[int, int]
) -> npt.NDArray[np.float32]:
    parts = []
    for first in range(0, len(pixels), FORWARD_ROWS):
        part = torch.from_numpy(pixels[first : first + FORWARD_ROWS])
        with torch.no_grad(), fabric.autocast():
            logits = model(fabric.to_device(part)).float().cpu().numpy()
        parts.append(logits[:, pair[0]] - logits[:, pair[1]])
    return np.concatenate(parts)


def _first_of(
    source: Source, rejected: RejectedRows, classes: Sequence[int], each: int
) -> list[Array]:
    """The pictures of the first `each` samples of each class; others are not decoded."""
    found: dict[int, list[Array]] = {index: [] for index in classes}
    left = dict.fromkeys(classes, each)
    segments = (
        Segment(source=file.name, first=first, rows=min(READ_ROWS, file.rows - first))
        for file in source.files
        for first in range(0, file.rows, READ_ROWS)
    )
    for segment in segments:
        unit = rejected.left([segment])
        if not unit:
            continue
        stored = source.read_stored(unit, np.arange(sum(part.rows for part in unit)))
        hard = stored.labels.fill_null(-1).to_numpy()
        for index in classes:
            rows = np.flatnonzero(hard == index)[: left[index]]
            if len(rows):
                own = stored.take(rows)
                found[index].append(source.pictures(own.keys, own.pictures))
                left[index] -= len(rows)
        if not any(left.values()):
            break
    for index, missing in left.items():
        if missing:
            raise DataError(
                f"{source.path}: has {each - missing} samples of class "
                f"{source.classes[index]!r}, information_samples wants {each}; ask for fewer, or "
                "for other --information-classes"
            )
    return [np.concatenate(found[index]) for index in classes]
