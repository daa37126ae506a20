"""train-student: a model from hard labels, stored soft labels, its own predictions or peers'."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import distributed, nn

from softlabel.pipeline.labelset.lease import lease
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.publish import file_sha256, make_folder, publish_bytes, remove_temporaries
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.models import (
    PictureModel,
    build_model,
    count_parameters,
    weights_bytes,
)
from softlabel.pipeline.teachers.sequence_model import SequenceModel, check_said, tensors
from softlabel.pipeline.training.cards import CARD_FILE, ONNX_FILE, TRAIN_FILE, WEIGHTS_FILE
from softlabel.pipeline.training.checkpoints import open_checkpoints
from softlabel.pipeline.training.crew import Crew
from softlabel.pipeline.training.curves import curves, no_curves
from softlabel.pipeline.training.distillation import soft_term
from softlabel.pipeline.training.ensemble import LabelEnsemble
from softlabel.pipeline.training.fabric import device_name, launch_fabric, own_fabric
from softlabel.pipeline.training.hints import HintedModel
from softlabel.pipeline.training.inputs import TrainingInputs, open_inputs
from softlabel.pipeline.training.members import (
    Member,
    begin_together,
    course_sha256,
    end_together,
    exchange_of,
    train_in_turn,
)
from softlabel.pipeline.training.memory import MEMORY_FOLDER, LabelMemory, memory_identity
from softlabel.pipeline.training.optimizing import make_optimizer
from softlabel.pipeline.training.positions import speaking_of
from softlabel.pipeline.training.shares import Share
from softlabel.pipeline.training.state import Generators
from softlabel.pipeline.training.stepwise import begin_stepwise, train_stepwise
from softlabel.pipeline.training.student import student_onnx
from softlabel.schemas.errors import EnvironmentFault, ParameterError
from softlabel.schemas.labelset import sha256_of
from softlabel.schemas.model import report_json
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports import TrainReport
from softlabel.schemas.reports.training import EpochRecord, StudentCard
from softlabel.schemas.teacher import Preprocess

PARITY_ROWS = 16


def run(params: TrainParams, progress: Progress | None = None) -> TrainReport:
    """Train one model, or several that teach each other; publish weights, report and, last, card.

    A run that was stopped goes on from its last checkpoints. Under torchrun every rank calls this,
    and the first writes. Raises ParameterError, DataError, IdentityError, EnvironmentFault,
    LeaseHeld.
    """
    begin = time.perf_counter()
    progress = progress or Quiet()
    inputs = open_inputs(params)
    crew = _crew(params)
    students = [_student(own, inputs) for own in _of_each_member(params)]
    shares = _shares(params, inputs)
    with contextlib.ExitStack() as held:
        members = []
        for number, (student, (share, samples)) in enumerate(zip(students, shares, strict=True)):
            folder, own = _folder(student.params), crew.trains(number)
            make_folder(folder)
            if student.fabric.is_global_zero and own:
                held.enter_context(lease(folder))
                remove_temporaries(folder)
            members.append(_member(student, inputs, folder, share, samples, own=own))
        histories = _train(members, inputs, crew, progress)
        seconds = time.perf_counter() - begin
        reports = crew.of_all(
            [
                _publish(member, inputs, histories[member.folder], seconds) if member.own else None
                for member in members
            ]
        )
        # All results stand.
        end_together(members)
    first, *others = (report for report in reports if report is not None)
    return first.model_copy(update={"peers": tuple(others)})


def _crew(params: TrainParams) -> Crew:
    """Under torchrun ranks with members of their own; else, and with a single one, alone."""
    if params.targets != "peers" or not distributed.is_torchelastic_launched():
        return Crew()
    crew = Crew(launch_fabric("cpu", "32-true"))
    if crew.ranks > params.members:
        raise ParameterError(
            f"train: torchrun started {crew.ranks} ranks for {params.members} members; pass "
            f"--nproc-per-node {params.members} to torchrun, or more --members"
        )
    return crew


def _of_each_member(params: TrainParams) -> list[TrainParams]:
    """The parameters of each student: they differ in their seeds."""
    seeds = range(params.seed, params.seed + params.members)
    return [params.model_copy(update={"seed": seed}) for seed in seeds]


def _shares(params: TrainParams, inputs: TrainingInputs) -> list[tuple[Share | None, int]]:
    """The part of the samples that each member trains on, None for all, and how many these are."""
    if params.member_data == "same":
        return [(None, inputs.samples.rows)] * params.members
    shares = [Share(number, params.members) for number in range(params.members)]
    return [(share, share.rows(inputs.source)) for share in shares]


def _folder(params: TrainParams) -> Path:
    if params.run:
        return params.output / f"{params.run}-{params.seed}"
    return params.output / f"member-{params.seed}" if params.members > 1 else params.output


class _Student(NamedTuple):
    """A model and what trains it, before anything is written. random: torch's numbers after it."""

    params: TrainParams
    fabric: Fabric
    model: PictureModel | SequenceModel
    trained: nn.Module
    random: Mapping[str, Any]


