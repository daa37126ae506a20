"""The closing lines of every stage, by the kind of its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from softlabel.display import inspecting, label_sets, labelling, students
from softlabel.schemas.model import Record
from softlabel.schemas.reports import (
    CalibrateReport,
    CodecPlanReport,
    ConvertReport,
    EvaluateReport,
    ExportReport,
    InferPreview,
    InferReport,
    InspectReport,
    MergeReport,
    PageReport,
    PrepareReport,
    TrainReport,
    VerifyReport,
)


def summary(report: Record) -> str:
    """The closing lines of a stage, from its report."""
    return _SUMMARIES[type(report)](report)


_SUMMARIES: dict[type[Record], Callable[[Any], str]] = {
    PrepareReport: labelling.prepare,
    ExportReport: labelling.export,
    CodecPlanReport: labelling.plan,
    InferReport: labelling.infer,
    InferPreview: labelling.infer_preview,
    VerifyReport: label_sets.verify,
    InspectReport: inspecting.inspect,
    ConvertReport: label_sets.convert,
    MergeReport: label_sets.merge,
    TrainReport: students.train,
    CalibrateReport: students.calibrate,
    EvaluateReport: students.evaluate,
    PageReport: students.page,
}
