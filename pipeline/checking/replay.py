"""Replaying labels that were derived from others: their samples, and what they may have lost.

A subset has no place in a student's loader, which wants a label for every sample; a chain of lossy
codecs loses more than the last step's fidelity says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from softlabel.pipeline.codecs.codec import Codec, encode_rows
from softlabel.pipeline.codecs.factored import Factored
from softlabel.pipeline.codecs.make import make_codec
from softlabel.pipeline.codecs.numerics import Floats
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.labelset.portions import RowReader
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.sources.replaying import replayed
from softlabel.pipeline.sources.sequences import stacked
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.labelset import Identity, Manifest, Segment

Pixels = npt.NDArray[np.uint8]


def why_not_replayed(manifest: Manifest) -> str | None:
    """Why no single teacher can be asked what these labels should say; None where one can."""
    derived = manifest.identity.derived
    if derived is not None and derived.mean is not None:
        members = len(derived.weights)
        return f"not replayed: made by merge from {members} label sets; verify each of those"
    if manifest.identity.epoch is not None:
        return "not replayed: a student said these while it trained; no file can be asked again"
    identity = manifest.identity
    if identity.positions and identity.inputs is None and identity.grid is None:
        return "not replayed: sequences cannot be made again from a source of pictures"
    if manifest.identity.views > 1 and manifest.identity.augment is None:
        return "not replayed: the set does not say how its views were made"
    return None


def is_subset(manifest: Manifest, source: Source) -> bool:
    """Whether the set lacks samples or classes of its source."""
    derived = manifest.identity.derived
    fewer_keys = derived is not None and derived.keys_sha256 is not None
    return fewer_keys or manifest.limit is not None or manifest.identity.classes != source.classes


def stored_rows(
    labels: LabelSet, source: Source, rows: int, seed: int
) -> tuple[Pixels, LabelBlock]:
    """Random rows of a set: their pictures `[N, H, W, C]`, found by key, and their labels."""
    chosen = np.random.default_rng(seed).permutation(len(labels))[:rows]
    reader = RowReader(labels)
    # In stored order, so that no row group is read twice, and then in random order again: rows that
    # stand together may be of one class, and the negative control would see no difference.
    stored = np.sort(chosen)
    parts = [part for row in stored.tolist() for part in reader.read(row, row + 1)]
    block = concat_blocks(parts).take(np.searchsorted(stored, chosen))
    views = np.zeros(len(block), np.uint16) if block.views is None else block.views
    source = replayed(source, labels.manifest.identity, labels.folder)
    return _pictures(source, block.keys, views), block


def features_difference(made: Floats, stored: npt.NDArray[np.float16]) -> float:
    """The largest difference of a feature `[N, width]`, as a part of the largest feature."""
    largest = max(np.abs(made).max(initial=0), np.finfo(np.float32).tiny)
    return float(np.abs(made - stored).max(initial=0) / largest)


def chain_loss(
    full: Floats, columns: Sequence[int] | None, identity: Identity, own: Codec, T: float
) -> Floats:
    """The teacher's logits `[N, C]` after all codecs that these labels went through, for T.

    full: of all its classes, which is what the earlier codecs packed. columns: those of the set's
    classes, None for all. own: the set's codec.
    """
    derived = identity.derived
    for name in derived.codecs if derived is not None else ():
        if name in ("dense-f16", "dense-u8"):
            full = _decoded(make_codec(name, full.shape[1], identity.temperatures), full, T)
    chosen = full if columns is None else np.ascontiguousarray(full[:, list(columns)])
    return chosen if isinstance(own, Factored) else _decoded(own, chosen, T)


def _decoded(codec: Codec, logits: Floats, T: float) -> Floats:
    rows = encode_rows(codec, logits)
    return codec.logits({**rows.columns, "top1": rows.top1}, T)


def _pictures(source: Source, keys: pa.StringArray, views: npt.NDArray[np.uint16]) -> Pixels:
    """The picture of each key in each of these views."""
    segments = [Segment(source=file.name, first=0, rows=file.rows) for file in source.files]
    places = pc.index_in(keys, source.keys(segments)).to_numpy()
    starts = np.cumsum([0, *(file.rows for file in source.files)])
    pictures: dict[int, Pixels] = {}
    # In the source's order, so that no row group is read twice.
    for place in np.unique(places).tolist():
        number = int(np.searchsorted(starts, place, side="right")) - 1
        first = place - int(starts[number])
        segment = Segment(source=source.files[number].name, first=first, rows=1)
        pictures[place] = source.read([segment]).inputs
    wanted = zip(places.tolist(), views.tolist(), strict=True)
    return stacked([pictures[place][view : view + 1] for place, view in wanted])
