"""report: what came out, as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

import softlabel
from softlabel.pipeline.evaluation.soft_targets import highest_entropy, profile_labels
from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.labelset.portions import RowReader
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.publish import make_folder, publish_bytes, refuse_folder
from softlabel.pipeline.reporting import origin, plots, reliability, wording
from softlabel.pipeline.reporting.gallery import (
    CHOICE_TEMPERATURE,
    Candidate,
    Pair,
    choose_pairs,
    read_pictures,
)
from softlabel.pipeline.reporting.gallery_view import card, live_data, share
from softlabel.pipeline.reporting.page import render_page
from softlabel.pipeline.reporting.target_plots import STOPS, stops_of
from softlabel.pipeline.reporting.targets_view import targets_view
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.training.cards import TRAIN_FILE, find_cards, read_card
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.model import Record
from softlabel.schemas.params import ReportParams
from softlabel.schemas.reports import (
    CalibrateReport,
    EvaluateReport,
    PageReport,
    RunMetrics,
    StudentCard,
    StudentMetrics,
    TrainReport,
)
from softlabel.schemas.soft_targets import SoftTargetProfile

EVALUATE_FILE = "evaluate.json"
# Field of EpochRecord, heading, how to read it, format of its values in d3's words.
CURVES = (
    (
        "loss",
        "Training loss",
        "What the optimiser lowers; losses of different recipes have different scales, so compare "
        "shapes, not heights.",
        ".3~g",
    ),
    (
        "validation_accuracy",
        "Validation accuracy",
        "The share of validation samples got right after each epoch; higher is better.",
        ".1~%",
    ),
    (
        "validation_nll",
        "Validation NLL",
        "How surprised the model is by the true class, in nats; it rises where accuracy hides "
        "overconfidence, and lower is better.",
        ".3~g",
    ),
)

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
    colours = plots.run_colours(
        list(dict.fromkeys([*(r.run for r in evaluation.runs), *(t.run for t in trained)]))
    )
    parts = (
        _results(evaluation, students, colours),
        _curves(trained, colours),
        _reliability(evaluation, colours),
        _calibrated(calibration),
        _targets(params, labels, profile),
    )
    context = {"title": params.title, "version": softlabel.__version__, "colours": colours}
    context |= _gallery(params, labels, pairs) | _origin(params, evaluation, students, labels)
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


def _results(
    evaluation: EvaluateReport, cards: Sequence[StudentCard], colours: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    known = {card.run: card for card in cards}
    reached, worth = wording.result(evaluation, known)
    described = "Accuracy of every student as a dot and of each run as a diamond: " + "; ".join(
        f"{run.run} {wording.percent(run.accuracy)}" for run in evaluation.runs
    )
    context = {
        "reached": reached,
        "worth": worth,
        "sampling_error": 100 * wording.sampling_error(evaluation),
        "rows": evaluation.rows,
        "runs": [_run_row(run, evaluation, known) for run in evaluation.runs],
    }
    return {"seeds": plots.seeds_spec(evaluation, colours, described)}, context


def _run_row(
    run: RunMetrics, evaluation: EvaluateReport, cards: Mapping[str, StudentCard]
) -> dict[str, Any]:
    runs = evaluation.runs
    sizes = sorted({s.parameters for s in evaluation.students if s.run == run.run})
    return {
        "name": run.run,
        "trained": wording.how_trained(cards[run.run]) if run.run in cards else "",
        "seeds": len(run.seeds),
        "parameters": " or ".join(f"{size:,}" for size in sizes),
        "accuracy": (run.accuracy.mean, wording.percent(run.accuracy)),
        "nll": (run.nll.mean, wording.plain(run.nll)),
        "ece": (run.ece.mean, wording.percent(run.ece, 2)),
        "best": {
            "accuracy": run.accuracy.mean == max(other.accuracy.mean for other in runs),
            "nll": run.nll.mean == min(other.nll.mean for other in runs),
            "ece": run.ece.mean == min(other.ece.mean for other in runs),
        },
    }


def _curves(
    trained: Sequence[TrainReport], colours: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    specs, shown = {}, []
    for metric, heading, reading, number in CURVES:
        rows = plots.curve_rows(trained, metric)
        if not rows:
            continue
        last = {row["run"]: row["mean"] for row in rows}
        values = "; ".join(f"{run} {value:.4g}" for run, value in last.items())
        description = f"{heading} over the epochs; at the end: {values}"
        specs[f"curve-{metric}"] = plots.curve_spec(rows, colours, heading, number, description)
        shown.append({"id": f"curve-{metric}", "heading": heading, "reading": reading})
    runs = list(dict.fromkeys(student.run for student in trained))
    return specs, {"curves": shown, "curve_runs": runs}


def _reliability(
    evaluation: EvaluateReport, colours: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    specs: dict[str, Any] = {}
    shown = []
    for index, run in enumerate(evaluation.runs):
        students = [student for student in evaluation.students if student.run == run.run]
        bins = reliability.pooled_bins(students)
        figure = reliability.Diagram(
            f"reliability-{index}", run.run, run.run, colours[run.run], bins
        )
        ece = wording.percent(run.ece, 2)
        specs |= figure.specs(ece)
        shown.append({"figure": figure, "ece": ece, "seeds": len(students)})
    return specs, {"reliability": shown, "few_rows": reliability.FEW_ROWS}


def _calibrated(
    calibration: CalibrateReport | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The teacher's reliability at T = 1 and at the fitted temperature."""
    if calibration is None:
        return {}, {"calibration": None}
    at = f"at T = {calibration.temperature:.2f}"
    parts = (
        ("before", "as it is", calibration.before, calibration.bins_before),
        ("after", at, calibration.after, calibration.bins_after),
    )
    specs: dict[str, Any] = {}
    shown = []
    for part, way, figures, bins in parts:
        figure = reliability.Diagram(
            f"teacher-{part}", f"The teacher {way}", f"the teacher {way}", "var(--accent)", bins
        )
        ece = f"{100 * figures.ece:.2f}\u00a0%"
        specs |= figure.specs(ece)
        shown.append({"figure": figure, "ece": ece, "seeds": 1})
    return specs, {"calibration": calibration, "calibrated": shown}


def _targets(
    params: ReportParams, labels: LabelSet | None, profile: SoftTargetProfile | None
) -> tuple[dict[str, Any], dict[str, Any]]:
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
    labels: LabelSet | None,
) -> dict[str, Any]:
    return {
        "labels": None if labels is None else origin.label_origin(labels),
        "other_labels": () if labels is None else origin.other_labels(cards, labels),
        "commands": origin.commands(params, evaluation, cards, labels),
        "measured_on": origin.shown_path(evaluation.source),
        "source": None if params.source is None else origin.shown_path(params.source),
    }
