"""merge: several label sets of one source into one, the mean of what their teachers said."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from softlabel.pipeline.codecs.numerics import Floats
from softlabel.pipeline.deriving.derivation import merged_identity, merged_reference
from softlabel.pipeline.deriving.merging import Members, mean_of, merge_blocks
from softlabel.pipeline.deriving.rewriting import digests_of, read_receipts, source_digests
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.labelset.making import make_set, refuse_overlap
from softlabel.pipeline.labelset.portions import whole_portions
from softlabel.pipeline.mean import Mean
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.shards.layouts import writing_shard
from softlabel.pipeline.shards.packing import make_packing
from softlabel.pipeline.shards.tally import Tally, measured_rows
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.labelset import Identity, Making, Plan, Receipt, ShardPlan
from softlabel.schemas.params import MergeParams
from softlabel.schemas.reports import MergeReport


def run(params: MergeParams, progress: Progress | None = None) -> MergeReport:
    """Write the mean of the sets, or finish what an earlier run of the same command began.

    Raises ParameterError, DataError where the sets do not belong together or the codec cannot hold
    a row, IdentityError, EnvironmentFault, LeaseHeld.
    """
    begin = time.perf_counter()
    refuse_overlap(params.output, params.labels)
    sets = [open_labelset(folder) for folder in params.labels]
    mean = Mean.of_members(len(sets), params.weights, params.temperature)
    plan = _plan(params, sets, mean)
    made = make_set(
        params.output,
        plan,
        _Merging(sets, plan, mean).write_shard,
        reference=merged_reference(sets),
        if_different=params.if_different,
        overwrite=params.overwrite,
        progress=progress or Quiet(),
    )
    manifest = made.manifest
    return MergeReport(
        output=params.output,
        identity_sha256=manifest.identity_sha256,
        codec=manifest.identity.codec,
        rows=manifest.rows,
        rows_written=made.rows_written,
        shards=len(manifest.shards),
        shards_kept=made.shards_kept,
        members=len(sets),
        weights=mean.weights,
        bytes=sum(shard.bytes for shard in manifest.shards),
        seconds=time.perf_counter() - begin,
        kl_mean={str(item.temperature): item.kl_mean for item in manifest.fidelity},
    )


class _Merging:
    """Writes the shards of a merged set: those of the first member, row for row."""

    def __init__(self, sets: Sequence[LabelSet], plan: Plan, mean: Mean) -> None:
        self._members = Members(sets)
        self._mean = mean
        self._packing = make_packing(plan.identity, plan.layout, made_by="merge")
        portions = whole_portions(sets[0].manifest, None)
        self._portions = {portion.shard.name: portion for portion in portions}
        receipts = read_receipts(sets[0])
        self._digests = source_digests(receipts)
        self._rejects = {receipt.shard: receipt.rejects or () for receipt in receipts}

    def write_shard(
        self, shard: ShardPlan, folder: Path, on_rows: Callable[[int], None]
    ) -> Receipt:
        """Write one shard; raises DataError as `merge_blocks` does."""
        portion = self._portions[shard.name]
        identity = self._packing.identity
        rows = measured_rows(len(self._portions), identity.grid)
        tally = Tally(identity.temperatures, rows)
        with writing_shard(folder, shard.name, self._packing) as writer:
            for blocks in self._members.read(portion.first, portion.stop):
                d, shift = mean_of(self._mean, self._members.logits(blocks))
                merged = merge_blocks(blocks[0], d, shift, self._packing.codec)
                tally.add(merged, _at_any_temperature(d))
                writer.append(merged)
                on_rows(len(merged))
            file = writer.finish()
        source = digests_of(shard, self._digests)
        digest, rejects = self._packing.identity_sha256, self._rejects[shard.name]
        return tally.receipt(shard, digest, file, source, rejects=rejects)


def _at_any_temperature(d: Floats) -> Callable[[float], Floats]:
    return lambda T: d


def _plan(params: MergeParams, sets: Sequence[LabelSet], mean: Mean) -> Plan:
    first = sets[0].manifest
    return Plan(
        identity=_identity(params, sets, mean),
        making=_making(params),
        execution=None,
        layout="packed" if first.layout == "merged" else first.layout,
        aligned=first.aligned,
        limit=first.limit,
        shards=tuple(portion.shard for portion in whole_portions(first, None)),
    )


def _identity(params: MergeParams, sets: Sequence[LabelSet], mean: Mean) -> Identity:
    classes = len(sets[0].classes)
    if params.codec == "topk" and params.k >= classes:
        raise ParameterError(
            f"merge.k: {params.k} of {classes} classes is not fewer than all; pass a smaller --k"
        )
    return merged_identity(sets, mean, params.codec, params.k if params.codec == "topk" else None)


def _making(params: MergeParams) -> Making:
    """The command without this machine's paths."""
    words = ["softlabel merge", *["--labels LABELS"] * len(params.labels), "--output OUTPUT"]
    words += [f"--weights {weight!r}" for weight in params.weights]
    words.append(f"--mean {params.mean}")
    if params.temperature is not None:
        words.append(f"--temperature {params.temperature!r}")
    words.append(f"--codec {params.codec}")
    if params.codec == "topk":
        words.append(f"--k {params.k}")
    return Making(verb="merge", command=" ".join(words))
