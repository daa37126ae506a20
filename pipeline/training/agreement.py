"""Whether labels are of these samples: refused by name, never joined, where they are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.classes import class_map
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.sources.replaying import replayed
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError
from softlabel.schemas.teacher import Grid

if TYPE_CHECKING:
    from softlabel.pipeline.training.ensemble import Labels


def as_labelled(source: Source, labels: Labels) -> Source:
    """The source, giving the views that were labelled where it is views.

    Raises DataError where the labels are of other classes, of another source or of a part of it;
    what `replayed` raises where the views cannot be made.
    """
    check_belongs(source, labels)
    return replayed(source, labels.manifest.identity, labels.folder)


def check_belongs(source: Source, labels: Labels) -> None:
    """Raise DataError where the labels are of other classes, another source or a part of it."""
    names = (f"label set {labels.folder}", f"source {source.path}")
    if class_map(labels.classes, source.classes, names) is not None:
        raise DataError(
            f"{names[0]} and {names[1]} order their classes differently; label this source again"
        )
    if labels.manifest.limit is not None:
        raise DataError(
            f"{names[0]} is partial, of the first {labels.manifest.limit:,} samples of its source; "
            "run 'softlabel infer' without --limit"
        )
    recorded = {file.name: file for file in labels.manifest.identity.source}
    for file in source.files:
        if recorded.pop(file.name, None) != file:
            raise DataError(
                f"{names[0]} does not hold the labels of {source.place(file.name)} as it is now; "
                "run 'softlabel infer' over this source"
            )


def check_positions(seen: Source, labels: Labels, who: str) -> None:
    """Raise DataError where labels are of other positions of a picture than `who` sees there.

    seen: the source as `who` sees it. Its pictures may be smaller than the teacher's were, but must
    show the same part of each.
    """
    identity = labels.manifest.identity
    if seen.grid != identity.grid:
        raise DataError(
            f"{who} speaks of {positions_of(seen.grid)}, and the labels in {labels.folder} are of "
            f"{positions_of(identity.grid)}; let the model resize what it says to these"
        )
    if identity.grid is None or identity.preprocess is None or seen.framing is None:
        return
    if seen.framing.part_of_picture != identity.preprocess.framing.part_of_picture:
        raise DataError(
            f"{who} sees another part of each picture than the teacher of {labels.folder} did "
            "(its height, width and resize are in other proportions), so its positions are others; "
            "scale and crop as the teacher's preprocessing does"
        )


def positions_of(grid: Grid | None) -> str:
    """What such a grid has, for messages."""
    return "whole pictures" if grid is None else f"{grid[0]}x{grid[1]} positions"


def check_joined(
    keys: pa.StringArray,
    labels: LabelBlock,
    views: npt.NDArray[np.int64],
    labelset: Labels,
) -> None:
    """Raise DataError where a sample meets the label of another key or view."""
    same = pc.equal(keys, labels.keys)
    if not pc.all(same).as_py():
        row = int(pc.index(same, False).as_py())
        raise DataError(
            f"{labelset.folder}: sample {keys[row].as_py()!r} meets the label of "
            f"{labels.keys[row].as_py()!r}; the source changed since it was labelled, run "
            "'softlabel infer' again"
        )
    if labels.views is not None and not np.array_equal(labels.views, views):
        row = int(np.flatnonzero(labels.views != views)[0])
        raise DataError(
            f"{labelset.folder}: the views of sample {keys[row].as_py()!r} do not stand "
            "in their order; run 'softlabel verify' on the folder"
        )


def check_hard_labels(
    keys: pa.StringArray, hard: pa.Int32Array, labels: LabelBlock, labelset: Labels
) -> None:
    """Raise DataError where a sample's hard label is another than when it was labelled.

    hard: of sequences a list of each sample, which tells how many positions there are too. Keys
    that are row numbers stay when the rows are put into another order: this shows it.
    """
    if pa.types.is_large_list(hard.type):
        _check_positions(keys, hard, labels, labelset)
        return
    if labels.lengths is not None or hard.equals(labels.labels):
        return
    differ = pc.not_equal(hard.fill_null(-1), labels.labels.fill_null(-1))
    row = int(pc.index(differ, True).as_py())
    raise DataError(
        f"{labelset.folder}: sample {keys[row].as_py()!r} has hard label "
        f"{hard[row].as_py()}, and {labels.labels[row].as_py()} when it was labelled; "
        "the source changed since, run 'softlabel infer' again"
    )


def _check_positions(
    keys: pa.StringArray, hard: pa.LargeListArray, labels: LabelBlock, labelset: Labels
) -> None:
    then = pa.LargeListArray.from_arrays(pa.array(labels.starts()), labels.labels)
    if hard.equals(then):
        return
    row = next(row for row in range(len(keys)) if hard[row] != then[row])
    now, before = len(hard[row]), len(then[row])
    found = "other hard labels than when it was labelled"
    if now != before:
        found = f"{now} positions, and {before} when it was labelled"
    raise DataError(
        f"{labelset.folder}: sample {keys[row].as_py()!r} has {found}; the source changed since, "
        "run 'softlabel infer' again"
    )
