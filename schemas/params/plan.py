"""Parameters of plan."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from softlabel.schemas.augment import check_views
from softlabel.schemas.location import GivenLocation
from softlabel.schemas.model import Record
from softlabel.schemas.params.shared import (
    Augment,
    BatchSize,
    Metrics,
    OnBadSample,
    Positive,
    TeacherDevice,
    Views,
    ViewSeed,
    Workers,
)
from softlabel.schemas.params.teachers import (
    EnsembleMean,
    EnsembleTemperature,
    ForeignClasses,
    ForeignHeight,
    ForeignInterpolation,
    ForeignKind,
    ForeignLayout,
    ForeignMean,
    ForeignOutput,
    ForeignResize,
    ForeignStd,
    ForeignWidth,
    Teachers,
    Weights,
    check_ensemble,
)


class PlanParams(Record):
    """Try the codecs on a sample of the source before the long run: bytes, fidelity and time."""

    teacher: Teachers = (Path("models/teacher.onnx"),)
    source: GivenLocation = Field(Path("data/train"), description="source that shall be labelled")
    weights: Weights = ()
    mean_of: EnsembleMean = "logits"
    mean_temperature: EnsembleTemperature = None
    rows: int = Field(
        4096, ge=1, description="samples run through the teacher, spread over the source [rows]"
    )
    temperatures: tuple[Positive, ...] = Field(
        (1.0, 2.0, 4.0, 8.0),
        min_length=1,
        description="temperatures at which the stored labels shall be true",
    )
    max_kl: Positive = Field(
        1e-3,
        description="largest mean KL to the float32 logits, at every temperature, of the codec "
        "that is recommended [nats]",
    )
    features: str | None = Field(
        None,
        description="inner output of the teacher that shall be stored too, or 'auto', as 'infer' "
        "takes it; default: none",
    )
    batch_size: BatchSize = Field(
        256, description="samples in one run of the teacher, or 'auto', as 'infer' takes it [rows]"
    )
    shard_rows: int = Field(65536, ge=1, description="samples in one label shard at most [rows]")
    views: Views = 1
    augment: Augment = ()
    seed: ViewSeed = 0
    workers: Workers = None
    device: TeacherDevice = Field(
        "auto", description="where the teacher runs; 'auto' is cuda or cpu and says what it chose"
    )
    on_bad_sample: OnBadSample = Field(
        "stop",
        description="when a picture of the sample cannot be used: stop, or 'skip' it, as 'infer' "
        "will do too",
    )
    metrics: Metrics = None
    classes: ForeignClasses = ()
    output_name: ForeignOutput = None
    output_kind: ForeignKind = None
    input_layout: ForeignLayout = None
    mean: ForeignMean = ()
    std: ForeignStd = ()
    height: ForeignHeight = None
    width: ForeignWidth = None
    resize: ForeignResize = None
    interpolation: ForeignInterpolation = None

    @model_validator(mode="after")
    def _the_mean_is_of_these_teachers(self) -> PlanParams:
        check_ensemble(self.teacher, self.weights, self.mean_of, self.mean_temperature)
        return self

    @model_validator(mode="after")
    def _views_are_made_by_transforms(self) -> PlanParams:
        check_views(self.views, self.augment)
        return self
