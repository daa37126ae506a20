"""The parameters of every stage: one typed section a stage, as params.yaml spells them.

Each description ends with the unit in square brackets where the value has one. The command line
takes its flags, types and help from here, so a parameter is declared once.
"""

from __future__ import annotations

from softlabel.schemas.model import Record
from softlabel.schemas.params.export import ExportParams
from softlabel.schemas.params.infer import InferParams
from softlabel.schemas.params.labels import (
    ConvertParams,
    InspectParams,
    MergeParams,
    VerifyParams,
)
from softlabel.schemas.params.plan import PlanParams
from softlabel.schemas.params.prepare import PrepareParams
from softlabel.schemas.params.seeing import CalibrateParams, EvaluateParams, ReportParams
from softlabel.schemas.params.train import TrainParams

__all__ = [
    "CalibrateParams",
    "ConvertParams",
    "EvaluateParams",
    "ExportParams",
    "InferParams",
    "InspectParams",
    "MergeParams",
    "Params",
    "PlanParams",
    "PrepareParams",
    "ReportParams",
    "TrainParams",
    "VerifyParams",
]


class Params(Record):
    """The whole of params.yaml; every section is optional."""

    prepare: PrepareParams = PrepareParams()
    train_teacher: TrainParams | None = None
    export: ExportParams | None = None
    plan: PlanParams = PlanParams()
    infer: InferParams = InferParams()
    train_student: TrainParams | None = None
    verify: VerifyParams = VerifyParams()
    inspect: InspectParams = InspectParams()
    convert: ConvertParams | None = None
    merge: MergeParams | None = None
    calibrate: CalibrateParams = CalibrateParams()
    evaluate: EvaluateParams = EvaluateParams()
    report: ReportParams = ReportParams()