def _student(params: TrainParams, inputs: TrainingInputs) -> _Student:
    if params.targets == "peers":
        fabric = own_fabric(params.device, params.precision)
    else:
        # The hint alone reaches no layer above its own.
        fabric = launch_fabric(params.device, params.precision, unused=params.hint_epochs > 0)
    if fabric.world_size > 1 and params.targets == "self":
        raise ParameterError(
            "train: targets 'self' are kept by one process; start it without torchrun"
        )
    torch.manual_seed(params.seed)
    model = _model(params, inputs)
    trained: nn.Module = model
    if params.hint_layer is not None and inputs.features is not None:
        trained = HintedModel(model, params.hint_layer, inputs.features, _example(inputs))
    random = Generators().state_dict()
    # Refuses what it does not take before anything is written or removed.
    make_optimizer(params, trained)
    return _Student(params, fabric, model, trained, random)


def _member(
    student: _Student,
    inputs: TrainingInputs,
    folder: Path,
    share: Share | None,
    samples: int,
    *,
    own: bool,
) -> Member:
    params = student.params
    start = params.weights and file_sha256(params.weights)
    more = {"weights file": start, "part": share and share.index}
    writes = student.fabric.is_global_zero and own
    checkpoints = open_checkpoints(folder, params, inputs.identities | more, writes=writes)
    if writes:
        for name in (CARD_FILE, ONNX_FILE):
            (folder / name).unlink(missing_ok=True)
    memory = None
    if exchange_of(params) is not None:
        seen = _preprocess(params, inputs.source)
        identity = memory_identity(course_sha256(checkpoints), inputs.source, seen)
        memory = LabelMemory(folder / MEMORY_FOLDER, identity)
    return Member(
        params,
        folder,
        student.fabric,
        student.model,
        student.trained,
        checkpoints,
        memory,
        student.random,
        share,
        samples,
        own,
    )


def _train(
    members: Sequence[Member], inputs: TrainingInputs, crew: Crew, progress: Progress
) -> dict[Path, list[EpochRecord]]:
    """The epochs of each member that this process trains, by its folder."""
    if crew.rank:
        progress = Quiet()
    stepwise = members[0].params.exchange_steps is not None
    if not (begin_stepwise if stepwise else begin_together)(members, crew):
        progress.say("what was said before is gone: all start afresh")
    params, fabric = members[0].params, members[0].fabric
    if not fabric.is_global_zero:
        progress = Quiet()
    size = count_parameters(members[0].model)
    progress.say(f"{params.model}, {size:,} parameters, {device_name(fabric)}")
    for member in members:
        done = member.checkpoints.steps_done(member.steps)
        if fabric.broadcast(done) != done:
            raise EnvironmentFault(
                f"{member.folder}: rank {fabric.global_rank} does not see the first rank's "
                "checkpoint; give an output on a disk that all ranks share"
            )
        if done:
            total = member.steps * params.epochs
            progress.say(f"{member.folder}: goes on after {done:,} of {total:,} steps")
    own = [member for member in members if member.own]
    progress.start(members[0].folder.name, params.epochs * len(own), "epochs")
    histories: dict[Path, list[EpochRecord]] = {member.folder: [] for member in own}
    with contextlib.ExitStack() as open_curves:
        logs = {
            member.folder: open_curves.enter_context(
                curves(params, member.folder) if fabric.is_global_zero else no_curves()
            )
            for member in own
        }
        train = train_stepwise if stepwise else train_in_turn
        for member, record in train(members, inputs, crew):
            histories[member.folder].append(record)
            logs[member.folder](record)
            progress.advance(1)
    return histories


