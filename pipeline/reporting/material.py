"""What a report is made from: whatever of it is there, opened and checked, and what is not said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from softlabel.pipeline.labelset.labelset import LabelSet, open_labelset
from softlabel.pipeline.progress import Progress
from softlabel.pipeline.reporting import wording
from softlabel.pipeline.reporting.experiments import read_experiments
from softlabel.pipeline.training.cards import TRAIN_FILE, find_cards, read_card
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.model import Record
from softlabel.schemas.params import ReportParams
from softlabel.schemas.reports import CalibrateReport, EvaluateReport, TrainReport
from softlabel.schemas.reports.experiments import Experiment
from softlabel.schemas.reports.seeing import RunMetrics, StudentMetrics
from softlabel.schemas.reports.training import StudentCard

EVALUATE_FILE = "evaluate.json"
LABELS_TITLE = "What the soft labels say"
EXPERIMENTS_TITLE = "What the experiments came to"

SomeRecord = TypeVar("SomeRecord", bound=Record)
RunRecord = TypeVar("RunRecord", StudentCard, TrainReport, StudentMetrics, RunMetrics)


@dataclass(frozen=True, slots=True)
class Material:
    """params: with None for what is not there. cards, trained: of the students, if evaluated."""

    params: ReportParams
    evaluation: EvaluateReport | None
    cards: tuple[StudentCard, ...]
    trained: tuple[TrainReport, ...]
    labels: LabelSet | None
    calibration: CalibrateReport | None
    experiments: tuple[Experiment, ...]


def gather(params: ReportParams, progress: Progress) -> Material:
    """Open what `params` name; what they name by default alone may be missing, which is said.

    Raises ParameterError where a given path does not exist, there are students without an
    evaluation, or nothing is there at all; DataError where a file is damaged, or two do not belong
    together.
    """
    params = _of_what_is_there(params, progress)
    evaluation = None
    cards: tuple[StudentCard, ...] = ()
    trained: tuple[TrainReport, ...] = ()
    if params.evaluation is not None:
        evaluation = _read_evaluation(params.evaluation)
        paths = find_cards(params.models)
        cards = tuple(_named(read_card(path)) for path in paths)
        reports = (_read(path.parent / TRAIN_FILE, TrainReport, "train-student") for path in paths)
        trained = tuple(map(_named, reports))
    labels = None if params.labels is None else open_labelset(params.labels)
    if labels is not None and labels.manifest.identity.positions:
        raise DataError(
            f"{labels.folder}: holds labels of positions (sequences, masks), which report does not "
            "show; 'labels: null' in the report's section of params.yaml leaves them out"
        )
    calibration = _calibration(params, labels)
    experiments = () if params.experiments is None else read_experiments(params.experiments)
    return Material(params, evaluation, cards, trained, labels, calibration, experiments)


def _of_what_is_there(params: ReportParams, progress: Progress) -> ReportParams:
    """The parameters without defaults that name nothing."""
    given = params.model_fields_set
    missing: dict[str, str] = {}
    if params.evaluation is not None and not given & {"evaluation", "models"}:
        file = params.evaluation / EVALUATE_FILE
        if not file.exists() and not any(path.exists() for path in params.models):
            missing["evaluation"] = f"no {file}: the page has no students"
    for name, what in (("labels", "soft labels"), ("source", "pictures")):
        path = getattr(params, name)
        if path is not None and name not in given and not path.exists():
            missing[name] = f"no {path}: the page has no {what}"
    params = params.model_copy(update=dict.fromkeys(missing))
    if params.evaluation is None and params.labels is None and params.experiments is None:
        raise ParameterError(
            "report: neither an evaluation nor a label set is there; run 'softlabel evaluate', or "
            "give --labels FOLDER or --experiments FILE"
        )
    for line in missing.values():
        progress.say(line)
    if params.evaluation is None and "title" not in given:
        title = EXPERIMENTS_TITLE if params.labels is None else LABELS_TITLE
        params = params.model_copy(update={"title": title})
    return params


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
