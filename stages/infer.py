"""infer: the teacher over a source, once, into a label set."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.inference.batch_size import settled_session
from softlabel.pipeline.inference.codec_choice import choose_codec, choose_inner
from softlabel.pipeline.inference.extension import Grown, carry_over, grown
from softlabel.pipeline.inference.plan import limited, plan_shards, share_of
from softlabel.pipeline.inference.prior import sampled_prior
from softlabel.pipeline.inference.runner import BusyTime, label_shards
from softlabel.pipeline.inference.task import Task, open_task
from softlabel.pipeline.inference.trial import try_teacher
from softlabel.pipeline.labelset.closing import close, close_together, described
from softlabel.pipeline.labelset.folder import claim, publish_head, remove_shards, reopen
from softlabel.pipeline.labelset.lease import Lease, Share, turn
from softlabel.pipeline.labelset.making import plain, writing_folder
from softlabel.pipeline.labelset.standing import check_same_making, finished_shards, standing_plan
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.ensemble import EnsembleSession
from softlabel.pipeline.teachers.head import checking_head
from softlabel.pipeline.teachers.inner import InnerOutput
from softlabel.pipeline.teachers.packed import Packer
from softlabel.pipeline.teachers.session import in_class_order
from softlabel.schemas.errors import IdentityError, ParameterError
from softlabel.schemas.labelset import (
    INFERRED,
    CodecName,
    Making,
    Manifest,
    Plan,
    Receipt,
    ShardPlan,
)
from softlabel.schemas.params import InferParams
from softlabel.schemas.reports import InferPreview, InferReport
from softlabel.schemas.sample import RunTeacher


@dataclass(frozen=True, slots=True)
class _Work:
    """All that is settled before the folder is looked at."""

    task: Task
    plan: Plan
    head: Head | None
    run_teacher: RunTeacher
    packer: Packer | None


def run(params: InferParams, progress: Progress | None = None) -> InferReport:
    """Label every sample of the source, or finish what an earlier run began.

    Raises ParameterError, DataError, IdentityError, EnvironmentFault, LeaseHeld, and CheckFailed
    where the teacher is no better than chance on known hard labels.
    """
    progress = progress or Quiet()
    work = _work(params, progress)
    with writing_folder(params.output, params.share) as (folder, held):
        return _label(params, folder, work, held, progress)


def preview(params: InferParams, progress: Progress | None = None) -> InferPreview:
    """What `run` would do. Raises what it would raise before the teacher runs."""
    work = _work(params, progress or Quiet())
    folder = plain(params.output)
    old = _extended(params, folder, work.plan)
    wanted = work.plan if old is None else old.plan
    plan, finished, pending = _standing(params, folder, wanted)
    new = _new_shards(old, pending)
    assert wanted.execution is not None
    return InferPreview(
        output=params.output,
        identity_sha256=wanted.identity.digest(),
        codec=wanted.identity.codec,
        layout=wanted.layout,
        limit=wanted.limit,
        views=wanted.identity.views,
        rows=sum(shard.rows for shard in (wanted if plan is None else plan).shards),
        rows_to_write=sum(shard.rows for shard in new),
        shards_to_write=len(new),
        shards_kept=len(finished) + len(pending) - len(new),
        provider=wanted.execution.provider,
        device=wanted.execution.device,
    )


def _work(params: InferParams, progress: Progress) -> _Work:
    task = open_task(params)
    codec, end = choose_codec(params.codec, task.teachers, progress)
    head = task.head(end)
    _check_codec(params, codec, len(task.source.classes))
    inner = choose_inner(params.features, end, task.teachers)
    session = settled_session(params, task, inner, progress)
    run_teacher = in_class_order(session.run, task.order)
    if head is not None:
        run_teacher = checking_head(run_teacher, head, task.teachers.first.path)
    progress.say(f"{task.teachers.name} on {session.record.device} ({session.record.provider})")
    partial = params.limit is not None and params.limit < task.source.rows
    limit = params.limit if partial else None
    files = limited(task.source.files, limit)
    partly = Making(verb="infer", command=f"softlabel infer --limit {limit}")
    plan = Plan(
        identity=task.identity(
            params.temperatures,
            codec,
            k=params.k if codec == "topk" else None,
            tail=params.tail if codec == "topk" else None,
            head=head,
            features=_features(params, task, session, inner),
        ),
        making=partly if partial else INFERRED,
        limit=limit,
        execution=session.record.model_copy(update={"pillow": task.source.pillow}),
        layout=params.layout,
        shards=plan_shards(files, session.record.batch_size, params.shard_rows, task.source.views),
    )
    return _Work(task, plan, head, run_teacher, session.packer(task.order))


def _features(
    params: InferParams, task: Task, session: EnsembleSession, inner: InnerOutput | None
) -> tuple[str, int] | None:
    """Name and width of what is stored as features beside the labels; None for nothing."""
    if inner is None or params.features is None:
        return None
    return inner.name, session.features_width(task.blank(1))


def _standing(
    params: InferParams, folder: Path, wanted: Plan
) -> tuple[Plan | None, dict[str, Receipt], list[ShardPlan]]:
    """The plan to go on with, None to start afresh; whole shards by name; those to be written.

    Of a share, its own shards alone.
    """
    # What an extended set replaces was looked at already.
    if_different = "replace" if params.extend else params.if_different
    plan = standing_plan(folder, wanted, if_different, params.overwrite)
    own = share_of(wanted if plan is None else plan, params.share)
    finished = {} if plan is None else finished_shards(folder, own)
    pending = [shard for shard in own.shards if shard.name not in finished]
    _refuse_rejects(params, finished)
    if plan is not None and pending and not params.allow_mixed:
        check_same_making(folder, plan, wanted)
    return plan, finished, pending


def _refuse_rejects(params: InferParams, finished: Mapping[str, Receipt]) -> None:
    """Raise IdentityError where finished shards lack samples that this run would stop at."""
    left_out = sum(len(receipt.rejects or ()) for receipt in finished.values())
    if left_out and params.on_bad_sample == "stop":
        raise IdentityError(
            f"{params.output}: {_samples(left_out)} left out of finished shards already; pass "
            "--on-bad-sample skip to keep it so, or mend the pictures and pass --overwrite"
        )


def _samples(count: int) -> str:
    return "1 sample was" if count == 1 else f"{count:,} samples were"


def _label(
    params: InferParams, folder: Path, work: _Work, held: Lease, progress: Progress
) -> InferReport:
    run_teacher, source = work.run_teacher, work.task.source
    begin = time.perf_counter()
    old = _extended(params, folder, work.plan)
    wanted = work.plan if old is None else old.plan
    plan, finished, pending = _standing(params, folder, wanted)
    new = _new_shards(old, pending)
    if new:
        try_teacher(
            wanted,
            _batch_size(wanted),
            source,
            run_teacher,
            params.on_bad_sample,
            params.allow_bad_teacher,
            progress,
        )
    begun = plan is not None
    plan = plan or _with_prior(wanted, params, source, run_teacher, progress)
    plan = _begin(params, folder, plan, begun, work.head, pending)
    busy = BusyTime()
    if pending:
        unit = "samples" if source.views == 1 else "views"
        progress.start("infer", sum(shard.rows for shard in pending), unit)

        def on_batch(rows: int) -> None:
            held.check()
            progress.advance(rows)

        for shard in pending:
            if old is not None and old.carries(shard):
                finished[shard.name] = carry_over(old, shard, folder, plan, on_batch)
        busy = label_shards(
            plan,
            _batch_size(wanted),
            new,
            source,
            run_teacher,
            folder,
            on_batch,
            params.on_bad_sample,
            work.packer,
        )
    held.check()
    if params.share is None:
        manifest, missing = close(folder, plan), 0
    else:
        manifest, missing = _end_share(folder, plan, params.share)
    seconds = time.perf_counter() - begin
    report = _report(params, wanted, manifest, new, len(finished), busy, seconds)
    return report.model_copy(update={"shards_missing": missing})


def _begin(
    params: InferParams,
    folder: Path,
    plan: Plan,
    begun: bool,
    head: Head | None,
    pending: Sequence[ShardPlan],
) -> Plan:
    """Claim the folder for `plan`, unless it was begun already; the plan that is gone on with.

    Shares do so in turn, for the first one's plan is everybody's. What was found of their pending
    shards goes at once: nobody else shall take it for whole.
    """
    if params.share is None:
        if not begun:
            claim(folder, plan)
        if head is not None:
            publish_head(folder, head)
        if pending:
            reopen(folder)
        return plan
    with turn(folder):
        standing = standing_plan(folder, plan, "error", overwrite=False)
        if standing is None:
            claim(folder, plan)
        elif not begun and (not params.allow_mixed or standing.shards != plan.shards):
            check_same_making(folder, standing, plan)
        if head is not None:
            publish_head(folder, head)
        if pending:
            remove_shards(folder, [shard.name for shard in pending])
    return standing or plan


def _end_share(folder: Path, plan: Plan, share: Share) -> tuple[Manifest, int]:
    """The manifest where all shares are whole, else what it would say of this one; what lacks."""
    with turn(folder):
        manifest = close_together(folder, plan)
    if manifest is not None:
        return manifest, 0
    lacking = [shard for shard in plan.shards if not (folder / f"{shard.name}.json").exists()]
    return described(folder, share_of(plan, share)), max(1, len(lacking))


def _extended(params: InferParams, folder: Path, wanted: Plan) -> Grown | None:
    """What stands and shall be extended; None where all is labelled afresh."""
    if not params.extend:
        return None
    old = grown(folder, wanted, params.shard_rows, allow_mixed=params.allow_mixed)
    if old is not None:
        _refuse_rejects(params, old.receipts)
    return old


def _new_shards(old: Grown | None, pending: Sequence[ShardPlan]) -> list[ShardPlan]:
    """Those that the teacher has to label."""
    return [shard for shard in pending if old is None or not old.carries(shard)]


def _with_prior(
    plan: Plan,
    params: InferParams,
    source: Source,
    run_teacher: RunTeacher,
    progress: Progress,
) -> Plan:
    """The plan with the class prior, where its tails shall be spread by one."""
    if plan.identity.tail != "prior" or plan.prior is not None:
        return plan
    progress.say("class prior: from samples of the whole source")
    prior = sampled_prior(source, run_teacher, _batch_size(plan), params.k, params.on_bad_sample)
    return plan.model_copy(update={"prior": prior})


def _batch_size(plan: Plan) -> int:
    assert plan.execution is not None
    return plan.execution.batch_size


def _check_codec(params: InferParams, codec: CodecName, classes: int) -> None:
    """Raise ParameterError where `k` or `tail` do not go with the codec."""
    if codec == "topk" and params.k >= classes:
        raise ParameterError(
            f"infer.k: {params.k} of {classes} classes is not fewer than all; pass a smaller --k "
            "or --codec dense-f16"
        )
    if codec != "topk" and params.tail == "prior":
        raise ParameterError(
            f"infer.tail: codec {codec} leaves no class out; pass --codec topk or no --tail"
        )


def _report(
    params: InferParams,
    plan: Plan,
    manifest: Manifest,
    written: Sequence[ShardPlan],
    kept: int,
    busy: BusyTime,
    seconds: float,
) -> InferReport:
    names = {shard.name for shard in written}
    rows = sum(shard.rows for shard in manifest.shards if shard.name in names)
    counts = manifest.statistics
    assert plan.execution is not None
    return InferReport(
        output=params.output,
        partition=params.partition,
        identity_sha256=manifest.identity_sha256,
        limit=manifest.limit,
        views=manifest.identity.views,
        rows=manifest.rows,
        rows_written=rows,
        rejects=manifest.rejects.samples if manifest.rejects else 0,
        shards=len(manifest.shards),
        shards_kept=kept,
        bytes=sum(shard.bytes for shard in manifest.shards),
        provider=plan.execution.provider,
        device=plan.execution.device,
        seconds=seconds,
        samples_per_second=rows / seconds,
        busy=vars(replace(busy)),
        bound=busy.bound(),
        teacher_accuracy=counts.correct / counts.labelled if counts.labelled else None,
        kl_mean={str(item.temperature): item.kl_mean for item in manifest.fidelity},
    )
