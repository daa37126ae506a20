"""The penultimate projection of a teacher, from the features that a label set stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.evaluation.class_means import ClassMeans, row_classes
from softlabel.pipeline.evaluation.projection import (
    MOST_TEMPLATES,
    PlaneOfThree,
    Three,
    choose_three,
)
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.progress import Progress
from softlabel.pipeline.shards.block import piece_rows
from softlabel.schemas.reports.figures import Projection

# Classes times width of the features, in float64: 134 MB.
MOST_SUMS = 2**24


def project_labels(
    labels: LabelSet, classes: Sequence[str], progress: Progress
) -> Projection | None:
    """The first samples of each of three classes on one plane; None without features.

    A factored set holds the templates through which the plane passes. Of features that stand beside
    other labels, what the teacher does with them is not stored: theirs passes through the means of
    the three classes. A sample's class is its hard label, or its top-1 where that is unknown.
    classes: the three by name; where the set has not all of them, its own look-alikes are taken.
    """
    identity = labels.manifest.identity
    if identity.codec == "factored":
        return _on_templates(labels, _by_name(labels, classes))
    if identity.features is None:
        return None
    return _on_means(labels, _by_name(labels, classes), identity.features, progress)


def _on_templates(labels: LabelSet, three: Three | None) -> Projection | None:
    plane: PlaneOfThree | None = None
    for block in labels.batches(piece_rows(labels.num_classes)):
        if plane is None:
            assert isinstance(block.codec, Factored)
            templates = block.codec.head.weight
            three = three or choose_three(templates)
            if three is None:
                return None
            plane = PlaneOfThree(templates, three)
        plane.add(block.payload["features"], row_classes(block))
        if plane.full:
            break
    return None if plane is None else plane.projection(labels.classes)


def _on_means(
    labels: LabelSet, three: Three | None, width: int, progress: Progress
) -> Projection | None:
    """Two passes: the means of all rows, and then the first rows of the three."""
    most = min(labels.num_classes, MOST_TEMPLATES, MOST_SUMS // width)
    wanted = np.arange(most) if three is None else np.asarray(three)
    means = ClassMeans(len(wanted), width)
    progress.start("features", len(labels), "rows")
    for features, places in _placed(labels, wanted):
        means.add(features[places >= 0], places[places >= 0])
        progress.advance(len(places))
    seen = np.flatnonzero(means.rows)
    chosen = choose_three(_centred(means.means()[seen]))
    if chosen is None:
        return None
    corners = (0, 1, 2) if three is not None else _three(seen[list(chosen)].tolist())
    plane = PlaneOfThree(means.means(), corners)
    for features, places in _placed(labels, wanted):
        plane.add(features, places)
        if plane.full:
            break
    found = plane.projection([labels.classes[label] for label in wanted])
    return None if found is None else found.model_copy(update={"through": "means"})


def _placed(
    labels: LabelSet, wanted: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]]:
    """Features, and the place of each row's class among the wanted ones, -1 for another."""
    place = np.full(labels.num_classes, -1)
    place[wanted] = np.arange(len(wanted))
    for block in labels.batches(piece_rows(labels.num_classes)):
        assert block.features is not None
        yield block.features, place[row_classes(block)]


def _centred(means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Means of what lies on one side of the origin, as behind a ReLU, all have like directions."""
    return means - means.mean(axis=0) if len(means) else means


def _by_name(labels: LabelSet, classes: Sequence[str]) -> Three | None:
    if len(classes) != 3 or not set(classes) <= set(labels.classes):
        return None
    return _three([labels.classes.index(name) for name in classes])


def _three(found: Sequence[int]) -> Three:
    first, second, third = found
    return first, second, third
