"""plan: every codec tried on a sample of the source, before the long run."""

from __future__ import annotations

import json
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.dvc_files import publish_metrics, publish_plot
from softlabel.pipeline.inference.batch_size import session_at
from softlabel.pipeline.inference.codec_choice import choose_inner
from softlabel.pipeline.inference.codec_trial import Losses, Trial, try_packings
from softlabel.pipeline.inference.plan import batches, plan_shards
from softlabel.pipeline.inference.prior import PRIOR_ROWS, TailPrior, sampled
from softlabel.pipeline.inference.runner import naming_the_key, shift_output
from softlabel.pipeline.inference.task import Task, open_task
from softlabel.pipeline.inference.usable import none_usable, read_slots
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.shards.packing import Packing, make_packing
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.ensemble import EnsembleSession, Teachers, named
from softlabel.pipeline.teachers.head import LinearEnd, checking_head, find_head
from softlabel.pipeline.teachers.inner import InnerOutput
from softlabel.pipeline.teachers.providers import Tuning
from softlabel.pipeline.teachers.session import in_class_order
from softlabel.schemas.errors import DataError, EnvironmentFault
from softlabel.schemas.labelset import ExecutionRecord, Identity, Reject, ShardPlan
from softlabel.schemas.model import Record
from softlabel.schemas.params import InferParams, PlanParams
from softlabel.schemas.params.shared import TeacherDevice
from softlabel.schemas.reports import CodecPlanReport
from softlabel.schemas.reports.labelling import CodecTrial, Loss
from softlabel.schemas.sample import RunTeacher, SampleBlock, TeacherOutput

TOPK = (10, 64)
# How much larger a KL must be at another temperature to be worth a line.
GROWN = 2.0


@dataclass
class _Clock:
    """Seconds that reading and the teacher took over the sample; its rows that were left out."""

    read: float = 0.0
    teacher: float = 0.0
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class _World:
    """The opened teacher and source, and what is run of them."""

    source: Source
    sample: ShardPlan
    identity: Identity
    run_teacher: RunTeacher
    record: ExecutionRecord
    head: Head | None


def run(params: PlanParams, progress: Progress | None = None) -> CodecPlanReport:
    """Run the teacher on a sample of the source and measure every codec on what it says.

    Writes nothing but temporary files, and metrics where asked to. Raises ParameterError,
    DataError, EnvironmentFault.
    """
    progress = progress or Quiet()
    notes: list[str] = []
    world = _open(params, notes, progress)
    record = world.record
    progress.say(f"{named(params.teacher)} on {record.device} ({record.provider})")
    packings = _packings(params, world, progress)
    clock = _Clock()
    progress.start("plan", world.sample.rows, "samples")
    try:
        with tempfile.TemporaryDirectory(prefix="softlabel-plan-") as folder:
            outputs = _outputs(params, world, world.sample, progress, clock)
            trials = try_packings(packings, outputs, Path(folder))
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename or tempfile.gettempdir()}: {error.strerror or error}; make room, "
            "set TMPDIR to another folder, or pass fewer --rows"
        ) from error
    tried = []
    for trial in trials:
        if trial.refused is not None:
            notes.append(f"{_name(trial.packing)} is left out: {trial.refused}")
        else:
            tried.append(_measured(params, world, clock, trial))
    report = _report(params, world, clock, tried, [*notes, *_grown(tried)])
    if params.metrics is not None:
        _publish_for_dvc(params.metrics, report)
    return report


def _open(params: PlanParams, notes: list[str], progress: Progress) -> _World:
    task = open_task(params)
    sample = sampled(task.source.files, params.rows, params.views)
    inner = None
    if params.features is not None:
        inner = choose_inner(params.features, None, task.teachers)
    session, end = _session(params, task, inner, notes, progress)
    batch = next(batches(sample, session.record.batch_size, params.views))
    first = read_slots(task.source, batch, params.on_bad_sample).samples
    session, end = _warm(session, end, task, first, params.device, notes)
    features = None if inner is None else (inner.name, session.features_width(task.blank(1)))
    identity = task.identity(params.temperatures, "dense-f32", features=features)
    run_teacher = in_class_order(session.run, task.order)
    return _World(task.source, sample, identity, run_teacher, session.record, task.head(end))