def _model(params: TrainParams, inputs: TrainingInputs) -> PictureModel | SequenceModel:
    if inputs.inputs is None:
        return _picture_model(params, inputs.source)
    classes = len(inputs.source.classes)
    inner = build_model(params.model, params.model_args, classes, None, params.weights)
    model = SequenceModel(inner, [one.name for one in inputs.inputs])
    check_said(model, params.model, inputs.source.reopen().first(PARITY_ROWS).inputs, classes)
    return model


def _example(inputs: TrainingInputs) -> torch.Tensor | Mapping[str, torch.Tensor]:
    """Samples to try a student on."""
    if inputs.inputs is None:
        return torch.zeros((1, *inputs.source.shape), dtype=torch.uint8)
    return tensors(inputs.source.reopen().first(PARITY_ROWS).inputs)


def _picture_model(params: TrainParams, source: Source) -> PictureModel:
    seen = _preprocess(params, source)
    inner = build_model(
        params.model, params.model_args, len(source.classes), seen.channels, params.weights
    )
    return speaking_of(PictureModel(inner, seen.mean, seen.std), source, params.model)


def _preprocess(params: TrainParams, source: Source) -> Preprocess:
    """How the student sees the pictures of `source`."""
    height, width, channels = source.shape
    mean = params.mean or (0.5,) * channels
    std = params.std or (0.5,) * channels
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ParameterError(
                f"train: {name} has {len(values)} values, the pictures of {params.source} have "
                f"{channels} channels; give one each"
            )
    return Preprocess(
        height=height,
        width=width,
        channels=channels,
        resize=params.resize,
        interpolation=params.interpolation,
        mean=mean,
        std=std,
        layout="NHWC",
        in_graph=True,
    )


def _publish(
    member: Member, inputs: TrainingInputs, history: Sequence[EpochRecord], seconds: float
) -> TrainReport:
    params, folder = member.params, member.folder
    weights = weights_bytes(member.model.model)
    report = _report(member, inputs, history, seconds)
    if not member.fabric.is_global_zero:
        return report
    card = _card(report, params, inputs, weights)
    if params.export_onnx:
        first = inputs.source.reopen().first(PARITY_ROWS).inputs
        publish_bytes(folder / ONNX_FILE, student_onnx(card, member.model, first))
    publish_bytes(folder / WEIGHTS_FILE, weights)
    publish_bytes(folder / TRAIN_FILE, report_json(report))
    publish_bytes(folder / CARD_FILE, report_json(card))
    return report


def _report(
    member: Member, inputs: TrainingInputs, history: Sequence[EpochRecord], seconds: float
) -> TrainReport:
    params, labels = member.params, inputs.labels
    return TrainReport(
        output=member.folder,
        run=params.run or member.folder.name,
        seed=params.seed,
        loss=params.loss,
        parameters=count_parameters(member.model),
        samples=member.samples,
        rejects=inputs.source.rows - inputs.samples.rows,
        steps=member.steps * len(history),
        device=device_name(member.fabric),
        seconds=seconds,
        labels_identity_sha256=labels.identity if labels else None,
        labels_mean=labels.manifest.identity.derived if isinstance(labels, LabelEnsemble) else None,
        settings=params.model_dump(mode="json", include=params.model_fields_set - {"runs"}),
        best_epoch=member.best_epoch,
        information=None if inputs.probe is None else inputs.probe.basis,
        history=tuple(history),
    )


def _card(
    report: TrainReport, params: TrainParams, inputs: TrainingInputs, weights: bytes
) -> StudentCard:
    seen = (
        _preprocess(params, inputs.source).model_dump(exclude={"layout", "in_graph"})
        if inputs.inputs is None
        else {"inputs": inputs.inputs}
    )
    soft = params.loss != "hard"
    return StudentCard(
        run=report.run,
        seed=params.seed,
        model=params.model,
        model_args=params.model_args,
        weights=WEIGHTS_FILE,
        weights_sha256=sha256_of(weights),
        classes=inputs.source.classes,
        **seen,
        grid=inputs.source.grid,
        parameters=report.parameters,
        loss=params.loss,
        targets=params.targets,
        temperature=soft_term(params, 0).temperature if soft and params.loss != "mse" else None,
        soft_weight=params.soft_weight if soft else None,
        label_smoothing=params.label_smoothing,
        labels_identity_sha256=report.labels_identity_sha256,
        labels_mean=report.labels_mean,
        label_bytes=inputs.labels.bytes_per_row if inputs.labels else None,
    )
