"""What each stage returns and `--json` prints: one record a stage."""

from __future__ import annotations

from softlabel.schemas.reports.label_sets import (
    ConvertReport,
    InspectReport,
    MergeReport,
    VerifyReport,
)
from softlabel.schemas.reports.labelling import (
    CodecPlanReport,
    ExportReport,
    InferPreview,
    InferReport,
    PrepareReport,
)
from softlabel.schemas.reports.seeing import (
    CalibrateReport,
    EvaluateReport,
    PageReport,
)
from softlabel.schemas.reports.training import (
    TrainReport,
)

__all__ = [
    "CalibrateReport",
    "CodecPlanReport",
    "ConvertReport",
    "EvaluateReport",
    "ExportReport",
    "InferPreview",
    "InferReport",
    "InspectReport",
    "MergeReport",
    "PageReport",
    "PrepareReport",
    "TrainReport",
    "VerifyReport",
]
