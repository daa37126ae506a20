"""The penultimate projection of Müller et al. 2019 (section 2): three classes seen from the side.

The rows of a model's last linear layer are the templates of its classes. Of three of them one
plane passes through all; what the layer gets for samples of these classes is projected onto it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from softlabel.schemas.reports.figures import Projection

SAMPLES_A_CLASS = 100
# Classes among which the three are looked for, so that their products fit.
MOST_TEMPLATES = 4096

Floating = npt.NDArray[np.floating]
Three = tuple[int, int, int]


def choose_three(templates: Floating) -> Three | None:
    """The two classes whose templates `[C, d]` are most alike, and the one least like both.

    Alike by cosine, lower ids among equals, of the first 4,096 classes; None of fewer than three.
    """
    rows = np.asarray(templates[:MOST_TEMPLATES], np.float32)
    if len(rows) < 3:
        return None
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms > 0, norms, 1)
    alike = unit @ unit.T
    first, second = divmod(int(np.where(np.tri(len(rows)), -np.inf, alike).argmax()), len(rows))
    both = np.maximum(alike[first], alike[second])
    both[[first, second]] = np.inf
    return first, second, int(both.argmin())


class PlaneOfThree:
    """Collects samples of three classes until there are enough of each, and projects them."""

    def __init__(self, templates: Floating, three: Three) -> None:
        self._three = three
        self._templates = np.asarray(templates[list(three)], np.float64)
        self._features: list[npt.NDArray[np.float64]] = []
        self._labels: list[npt.NDArray[np.int64]] = []
        self._left = dict.fromkeys(three, SAMPLES_A_CLASS)

    @property
    def full(self) -> bool:
        """Whether no sample more is wanted."""
        return not any(self._left.values())

    def add(self, features: Floating, labels: npt.NDArray[np.integer]) -> None:
        """Keep what is wanted of the inputs of the last layer `[N, d]`, by their hard labels."""
        for place, label in enumerate(self._three):
            rows = np.flatnonzero(labels == label)[: self._left[label]]
            self._left[label] -= len(rows)
            self._features.append(np.asarray(features[rows], np.float64))
            self._labels.append(np.full(len(rows), place, np.int64))

    def projection(self, classes: Sequence[str]) -> Projection | None:
        """The samples on the plane; None without a sample, or where no one plane is given.

        The templates' centre is the origin, the first two differ along x alone.
        """
        first, second, third = self._templates
        basis = np.linalg.qr(np.stack([second - first, third - first], axis=1))
        heights = np.abs(np.diag(basis.R))
        if len(heights) < 2 or heights.min() <= 1e-6 * heights.max():
            return None
        features = np.concatenate(self._features) if self._features else np.zeros((0, len(first)))
        if not len(features):
            return None
        on_plane = (features - self._templates.mean(axis=0)) @ (basis.Q * np.sign(np.diag(basis.R)))
        labels = np.concatenate(self._labels)
        first_name, second_name, third_name = (classes[label] for label in self._three)
        return Projection(
            classes=(first_name, second_name, third_name),
            labels=tuple(labels.tolist()),
            x=tuple(map(_short, on_plane[:, 0].tolist())),
            y=tuple(map(_short, on_plane[:, 1].tolist())),
            spread=_spread(on_plane, labels),
        )


def _spread(points: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float | None:
    counts = np.bincount(labels, minlength=3)
    if not counts.all():
        return None
    centres = np.stack([points[labels == place].mean(axis=0) for place in range(3)])
    within = np.sqrt(((points - centres[labels]) ** 2).sum(axis=1).mean())
    between = np.linalg.norm(centres - np.roll(centres, 1, axis=0), axis=1).mean()
    return float(within / between) if between else None


def _short(value: float) -> float:
    """Five digits are more than a plot shows."""
    return float(f"{value:.5g}")
