"""report: what came out, as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

import softlabel
from softlabel.pipeline.evaluation.label_projection import project_labels
from softlabel.pipeline.evaluation.soft_targets import highest_entropy, profile_labels
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.labelset.portions import RowReader
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.publish import make_folder, publish_bytes, refuse_folder
from softlabel.pipeline.reporting import origin, plots, sections, wording
from softlabel.pipeline.reporting.gallery import (
    CHOICE_TEMPERATURE,
    Candidate,
    Pair,
    choose_pairs,
    read_pictures,
)
from softlabel.pipeline.reporting.gallery_view import card, live_data, share
from softlabel.pipeline.reporting.information_plot import information_section
from softlabel.pipeline.reporting.page import render_page
from softlabel.pipeline.reporting.target_plots import STOPS, stops_of
from softlabel.pipeline.reporting.targets_view import targets_view
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.training.cards import TRAIN_FILE, find_cards, read_card
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.model import Record
from softlabel.schemas.params import ReportParams
from softlabel.schemas.reports import CalibrateReport, EvaluateReport, PageReport, TrainReport
from softlabel.schemas.reports.seeing import RunMetrics, StudentMetrics
from softlabel.schemas.reports.training import StudentCard
from softlabel.schemas.soft_targets import SoftTargetProfile

EVALUATE_FILE = "evaluate.json"

SomeRecord = TypeVar("SomeRecord", bound=Record)
RunRecord = TypeVar("RunRecord", StudentCard, TrainReport, StudentMetrics, RunMetrics)


def run(params: ReportParams, progress: Progress | None = None) -> PageReport:
    """Write the page `params.output`. Equal inputs give equal bytes.

    Raises ParameterError where a given path does not exist, DataError where a file is damaged or
    `params.source` is not what the label set labelled.
    """
    progress = progress or Quiet()
    evaluation = _read_evaluation(params.evaluation)
    paths = find_cards(params.models)
    students = [_named(read_card(path)) for path in paths]
    trained = [_named(_read(p.parent / TRAIN_FILE, TrainReport, "train-student")) for p in paths]
    labels = None if params.labels is None else open_labelset(params.labels)
    if labels is not None:
        if labels.manifest.identity.positions:
            raise DataError(f"{labels.folder}: holds sequences, which report does not show")
        labels.check_temperature(min(CHOICE_TEMPERATURE, *params.temperatures))
    pairs = () if labels is None else _choose(labels, params.samples, progress)
    profile = None if labels is None else _profile(params, labels, progress)
    calibration = _calibration(params, labels)
    teacher = None if labels is None else project_labels(labels, _three(evaluation))
    colours = plots.run_colours(
        list(dict.fromkeys([*(r.run for r in evaluation.runs), *(t.run for t in trained)]))
    )
    parts = (
        sections.results_section(evaluation, students, colours),
        sections.curves_section(trained, colours),
        information_section(trained, colours),
        sections.reliability_section(evaluation, colours),
        sections.calibration_section(calibration),
        _targets(params, labels, profile),
        sections.classes_section(evaluation, colours),
        sections.projection_section(evaluation, teacher, students),
    )
    context = {"title": params.title, "version": softlabel.__version__, "colours": colours}
    context |= _gallery(params, labels, pairs) | _origin(
        params, evaluation, students, trained, labels
    )
    live = labels is not None and labels.manifest.identity.k is None
    data: dict[str, Any] = {"plots": {}, "samples": live_data(pairs) if live else []}
    data["targets"] = [] if profile is None else [one.model_dump() for one in stops_of(profile)]
    for specs, shown in parts:
        data["plots"] |= specs
        context |= shown
    data["runs"] = context["curve_runs"]
    data["highest"] = 1.0 if labels is None else highest_entropy(labels.num_classes)
    page = render_page(context, data)
    refuse_folder(params.output)
    make_folder(params.output.parent)
    publish_bytes(params.output, page)
    return PageReport(
        output=params.output,
        bytes=len(page),
        students=len(evaluation.students),
        samples=sum(len(pair.members) for pair in pairs),
        soft_targets=profile,
        projection=teacher,
    )


def _read_evaluation(folder: Path) -> EvaluateReport:
    evaluation = _read(folder / EVALUATE_FILE, EvaluateReport, "evaluate")
    if not evaluation.runs or not evaluation.students:
        raise DataError(
            f"{folder / EVALUATE_FILE}: measured no student; run 'softlabel evaluate' again"
        )
    named = {
        field: tuple(map(_named, getattr(evaluation, field))) for field in ("students", "runs")
    }
    return evaluation.model_copy(update=named)


def _named(record: RunRecord) -> RunRecord:
    return record if record.run else record.model_copy(update={"run": wording.UNNAMED})


def _read(path: Path, kind: type[SomeRecord], verb: str) -> SomeRecord:
    if not path.is_file():
        raise ParameterError(f"{path}: no such file; run 'softlabel {verb}' first")
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the whole"
        raise DataError(
            f"{path}: is damaged ({where}: {problem['msg']}); run 'softlabel {verb}' again"
        ) from error


def _choose(labels: LabelSet, samples: int, progress: Progress) -> tuple[Pair, ...]:
    progress.start("choose samples", len(labels), "rows")
    return choose_pairs(labels, samples, progress.advance)


def _profile(params: ReportParams, labels: LabelSet, progress: Progress) -> SoftTargetProfile:
    return profile_labels(labels, sorted({*STOPS, *params.temperatures}), progress)


def _three(evaluation: EvaluateReport) -> tuple[str, ...]:
    """The three classes on which the students' last layers were projected."""
    found = (run.projection.classes for run in evaluation.runs if run.projection is not None)
    return next(found, ())