def _session(
    params: PlanParams, task: Task, inner: InnerOutput | None, notes: list[str], progress: Progress
) -> tuple[EnsembleSession, LinearEnd | None]:
    """The teacher, and its last linear layer where codec `factored` may be able to use that."""

    def giving(inner: InnerOutput | None) -> EnsembleSession:
        return session_at(params.batch_size, task, params.device, inner, Tuning(), progress)

    if inner is not None:
        notes.append("factored is left out: it stores features of its own; leave --features out")
        return giving(inner), None
    try:
        end = _linear_end(task.teachers)
        return giving(end.inner), end
    except DataError as error:
        notes.append(_left_out(error, task.teachers))
    return giving(None), None


def _warm(
    session: EnsembleSession,
    end: LinearEnd | None,
    task: Task,
    first: SampleBlock,
    device: TeacherDevice,
    notes: list[str],
) -> tuple[EnsembleSession, LinearEnd | None]:
    """The teacher after its first batch, without the last layer where that is not its own."""
    if end is not None:
        try:
            checking_head(session.run, end.head, task.teachers.first.path)(first.inputs)
        except DataError as error:
            notes.append(_left_out(error, task.teachers))
        else:
            return session, end
        session = EnsembleSession(task.teachers, device, session.record.batch_size)
    session.run(first.inputs)
    return session, None


def _left_out(error: DataError, teachers: Teachers) -> str:
    reason = str(error).removeprefix(f"{teachers.first.path}: ").rpartition(";")[0]
    return f"factored is left out: {reason}"


def _linear_end(teachers: Teachers) -> LinearEnd:
    if teachers.mean is not None:
        raise DataError("an ensemble has no one last layer; take one teacher")
    spec = teachers.first.spec
    return find_head(teachers.first.path, spec.output, len(spec.classes))


def _packings(params: PlanParams, world: _World, progress: Progress) -> list[Packing]:
    identity = world.identity
    packings = [
        make_packing(identity.model_copy(update={"codec": codec}))
        for codec in ("dense-f32", "dense-f16", "dense-u8")
    ]
    for k, prior in _priors(params, world, progress).items():
        topk = identity.model_copy(update={"codec": "topk", "k": k, "tail": "uniform"})
        packings.append(make_packing(topk))
        packings.append(make_packing(topk.model_copy(update={"tail": "prior"}), prior=prior))
    if world.head is not None:
        factored = {"codec": "factored", "head_sha256": world.head.digest()}
        packings.append(make_packing(identity.model_copy(update=factored), head=world.head))
    return packings


def _priors(params: PlanParams, world: _World, progress: Progress) -> dict[int, tuple[float, ...]]:
    """For each k, the class prior that 'infer' would take; one pass of the teacher for all."""
    classes = len(world.identity.classes)
    priors = {k: TailPrior(classes, k) for k in TOPK if k < classes}
    if priors:
        sample = sampled(world.source.files, PRIOR_ROWS, params.views)
        progress.start("class prior", sample.rows, "samples")
        for _, output in _outputs(params, world, sample, progress, _Clock()):
            d = shift_output(output).d
            for prior in priors.values():
                prior.add(d)
    return {k: prior.logits() for k, prior in priors.items()}


def _outputs(
    params: PlanParams, world: _World, sample: ShardPlan, progress: Progress, clock: _Clock
) -> Iterator[tuple[SampleBlock, TeacherOutput]]:
    """The samples that can be used, and what the teacher says of them.

    Raises DataError, naming the key, for NaN, and where none can be used.
    """
    rejects: list[Reject] = []
    for segments in batches(sample, world.record.batch_size, params.views):
        begin = time.perf_counter()
        slots = read_slots(world.source, segments, params.on_bad_sample)
        read = time.perf_counter()
        usable = slots.run(world.run_teacher)
        clock.read += read - begin
        clock.teacher += time.perf_counter() - read
        rejects += slots.left_out()
        clock.left_out += len(slots.rejects)
        if usable is not None:
            samples, output = usable
            with naming_the_key(samples.keys, samples.lengths):
                shift_output(output)
            yield samples, output
        progress.advance(len(slots.samples))
    if clock.left_out == sample.rows:
        raise none_usable(world.source, rejects)


def _measured(params: PlanParams, world: _World, clock: _Clock, trial: Trial) -> CodecTrial:
    identity = trial.packing.identity
    batch_size = world.record.batch_size
    shards = plan_shards(world.source.files, batch_size, params.shard_rows, params.views)
    head = world.head.to_bytes() if world.head and identity.codec == "factored" else b""
    rows = world.source.rows * params.views
    busy = clock.read + clock.teacher + trial.encode_seconds + trial.write_seconds
    kl = {str(T): _loss(values) for T, values in trial.kl.items()}
    return CodecTrial(
        name=_name(trial.packing),
        codec=identity.codec,
        k=identity.k,
        tail=identity.tail,
        bytes_per_sample=trial.bytes_a_row,
        bytes=round(rows * trial.bytes_a_row) + len(shards) * trial.bytes_a_shard + len(head),
        kl=kl,
        tv={str(T): _loss(values) for T, values in trial.tv.items()},
        top1_agreement=trial.agreed / trial.positions,
        samples_per_second=trial.rows / trial.encode_seconds,
        seconds=rows / trial.rows * busy,
        fits=all(loss.mean <= params.max_kl for loss in kl.values()),
    )


