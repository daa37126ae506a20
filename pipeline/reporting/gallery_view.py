"""What the gallery shows of a sample: its picture, its hard target, and its soft target as bars."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.numerics import softmax
from softlabel.pipeline.reporting.gallery import CHOICE_TEMPERATURE, Candidate, Pair, png_data_uri

SHOWN_CLASSES = 12
SHOWN_OF_MANY = 7
SMALL_PICTURE = 96


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a data URI, its size in pixels, and whether its pixels should stay visible."""

    uri: str
    height: int
    width: int
    small: bool


@dataclass(frozen=True, slots=True)
class BarRow:
    """One class of a sample: role 'target', 'rival', 'rest' or '', and its share at each T.

    hard: 1 or 0, None where the hard label is unknown.
    """

    name: str
    role: str
    hard: float | None
    soft: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """One sample as the template shows it; agrees: the teacher's top-1 is the hard label."""

    key: str
    target: str
    rival: str
    rival_share: float
    labelled: bool
    agrees: bool
    top1: str
    picture: Picture | None
    rows: tuple[BarRow, ...]


def card(
    candidate: Candidate,
    classes: Sequence[str],
    soft: Mapping[float, npt.NDArray[np.float32]],
    picture: npt.NDArray[np.uint8] | None,
) -> Card:
    """The view of one sample, whose soft targets `[C]` by temperature are `soft`.

    `picture` is uint8 `[height, width, channels]`.
    """
    at_choice = softmax(candidate.logits, CHOICE_TEMPERATURE)
    view = "" if candidate.view is None else f" view {candidate.view}"
    return Card(
        key=candidate.key + view,
        target=classes[candidate.target],
        rival=classes[candidate.rival],
        rival_share=float(at_choice[candidate.rival]),
        labelled=candidate.labelled,
        agrees=candidate.top1 == candidate.target,
        top1=classes[candidate.top1],
        picture=None if picture is None else _picture(picture),
        rows=_rows(candidate, classes, soft),
    )


def live_data(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """For the slider, a record a sample in the page's order: float16 logits and classes shown."""
    return [
        {
            "logits": base64.b64encode(member.logits.astype("<f2").tobytes()).decode(),
            "shown": shown_classes(member),
        }
        for pair in pairs
        for member in pair.members
    ]


def shown_classes(candidate: Candidate) -> list[int]:
    """Ids of the classes that get a bar: all in order where they are few, else the likeliest.

    The target and its rival are always among them.
    """
    if len(candidate.logits) <= SHOWN_CLASSES:
        return list(range(len(candidate.logits)))
    likeliest = np.argsort(-candidate.logits.astype(np.float32), kind="stable").tolist()
    wanted = [candidate.target, candidate.rival]
    others = [index for index in likeliest if index not in wanted]
    kept = {*wanted, *others[: SHOWN_OF_MANY - len(wanted)]}
    return [index for index in likeliest if index in kept]


def share(value: float) -> str:
    """A probability in per cent, short: `100`, `42`, `3.1`, `0`. report.js has its twin."""
    number = 100 * value
    if number >= 9.95:
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 0.05 else "0"


def _rows(
    candidate: Candidate,
    classes: Sequence[str],
    soft: Mapping[float, npt.NDArray[np.float32]],
) -> tuple[BarRow, ...]:
    shown = shown_classes(candidate)
    rows = [
        BarRow(
            name=classes[index],
            role=_role(candidate, index),
            hard=float(index == candidate.target) if candidate.labelled else None,
            soft=tuple(float(probs[index]) for probs in soft.values()),
        )
        for index in shown
    ]
    others = len(classes) - len(shown)
    if others:
        rows.append(_rest(f"{others:,} others", candidate.labelled, soft, shown))
    return tuple(rows)


def _rest(
    name: str,
    labelled: bool,
    soft: Mapping[float, npt.NDArray[np.float32]],
    shown: Sequence[int],
) -> BarRow:
    left = tuple(max(0.0, 1 - float(probs[list(shown)].sum())) for probs in soft.values())
    return BarRow(name=name, role="rest", hard=0.0 if labelled else None, soft=left)


def _role(candidate: Candidate, index: int) -> str:
    return {candidate.target: "target", candidate.rival: "rival"}.get(index, "")


def _picture(picture: npt.NDArray[np.uint8]) -> Picture:
    height, width, _ = picture.shape
    small = max(height, width) < SMALL_PICTURE
    return Picture(png_data_uri(picture), height, width, small)