def _calibration(params: ReportParams, labels: LabelSet | None) -> CalibrateReport | None:
    if params.calibration is None:
        return None
    calibration = _read(params.calibration, CalibrateReport, "calibrate")
    if labels is not None and calibration.teacher_sha256 != labels.manifest.identity.teacher_sha256:
        raise DataError(
            f"{params.calibration}: is of another teacher than that of {labels.folder}; calibrate "
            "labels of this one"
        )
    return calibration


def _targets(
    params: ReportParams, labels: LabelSet | None, profile: SoftTargetProfile | None
) -> sections.Section:
    if labels is None or profile is None:
        return {}, {"targets": None, "labels_classes": 0}
    specs, shown = targets_view(profile, labels.num_classes, params.temperatures)
    return specs, {"targets": shown, "labels_classes": labels.num_classes}


def _gallery(
    params: ReportParams, labels: LabelSet | None, pairs: Sequence[Pair]
) -> dict[str, Any]:
    if labels is None:
        return {"gallery": None, "share": share}
    members = [member for pair in pairs for member in pair.members]
    pictures: Mapping[int, Any] = {}
    identity = labels.manifest.identity
    if params.source is not None and identity.preprocess is not None:
        source = open_source(params.source).fed(identity, f"label set {labels.folder}")
        pictures = read_pictures(labels, source, members)
    shown = []
    for pair in pairs:
        cards = [
            card(
                member,
                labels.classes,
                _soft_targets(params, labels, member),
                pictures.get(member.position),
            )
            for member in pair.members
        ]
        shown.append({"cards": cards, "distance": pair.distance})
    gallery = {
        "pairs": shown,
        "samples": len(members),
        "temperatures": params.temperatures,
        "live": labels.manifest.identity.k is None,
        "kept": labels.manifest.identity.k,
        "tail": labels.manifest.identity.tail,
    }
    return {"gallery": gallery, "share": share}


def _soft_targets(
    params: ReportParams, labels: LabelSet, member: Candidate
) -> dict[float, npt.NDArray[np.float32]]:
    block = next(RowReader(labels).read(member.position, member.position + 1))
    return {T: block.probs(T)[0] for T in params.temperatures}


def _origin(
    params: ReportParams,
    evaluation: EvaluateReport,
    cards: Sequence[StudentCard],
    trained: Sequence[TrainReport],
    labels: LabelSet | None,
) -> dict[str, Any]:
    return {
        "labels": None if labels is None else origin.label_origin(labels),
        "other_labels": () if labels is None else origin.other_labels(cards, labels),
        "commands": origin.commands(params, evaluation, cards, trained, labels),
        "measured_on": origin.shown_path(evaluation.source),
        "source": None if params.source is None else origin.shown_path(params.source),
    }
