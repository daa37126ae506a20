"""convert: a label set written again, in another layout, codec or sharding, or a part of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softlabel.pipeline.codecs.factored import Factored, Head
from softlabel.pipeline.deriving.conversion import Converter
from softlabel.pipeline.deriving.derivation import check_derivable, converted_identity, reference_of
from softlabel.pipeline.deriving.merged_layout import MergedWriting, TarSource
from softlabel.pipeline.deriving.prior import stored_prior
from softlabel.pipeline.deriving.rewriting import Rewriting
from softlabel.pipeline.deriving.subset import KeyList, key_subset, read_class_list
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.labelset.making import make_set, refuse_overlap
from softlabel.pipeline.labelset.portions import Portion, whole_portions
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.shards.packing import folder_packing, make_packing
from softlabel.pipeline.sources.files import refuse_remote
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import (
    CodecName,
    Identity,
    Layout,
    Making,
    Plan,
    Reference,
    ShardPlan,
    Tail,
)
from softlabel.schemas.params import ConvertParams
from softlabel.schemas.reports import ConvertReport

DEFAULT_K = 64


def run(params: ConvertParams, progress: Progress | None = None) -> ConvertReport:
    """Write the set, or finish what an earlier run of the same command began.

    Raises ParameterError, DataError where what is asked for cannot be had from what is stored,
    IdentityError, EnvironmentFault, LeaseHeld.
    """
    begin = time.perf_counter()
    labels = open_labelset(params.labels)
    refuse_overlap(params.output, [params.labels])
    job = _job(params, labels)
    if isinstance(job.writing, MergedWriting) and not params.overwrite:
        job.writing.forget_changed(params.output, job.plan)
    made = make_set(
        params.output,
        job.plan,
        job.writing.write_shard,
        head=job.head,
        reference=job.reference,
        if_different=params.if_different,
        overwrite=params.overwrite,
        progress=progress or Quiet(),
    )
    manifest = made.manifest
    return ConvertReport(
        output=params.output,
        identity_sha256=manifest.identity_sha256,
        codec=manifest.identity.codec,
        layout=manifest.layout,
        rows=manifest.rows,
        rows_written=made.rows_written,
        shards=len(manifest.shards),
        shards_kept=made.shards_kept,
        bytes_before=sum(shard.bytes for shard in labels.manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        seconds=time.perf_counter() - begin,
        reference=manifest.reference,
        kl_mean={str(item.temperature): item.kl_mean for item in manifest.fidelity}
        if job.writing.repacks
        else None,
    )


@dataclass(frozen=True, slots=True)
class _Job:
    plan: Plan
    head: Head | None
    reference: Reference
    writing: Rewriting | MergedWriting


def _job(params: ConvertParams, labels: LabelSet) -> _Job:
    """All that the stored labels and the parameters decide, before anything is written."""
    old = labels.manifest
    classes = None if params.classes is None else read_class_list(params.classes, labels)
    codec = params.codec or old.identity.codec
    k = _kept_classes(params, labels, codec)
    check_derivable(labels, codec, k, classes)
    layout = _layout(params, labels)
    cut = _cut(params, labels)
    head = _head(labels, codec, classes)
    tail = _tail(params, labels, codec)
    identity = converted_identity(labels, codec, k, tail, classes, cut.keys_sha256, head)
    plan = Plan(
        identity=identity,
        making=_making(params, identity, layout),
        execution=None,
        layout=layout,
        aligned=cut.aligned,
        limit=old.limit,
        prior=_prior(labels, identity, classes),
        shards=cut.shards,
    )
    packing = make_packing(identity, layout, prior=plan.prior, head=head, made_by="convert")
    repacks = classes is not None or (codec, k) != (old.identity.codec, old.identity.k)
    converter = Converter(packing.codec if repacks else None, classes)
    writing: Rewriting | MergedWriting
    if cut.source is None:
        writing = Rewriting(labels, packing, converter, cut.portions, cut.rows)
    else:
        writing = MergedWriting(labels, packing, converter, cut.source)
    return _Job(plan, head, reference_of(labels) if repacks else old.reference, writing)


@dataclass(frozen=True, slots=True)
class _Cut:
    """Which rows go where: portions of the set in its order, or the tars of the source."""

    shards: tuple[ShardPlan, ...]
    aligned: bool
    portions: tuple[Portion, ...] = ()
    rows: npt.NDArray[np.int64] | None = None
    keys_sha256: str | None = None
    source: TarSource | None = None


def _cut(params: ConvertParams, labels: LabelSet) -> _Cut:
    if params.source is not None:
        source = TarSource(refuse_remote(params.source, "the tars of layout merged"))
        return _Cut(source.shards(labels), aligned=False, source=source)
    if params.keys is None:
        portions = whole_portions(labels.manifest, params.shard_rows)
        return _Cut(_shards(portions), labels.manifest.aligned, portions)
    subset = key_subset(labels, KeyList(params.keys), params.shard_rows)
    portions = subset.portions
    return _Cut(_shards(portions), False, portions, subset.rows, subset.keys_sha256)


def _shards(portions: Sequence[Portion]) -> tuple[ShardPlan, ...]:
    return tuple(portion.shard for portion in portions)


def _kept_classes(params: ConvertParams, labels: LabelSet, codec: CodecName) -> int | None:
    if codec == "topk":
        return params.k or labels.manifest.identity.k or DEFAULT_K
    if params.k is not None:
        raise ParameterError(f"convert.k: is for codec topk, the labels become {codec}; leave --k")
    return None


def _tail(params: ConvertParams, labels: LabelSet, codec: CodecName) -> Tail | None:
    stored = labels.manifest.identity
    if codec != "topk":
        if params.tail is not None:
            raise ParameterError(
                f"convert.tail: is for codec topk, the labels become {codec}; leave --tail"
            )
        return None
    if stored.codec != "topk":
        return params.tail or "uniform"
    if params.tail not in (None, stored.tail or "uniform"):
        raise DataError(
            f"{labels.folder}: topk keeps the tail it was made with ({stored.tail or 'uniform'}), "
            f"the logits for another are missing; infer again with --tail {params.tail}"
        )
    return stored.tail


def _prior(
    labels: LabelSet, identity: Identity, classes: Sequence[int] | None
) -> tuple[float, ...] | None:
    """The vector that spreads the tail: the set's own, or one from its full logits."""
    if identity.tail != "prior" or identity.k is None:
        return None
    return labels.manifest.prior or stored_prior(labels, identity.k, classes)


