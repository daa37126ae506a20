"""The report's sections on students and calibration: plots by name, and what the template shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from softlabel.pipeline.reporting import class_plots, plots, reliability, wording
from softlabel.pipeline.reporting.bytes_plot import bytes_rows, bytes_spec
from softlabel.pipeline.reporting.class_plots import SIGNS
from softlabel.schemas.reports import CalibrateReport, EvaluateReport, TrainReport
from softlabel.schemas.reports.figures import Projection
from softlabel.schemas.reports.seeing import RunMetrics
from softlabel.schemas.reports.training import StudentCard

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

# Plots by name, and what the template shows beside them.
Section = tuple[dict[str, plots.Spec], dict[str, Any]]


def results_section(
    evaluation: EvaluateReport, cards: Sequence[StudentCard], colours: Mapping[str, str]
) -> Section:
    """The runs' table, what was reached in words, and every student's accuracy."""
    known = {card.run: card for card in cards}
    reached, worth = wording.result(evaluation, known)
    described = "Accuracy of every student as a dot and of each run as a diamond: " + "; ".join(
        f"{run.run} {wording.percent(run.accuracy)}" for run in evaluation.runs
    )
    context: dict[str, Any] = {
        "reached": reached,
        "worth": worth,
        "sampling_error": 100 * wording.sampling_error(evaluation),
        "rows": evaluation.rows,
        "runs": [_run_row(run, evaluation, known) for run in evaluation.runs],
        "sizes": bytes_rows(evaluation.runs, cards),
    }
    specs = {"seeds": plots.seeds_spec(evaluation, colours, described)}
    if context["sizes"]:
        told = "; ".join(
            f"{row['run']} {row['bytes']:.0f} bytes, {100 * row['accuracy']:.1f} %"
            for row in context["sizes"]
        )
        described = f"Accuracy against bytes a sample: {told}"
        specs["bytes"] = bytes_spec(context["sizes"], colours, described)
    return specs, context


def curves_section(trained: Sequence[TrainReport], colours: Mapping[str, str]) -> Section:
    """Training curves of every run, and the runs of the legend."""
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


def reliability_section(evaluation: EvaluateReport, colours: Mapping[str, str]) -> Section:
    """A reliability diagram a run, its seeds pooled."""
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


def calibration_section(
    calibration: CalibrateReport | None,
) -> Section:
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


def classes_section(evaluation: EvaluateReport, colours: Mapping[str, str]) -> Section:
    """The runs' agreement with the label set by class, or their accuracy without one."""
    rows = class_plots.class_rows(evaluation.runs, evaluation.classes)
    if not rows:
        return {}, {"by_class": None}
    compared = any(run.by_class and run.by_class.agreement for run in evaluation.runs)
    what = "agreement with the teacher" if compared else "accuracy"
    lowest = rows[0]
    told = f"{what} by class; lowest in class {lowest['class']}"
    runs = list(dict.fromkeys(row["run"] for row in rows))
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        table.setdefault(row["class"], {})[row["run"]] = row["share"]
    seen = sum(
        any(run.by_class.rows[index] for run in evaluation.runs if run.by_class)
        for index in range(len(evaluation.classes))
    )
    shown = {"compared": compared, "runs": runs, "table": table, "seen": seen}
    spec = class_plots.class_spec(rows, colours, what, told)
    return {"by-class": spec}, {"by_class": shown}


def no_students_section() -> Section:
    """What the template shows where nothing but a label set is there."""
    nothing: dict[str, Any] = dict.fromkeys(("runs", "curves", "curve_runs", "reliability"), ())
    few = {"few_rows": reliability.FEW_ROWS}
    return {}, nothing | few | {"information": None, "by_class": None}


def projection_section(
    runs: Sequence[RunMetrics],
    teacher: Projection | None,
    cards: Sequence[StudentCard],
    output: str | None = None,
) -> Section:
    """Three classes on the plane of their templates: a panel a run, and one of the teacher.

    All panels are of the same three classes. output: the inner output of the teacher's graph whose
    values its features are, where they are not the inputs of a stored head.
    """
    ways = {card.run: wording.how_trained(card) for card in cards}
    found: list[tuple[str, str, Projection | None]] = [("The teacher", "", teacher)]
    found += [(run.run, ways.get(run.run, ""), run.projection) for run in runs]
    three = next((one.classes for _, _, one in reversed(found) if one is not None), None)
    specs: dict[str, Any] = {}
    panels: list[dict[str, Any]] = []
    for title, way, projection in found:
        if projection is None or projection.classes != three:
            continue
        name = f"projection-{len(panels)}"
        what = "Last layer" if projection.through == "templates" else "Stored features"
        told = f"{what} of {title}: samples of {', '.join(projection.classes)}"
        if projection.spread is not None:
            told += f"; spread within a class {projection.spread:.2f}"
        specs[name] = class_plots.projection_spec(projection, told)
        panels.append(
            {"id": name, "title": title, "what": what, "way": way, "projection": projection}
        )
    shown = {"projections": panels, "three_colours": plots.COLOURS[:3], "signs": SIGNS}
    templates = any(panel["projection"].through == "templates" for panel in panels)
    return specs, shown | {"on_templates": templates, "features_output": output}


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
