"""Whether a set that is not aligned with its source has the labels of that source's samples.

Such a set was cut or ordered anew, so only the whole of it can be compared with the whole source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from softlabel.pipeline.labelset.keys import KeySet, few, miscounted_keys
from softlabel.pipeline.shards.layouts import open_shard
from softlabel.pipeline.shards.packing import folder_packing
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Manifest, Reject, Segment
from softlabel.schemas.reports.label_sets import Problem


def check_whole_source(manifest: Manifest, source: Source) -> Iterator[Problem]:
    """The source shards are those of the set's identity, by name, rows, bytes and digest."""
    known = {file.name: file for file in source.files}
    for recorded in manifest.identity.source:
        if known.pop(recorded.name, None) != recorded:
            message = f"{source.path} lacks {recorded.name} as it was when it was labelled"
            yield _problem("source", message)
    for name in known:
        yield _problem("source", f"{source.place(name)} was not labelled")


def check_whole_coverage(
    folder: Path, manifest: Manifest, source: Source, rejects: Sequence[Reject] = ()
) -> Iterator[Problem]:
    """Every key is of the source and stands once, with all its views; but `rejects` none lacks.

    Where a subset by key was asked for, others may be missing.
    """
    segments = [Segment(source=file.name, first=0, rows=file.rows) for file in source.files]
    packing = folder_packing(folder, manifest)

    def columns() -> Iterator[pa.StringArray]:
        for shard in manifest.shards:
            yield open_shard(folder, shard.name, packing, shard.sha256).keys().combine_chunks()

    try:
        wanted = source.keys(segments)
        known = KeySet([wanted])
        for shard, stored in zip(manifest.shards, columns(), strict=True):
            extra = known.others(stored).to_pylist()
            if extra:
                message = f"{shard.name}: holds {len(extra)} foreign keys: {few(extra)}"
                yield Problem(kind="coverage", shard=shard.name, message=message)
        unequal = miscounted_keys(columns, manifest.identity.views)
        gone = {reject.key for reject in rejects}
        missing = [key for key in KeySet(columns()).others(wanted).to_pylist() if key not in gone]
    except (DataError, KeyError) as error:
        yield _problem("coverage", f"the keys cannot be compared: {error}")
        return
    if unequal:
        times = manifest.identity.views
        yield _problem("coverage", f"keys that do not stand {times} times: {few(unequal)}")
    derived = manifest.identity.derived
    part = manifest.limit is not None or (derived is not None and derived.keys_sha256 is not None)
    if missing and not part:
        yield _problem("coverage", f"lacks {len(missing)} keys: {few(missing)}")


def _problem(kind: str, message: str) -> Problem:
    return Problem(kind=kind, shard=None, message=message)
