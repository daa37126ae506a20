"""infer: the teacher over a source, once, into a label set."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from pathlib import Path

from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.inference.codec_choice import choose_codec
from softlabel.pipeline.inference.plan import batches, plan_shards
from softlabel.pipeline.inference.prior import sampled_prior
from softlabel.pipeline.inference.runner import BusyTime, label_shards, naming_the_key, shift_output
from softlabel.pipeline.inference.task import open_task
from softlabel.pipeline.labelset.folder import (
    check_same_making,
    claim,
    close,
    finished_shards,
    publish_head,
    reopen,
    standing_plan,
)
from softlabel.pipeline.labelset.lease import Lease
from softlabel.pipeline.labelset.making import writing_folder
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.head import checking_head
from softlabel.pipeline.teachers.session import TeacherSession, in_class_order
from softlabel.schemas.errors import CheckFailed, ParameterError
from softlabel.schemas.labelset import CodecName, Manifest, Plan
from softlabel.schemas.params import InferParams
from softlabel.schemas.reports import InferReport
from softlabel.schemas.sample import RunTeacher

CHECKED_ROWS = 1024


def run(params: InferParams, progress: Progress | None = None) -> InferReport:
    """Label every sample of the source, or finish what an earlier run began.

    Raises ParameterError, DataError, IdentityError, EnvironmentFault, LeaseHeld, and CheckFailed
    where the teacher is no better than chance on known hard labels.
    """
    progress = progress or Quiet()
    task = open_task(params)
    codec, end = choose_codec(params.codec, task.teacher, progress)
    head = task.head(end)
    _check_codec(params, codec, len(task.source.classes))
    identity = task.identity(
        params.temperatures,
        codec,
        k=params.k if codec == "topk" else None,
        tail=params.tail if codec == "topk" else None,
        head=head,
    )
    session = TeacherSession(task.teacher, params.device, params.batch_size, end)
    run_teacher = in_class_order(session.run, task.order)
    if head is not None:
        run_teacher = checking_head(run_teacher, head, params.teacher)
    progress.say(f"teacher {params.teacher} on {session.record.device} ({session.record.provider})")
    wanted = Plan(
        identity=identity,
        execution=session.record.model_copy(update={"pillow": task.source.pillow}),
        layout=params.layout,
        shards=plan_shards(task.source.files, params.batch_size, params.shard_rows),
    )
    with writing_folder(params.output) as (folder, held):
        return _label(params, folder, wanted, head, task.source, run_teacher, held, progress)


def _label(
    params: InferParams,
    folder: Path,
    wanted: Plan,
    head: Head | None,
    source: Source,
    run_teacher: RunTeacher,
    held: Lease,
    progress: Progress,
) -> InferReport:
    begin = time.perf_counter()
    plan = standing_plan(folder, wanted, params.if_different, params.overwrite)
    finished = {} if plan is None else finished_shards(folder, plan)
    shards = wanted.shards if plan is None else plan.shards
    pending = [shard for shard in shards if shard.name not in finished]
    if plan is not None and pending and not params.allow_mixed:
        check_same_making(folder, plan, wanted)
    if pending:
        _try_teacher(params, wanted, source, run_teacher, progress)
    if plan is None:
        plan = _with_prior(wanted, params, source, run_teacher, progress)
        claim(folder, plan)
    if head is not None:
        publish_head(folder, head)
    rows = sum(shard.rows for shard in pending)
    busy = BusyTime()
    if pending:
        reopen(folder)
        progress.start("infer", rows, "samples")

        def on_batch(rows: int) -> None:
            held.check()
            progress.advance(rows)

        busy = label_shards(plan, params.batch_size, pending, source, run_teacher, folder, on_batch)
    held.check()
    manifest = close(folder, plan)
    seconds = time.perf_counter() - begin
    return _report(params.output, wanted, manifest, rows, len(finished), busy, seconds)


def _try_teacher(
    params: InferParams, plan: Plan, source: Source, run_teacher: RunTeacher, progress: Progress
) -> None:
    """Compare the teacher with the hard labels of the first 1,024 samples, before anything is kept.

    Wrong preprocessing or class order is the commonest fault and shows here. Raises CheckFailed
    where the top-1 is within two standard errors of chance (of few samples: below the middle
    between chance and perfect). Where a bad teacher is allowed one batch is enough: to learn
    whether it runs, and gives what it is said to give.
    """
    wanted_rows = 1 if params.allow_bad_teacher else CHECKED_ROWS
    labelled = correct = seen = 0
    for segments in itertools.chain.from_iterable(
        batches(shard, params.batch_size) for shard in plan.shards
    ):
        samples = source.read(segments)
        hard = samples.hard_labels()
        with naming_the_key(samples):
            rows = shift_output(run_teacher(samples.inputs))
        labelled += int((hard >= 0).sum())
        correct += int((hard == rows.top1).sum())
        seen += len(hard)
        if seen >= wanted_rows:
            break
    if not labelled or params.allow_bad_teacher:
        return
    said = f"the teacher's top-1 is right for {correct / labelled:.1%} of {labelled} samples"
    progress.say(said)
    chance = 1 / len(plan.identity.classes)
    error = math.sqrt(chance * (1 - chance) / labelled)
    if correct / labelled <= chance + min(2 * error, (1 - chance) / 2):
        raise CheckFailed(
            f"{said}, chance is {chance:.1%}; check its preprocessing and class order, or pass "
            "--allow-bad-teacher"
        )


def _with_prior(
    plan: Plan,
    params: InferParams,
    source: Source,
    run_teacher: RunTeacher,
    progress: Progress,
) -> Plan:
    """The plan with the class prior, where its tails shall be spread by one."""
    if plan.identity.tail != "prior":
        return plan
    progress.say("class prior: from samples of the whole source")
    prior = sampled_prior(source, run_teacher, params.batch_size, params.k)
    return plan.model_copy(update={"prior": prior})


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
    folder: Path,
    plan: Plan,
    manifest: Manifest,
    rows: int,
    kept: int,
    busy: BusyTime,
    seconds: float,
) -> InferReport:
    counts = manifest.statistics
    assert plan.execution is not None
    return InferReport(
        output=folder,
        identity_sha256=manifest.identity_sha256,
        rows=manifest.rows,
        rows_written=rows,
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
