"""report: what came out, as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import softlabel
from softlabel.pipeline.evaluation.label_projection import project_labels
from softlabel.pipeline.evaluation.soft_targets import highest_entropy, profile_labels
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.labelset.portions import RowReader
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.publish import make_folder, publish_bytes, refuse_folder
from softlabel.pipeline.reporting import origin, plots, sections, wording
from softlabel.pipeline.reporting.experiments_view import experiments_alone, experiments_view
from softlabel.pipeline.reporting.gallery import (
    CHOICE_TEMPERATURE,
    Candidate,
    Pair,
    choose_pairs,
    read_pictures,
)
from softlabel.pipeline.reporting.gallery_view import card, live_data, share
from softlabel.pipeline.reporting.information_plot import information_section
from softlabel.pipeline.reporting.material import Material, gather
from softlabel.pipeline.reporting.page import render_page
from softlabel.pipeline.reporting.target_plots import STOPS, stops_of
from softlabel.pipeline.reporting.targets_view import targets_view
from softlabel.pipeline.sources.opening import open_source
from softlabel.schemas.params import ReportParams
from softlabel.schemas.reports import EvaluateReport, PageReport
from softlabel.schemas.reports.figures import Projection
from softlabel.schemas.soft_targets import SoftTargetProfile


def run(params: ReportParams, progress: Progress | None = None) -> PageReport:
    """Write the page `params.output`. Equal inputs give equal bytes.

    Raises what `gather` does, and DataError where `params.source` is not what the label set
    labelled.
    """
    progress = progress or Quiet()
    found = gather(params, progress)
    params, labels = found.params, found.labels
    if labels is not None:
        labels.check_temperature(min(CHOICE_TEMPERATURE, *params.temperatures))
    pairs = () if labels is None else _choose(labels, params.samples, progress)
    profile = None if labels is None else _profile(params, labels, progress)
    teacher = None if labels is None else _project(labels, found.evaluation, progress)
    data, context = _content(found, pairs, profile, teacher)
    page = render_page(context, data)
    refuse_folder(params.output)
    make_folder(params.output.parent)
    publish_bytes(params.output, page)
    return PageReport(
        output=params.output,
        bytes=len(page),
        students=0 if found.evaluation is None else len(found.evaluation.students),
        samples=sum(len(pair.members) for pair in pairs),
        soft_targets=profile,
        projection=teacher,
        experiments=found.experiments,
    )


def _content(
    found: Material,
    pairs: Sequence[Pair],
    profile: SoftTargetProfile | None,
    teacher: Projection | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the page's script reads, and what its template shows."""
    params, labels, evaluation = found.params, found.labels, found.evaluation
    runs = () if evaluation is None else evaluation.runs
    colours = plots.run_colours(
        list(dict.fromkeys([*(r.run for r in runs), *(t.run for t in found.trained)]))
    )
    parts = [
        sections.calibration_section(found.calibration),
        _targets(params, labels, profile),
        sections.projection_section(runs, teacher, found.cards, _features_output(labels)),
        *_of_students(found, colours),
    ]
    context: dict[str, Any] = {"title": params.title, "version": softlabel.__version__}
    if evaluation is None and labels is not None and profile is not None:
        context["reached"], context["worth"] = wording.labels_alone(labels, profile)
    elif evaluation is None:
        context["reached"], context["worth"] = experiments_alone(found.experiments)
    context["experiments"] = experiments_view(found.experiments) if found.experiments else None
    context |= {"colours": colours} | _gallery(params, labels, pairs) | _origin(found)
    live = labels is not None and labels.manifest.identity.k is None
    data: dict[str, Any] = {"plots": {}, "samples": live_data(pairs) if live else []}
    data["targets"] = [] if profile is None else [one.model_dump() for one in stops_of(profile)]
    for specs, shown in parts:
        data["plots"] |= specs
        context |= shown
    data["runs"] = context["curve_runs"]
    data["highest"] = 1.0 if labels is None else highest_entropy(labels.num_classes)
    return data, context


def _of_students(found: Material, colours: Mapping[str, str]) -> list[sections.Section]:
    if found.evaluation is None:
        return [sections.no_students_section()]
    return [
        sections.results_section(found.evaluation, found.cards, colours),
        sections.curves_section(found.trained, colours),
        information_section(found.trained, colours),
        sections.reliability_section(found.evaluation, colours),
        sections.classes_section(found.evaluation, colours),
    ]


def _choose(labels: LabelSet, samples: int, progress: Progress) -> tuple[Pair, ...]:
    progress.start("choose samples", len(labels), "rows")
    return choose_pairs(labels, samples, progress.advance)


def _profile(params: ReportParams, labels: LabelSet, progress: Progress) -> SoftTargetProfile:
    return profile_labels(labels, sorted({*STOPS, *params.temperatures}), progress)


def _project(
    labels: LabelSet, evaluation: EvaluateReport | None, progress: Progress
) -> Projection | None:
    return project_labels(labels, _three(evaluation), progress)


def _features_output(labels: LabelSet | None) -> str | None:
    return None if labels is None else labels.manifest.identity.features_output


def _three(evaluation: EvaluateReport | None) -> tuple[str, ...]:
    """The three classes on which the students' last layers were projected."""
    if evaluation is None:
        return ()
    found = (run.projection.classes for run in evaluation.runs if run.projection is not None)
    return next(found, ())


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


def _origin(found: Material) -> dict[str, Any]:
    params, labels, evaluation = found.params, found.labels, found.evaluation
    return {
        "labels": None if labels is None else origin.label_origin(labels),
        "other_labels": () if labels is None else origin.other_labels(found.cards, labels),
        "commands": origin.commands(params, evaluation, found.cards, found.trained, labels),
        "measured_on": None if evaluation is None else origin.shown_path(evaluation.source),
        "source": None if params.source is None else origin.shown_path(params.source),
    }