def _loss(batches: Sequence[Losses]) -> Loss:
    values = np.concatenate(batches)
    return Loss(mean=float(values.mean()), p99=float(np.quantile(values, 0.99)))


def _name(packing: Packing) -> str:
    identity = packing.identity
    if identity.codec != "topk":
        return identity.codec
    return f"topk {identity.k}" + (", prior" if identity.tail == "prior" else "")


def _grown(trials: Sequence[CodecTrial]) -> list[str]:
    """A line where the KL of a top-k is much larger at another temperature than at the smallest."""
    lines = []
    for trial in trials:
        lowest, *others = sorted(trial.kl, key=float)
        worst = max(others, key=lambda T: trial.kl[T].mean, default=lowest)
        near, far = trial.kl[lowest].mean, trial.kl[worst].mean
        if trial.codec == "topk" and far > GROWN * near:
            lines.append(
                f"top-k is a format for T near 1: the KL of {trial.name} grows from {near:.1e} at "
                f"T={float(lowest):g} to {far:.1e} at T={float(worst):g}"
            )
    return lines[:1]


def _report(
    params: PlanParams,
    world: _World,
    clock: _Clock,
    trials: Sequence[CodecTrial],
    notes: Sequence[str],
) -> CodecPlanReport:
    fitting = [trial for trial in trials if trial.fits]
    best = min(fitting, key=lambda trial: trial.bytes, default=None)
    settled = params.model_copy(update={"batch_size": world.record.batch_size})
    return CodecPlanReport(
        teacher=params.teacher,
        source=params.source,
        views=params.views,
        rows=world.source.rows * params.views,
        sampled=world.sample.rows - clock.left_out,
        classes=len(world.identity.classes),
        temperatures=params.temperatures,
        max_kl=params.max_kl,
        provider=world.record.provider,
        device=world.record.device,
        teacher_samples_per_second=world.sample.rows / clock.teacher,
        trials=tuple(trials),
        recommended=None if best is None else best.name,
        command=None if best is None else _command(settled, best),
        notes=tuple(notes),
    )


def _publish_for_dvc(folder: Path, report: CodecPlanReport) -> None:
    """Each codec's size and losses as metrics, and as a plot; what the clock told is left out."""
    figures: dict[str, object] = {"rows": report.rows, "sampled": report.sampled}
    rows: list[dict[str, object]] = []
    for trial in report.trials:
        told = {
            f"T={float(T):g}": {"kl": kl.mean, "tv": trial.tv[T].mean} for T, kl in trial.kl.items()
        }
        size = {"bytes": trial.bytes, "bytes_per_sample": trial.bytes_per_sample}
        figures[trial.name] = {**size, "top1_agreement": trial.top1_agreement, **told}
        for T, kl in trial.kl.items():
            losses = {"kl": kl.mean, "tv": trial.tv[T].mean}
            rows.append({"codec": trial.name, "T": float(T), **size, **losses})
    publish_metrics(folder / "metrics.json", figures)
    publish_plot(folder / "plots" / "codecs.json", rows)


def _command(params: PlanParams, trial: CodecTrial) -> str:
    """The 'infer' with this codec, and with all that was said of the teacher and the run."""
    flags: dict[str, object] = {"teacher": params.teacher, "source": params.source}
    flags |= {"codec": trial.codec}
    if trial.codec == "topk":
        flags |= {"k": trial.k, "tail": trial.tail}
    for name, value in params:
        field = InferParams.model_fields.get(name)
        if field is not None and name not in flags and value != field.get_default():
            flags[name] = value
    words = ["softlabel", "infer"]
    for name, value in flags.items():
        for item in _words(value):
            words += [f"--{name.replace('_', '-')}", item]
    return shlex.join(words)


def _words(value: object) -> list[str]:
    """What a flag is given, once or several times; a list of records once, as JSON."""
    if not isinstance(value, tuple):
        return [str(value)]
    if all(isinstance(item, Record) for item in value):
        return [json.dumps([item.model_dump(mode="json") for item in value])]
    return [str(item) for item in value]