def _layout(params: ConvertParams, labels: LabelSet) -> Layout:
    layout = params.layout or labels.manifest.layout
    if layout == "merged" and params.source is None:
        raise ParameterError(
            f"convert.layout: {labels.folder} is merged with its source; pass --layout merged "
            "and --source, or another --layout"
        )
    return layout


def _head(labels: LabelSet, codec: CodecName, classes: Sequence[int] | None) -> Head | None:
    if codec != "factored":
        return None
    stored = folder_packing(labels.folder, labels.manifest).codec
    assert isinstance(stored, Factored)
    return stored.head if classes is None else stored.head.take(classes)


def _making(params: ConvertParams, identity: Identity, layout: Layout) -> Making:
    """The command without this machine's paths: what decides the labels and their shards."""
    words = ["softlabel convert --labels LABELS --output OUTPUT"]
    words += [f"--layout {layout} --codec {identity.codec}"]
    if identity.k is not None:
        words.append(f"--k {identity.k}")
    if identity.tail == "prior":
        words.append("--tail prior")
    if params.shard_rows is not None:
        words.append(f"--shard-rows {params.shard_rows}")
    for name in ("keys", "classes", "source"):
        if getattr(params, name) is not None:
            words.append(f"--{name} {name.upper()}")
    return Making(verb="convert", command=" ".join(words))
