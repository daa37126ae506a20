"""infer: the teacher over a source, once, into a label set."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

from softlabel.pipeline.classes import class_map, read_class_names
from softlabel.pipeline.labelset_folder import close, finished_shards, reopen, settle_plan
from softlabel.pipeline.lease import lease
from softlabel.pipeline.plan import plan_shards
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.runner import BusyTime, label_shards
from softlabel.pipeline.session import TeacherSession, in_class_order
from softlabel.pipeline.sources.parquet import ParquetSource
from softlabel.pipeline.teacher import Teacher, open_teacher
from softlabel.schemas.errors import CheckFailed, EnvironmentFault, ParameterError
from softlabel.schemas.labelset import CodecName, Identity, Manifest, Plan
from softlabel.schemas.params import InferParams
from softlabel.schemas.reports import InferReport
from softlabel.schemas.sample import RunTeacher

CHECKED_ROWS = 1024
MOST_DENSE_CLASSES = 4096


def run(params: InferParams, progress: Progress | None = None) -> InferReport:
    """Label every sample of the source, or finish what an earlier run began.

    Raises ParameterError, DataError, IdentityError, EnvironmentFault, LeaseHeld, and CheckFailed
    where the teacher is no better than chance on known hard labels.
    """
    progress = progress or Quiet()
    params = params.model_copy(update={"classes": read_class_names(params.classes)})
    source = ParquetSource(params.source)
    teacher = open_teacher(params.teacher, params, source.shape)
    identity = _identity(params, teacher, source)
    session = TeacherSession(teacher, params.device, params.batch_size)
    run_teacher = in_class_order(session.run, identity.class_map)
    progress.say(f"teacher {params.teacher} on {session.record.device} ({session.record.provider})")
    wanted = Plan(
        identity=identity,
        execution=session.record,
        shards=plan_shards(source.files, params.batch_size, params.shard_rows),
    )
    try:
        params.output.parent.mkdir(parents=True, exist_ok=True)
        with lease(params.output):
            return _label(params, wanted, source, run_teacher, progress)
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename or params.output}: {error.strerror or error}; finished shards are "
            "kept, mend this and run the same command again"
        ) from error


class TeacherCheck:
    """Compares the teacher with the hard labels of the first 1,024 samples that have one.

    Wrong preprocessing or class order is the commonest fault, and shows here at once: CheckFailed
    where the top-1 is within two standard errors of chance, unless that is `allowed`.
    """

    def __init__(self, classes: int, allowed: bool, progress: Progress) -> None:
        self._chance = 1 / classes
        self._allowed = allowed
        self._progress = progress
        self._labelled = 0
        self._correct = 0
        self._decided = False

    def on_batch(self, rows: int, labelled: int, correct: int) -> None:
        """Count a batch, and decide as soon as enough are counted."""
        self._progress.advance(rows)
        if not self._decided:
            self._labelled += labelled
            self._correct += correct
            if self._labelled >= CHECKED_ROWS:
                self.decide()

    def decide(self) -> None:
        """Say how good the teacher is, once; raise where it is no better than chance."""
        if self._decided or not self._labelled:
            return
        self._decided = True
        accuracy = self._correct / self._labelled
        seen = f"the teacher's top-1 is right for {accuracy:.1%} of {self._labelled} samples"
        self._progress.say(seen)
        error = math.sqrt(self._chance * (1 - self._chance) / self._labelled)
        if accuracy <= self._chance + 2 * error and not self._allowed:
            raise CheckFailed(
                f"{seen}, chance is {self._chance:.1%}; check its preprocessing and class order, "
                "or pass --allow-bad-teacher"
            )


def _label(
    params: InferParams,
    wanted: Plan,
    source: ParquetSource,
    run_teacher: RunTeacher,
    progress: Progress,
) -> InferReport:
    begin = time.perf_counter()
    folder = params.output
    plan = settle_plan(folder, wanted, params.if_different, params.overwrite, params.allow_mixed)
    finished = finished_shards(folder, plan)
    pending = [shard for shard in plan.shards if shard.name not in finished]
    rows = sum(shard.rows for shard in pending)
    busy = BusyTime()
    if pending:
        reopen(folder)
        progress.start("infer", rows, "samples")
        check = TeacherCheck(len(plan.identity.classes), params.allow_bad_teacher, progress)
        batching = plan.model_copy(update={"execution": wanted.execution})
        busy = label_shards(batching, pending, source, run_teacher, folder, check.on_batch)
        check.decide()
    manifest = close(folder, plan)
    seconds = time.perf_counter() - begin
    return _report(folder, wanted, manifest, rows, len(finished), busy, seconds)


def _identity(params: InferParams, teacher: Teacher, source: ParquetSource) -> Identity:
    classes = len(source.classes)
    codec: CodecName = (
        params.codec
        if params.codec != "auto"
        else ("dense-f16" if classes <= MOST_DENSE_CLASSES else "topk")
    )
    if codec == "topk" and params.k >= classes:
        raise ParameterError(
            f"infer.k: {params.k} of {classes} classes is not fewer than all; pass a smaller --k "
            "or --codec dense-f16"
        )
    return Identity(
        teacher_sha256=teacher.sha256,
        preprocess=teacher.spec.preprocess,
        classes=source.classes,
        class_map=class_map(
            teacher.spec.classes,
            source.classes,
            (f"teacher {params.teacher}", f"source {params.source}"),
        ),
        output=teacher.spec.output,
        output_kind=teacher.spec.output_kind,
        source=source.files,
        temperatures=params.temperatures,
        codec=codec,
        k=params.k if codec == "topk" else None,
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
