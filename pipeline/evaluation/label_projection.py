"""The penultimate projection of a teacher, from the features that a factored label set stores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.evaluation.projection import PlaneOfThree, Three, choose_three
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.shards.block import piece_rows
from softlabel.schemas.reports.figures import Projection


def project_labels(labels: LabelSet, classes: Sequence[str]) -> Projection | None:
    """The first samples of each of three classes on their templates' plane; None without features.

    classes: the three by name; where the set has not all of them, its own look-alikes are taken.
    """
    plane: PlaneOfThree | None = None
    for block in labels.batches(piece_rows(labels.num_classes)):
        if not isinstance(block.codec, Factored):
            return None
        if plane is None:
            templates = block.codec.head.weight
            three = _by_name(labels, classes) or choose_three(templates)
            if three is None:
                return None
            plane = PlaneOfThree(templates, three)
        hard = block.labels.fill_null(-1).to_numpy(zero_copy_only=False)
        plane.add(block.payload["features"], np.where(hard >= 0, hard, block.top1))
        if plane.full:
            break
    return None if plane is None else plane.projection(labels.classes)


def _by_name(labels: LabelSet, classes: Sequence[str]) -> Three | None:
    if len(classes) != 3 or not set(classes) <= set(labels.classes):
        return None
    first, second, third = (labels.classes.index(name) for name in classes)
    return first, second, third
