"""Parameters of infer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from softlabel.schemas.augment import check_views
from softlabel.schemas.location import GivenLocation
from softlabel.schemas.model import Record
from softlabel.schemas.params.shared import (
    Augment,
    BatchSize,
    IfDifferent,
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

# Of ONNX Runtime's providers: they need buffers that never move.
CUDA_GRAPHS = ("enable_cuda_graph", "trt_cuda_graph_enable")
InferCodec = Literal["auto", "dense-f32", "dense-f16", "dense-u8", "topk", "factored"]


class InferParams(Record):
    """Run the teacher once over a source and store its logits as a label set."""

    teacher: Teachers = (Path("models/teacher.onnx"),)
    source: GivenLocation = Field(
        Path("data/train"),
        description="source to label: a folder, a file, a quoted pattern of files, or a URL of "
        "those, such as 's3://BUCKET/train-*.parquet'",
    )
    output: Path = Field(Path("labels"), description="label set folder")
    weights: Weights = ()
    mean_of: EnsembleMean = "logits"
    mean_temperature: EnsembleTemperature = None
    codec: InferCodec = Field(
        "auto",
        description="how a row's logits are packed; 'auto' is dense-f16 up to 4,096 classes, "
        "beyond them factored where the teacher's last layer is linear and narrow, else topk",
    )
    layout: Literal["packed", "lists", "sidecar"] = Field(
        "packed",
        description="Parquet with 'packed' columns, or with 'lists' for other tools to query; or "
        "'sidecar': WebDataset tars of labels",
    )
    k: int = Field(64, ge=1, description="classes kept in a row by the codec topk")
    tail: Literal["uniform", "prior"] = Field(
        "uniform",
        description="how the codec topk spreads what it does not keep: evenly, or as the teacher "
        "does on the whole, by a sample of the source",
    )
    features: str | None = Field(
        None,
        description="inner output of the teacher's graph to store too, as float16, or 'auto': the "
        "inputs of its last layer; default: none",
    )
    temperatures: tuple[Positive, ...] = Field(
        (1.0, 2.0, 4.0, 8.0),
        min_length=1,
        description="temperatures whose log-sums and fidelity are recorded",
    )
    batch_size: BatchSize = Field(
        256,
        description="samples in one run of the teacher, or 'auto': the fastest power of two up to "
        "1,024, by trying [rows]",
    )
    shard_rows: int = Field(65536, ge=1, description="samples in one label shard at most [rows]")
    views: Views = 1
    augment: Augment = ()
    seed: ViewSeed = 0
    workers: Workers = None
    device: TeacherDevice = Field(
        "auto", description="where the teacher runs; 'auto' is cuda or cpu and says what it chose"
    )
    provider_options: dict[str, str] = Field(
        default_factory=dict,
        description="options of ONNX Runtime's provider for the device that is told, as it spells "
        'them, such as {"trt_fp16_enable": "1"}',
    )
    engine_cache: Path | None = Field(
        None,
        description="for device 'tensorrt': folder that keeps its engines for the next run; "
        "default: they are built anew",
    )
    partition: str | None = Field(
        None,
        pattern="^[0-9]+/[1-9][0-9]*$",
        description="i/n: label the i-th of n shares of the shards, counted from 0, beside other "
        "runs with other i; the last to end completes the set; default: all of them",
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="label the first samples only, for a try: the set is marked as partial; "
        "default: all [rows]",
    )
    on_bad_sample: OnBadSample = Field(
        "stop",
        description="when a picture cannot be used (damaged, huge, empty, of a wrong kind or "
        "size): stop, or 'skip' it: leave it out and list it in rejects.jsonl",
    )
    dry_run: bool = Field(False, description="say what would be done, and write nothing")
    extend: bool = Field(
        False,
        description="the source has grown since it was labelled: keep the labels in the folder, "
        "and label only the source shards that are new",
    )
    if_different: IfDifferent = Field(
        "error",
        description="when the folder holds labels of another identity: stop, or 'replace' them",
    )
    overwrite: bool = Field(False, description="start afresh even with the same identity")
    allow_mixed: bool = Field(
        False, description="resume although the execution record (device, batch ...) differs"
    )
    allow_bad_teacher: bool = Field(
        False, description="go on although the teacher is no better than chance on the hard labels"
    )
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

    @property
    def share(self) -> tuple[int, int] | None:
        """i and n of `partition`."""
        if self.partition is None:
            return None
        index, _, parts = self.partition.partition("/")
        return int(index), int(parts)

    @model_validator(mode="after")
    def _a_share_is_one_of_its_parts(self) -> InferParams:
        if self.share is None:
            return self
        index, parts = self.share
        if index >= parts:
            raise ValueError(
                f"partition {self.partition} is none of {parts} shares; they are counted from 0, "
                f"the last is {parts - 1}/{parts}"
            )
        if self.overwrite or self.if_different == "replace":
            raise ValueError(
                "partition goes with neither overwrite nor if_different 'replace', which would "
                "take from other shares what they wrote; remove the folder to start afresh"
            )
        if self.extend or self.batch_size == "auto":
            raise ValueError(
                "partition goes with neither extend nor batch_size 'auto', which are for one run "
                "to settle; give a number for all shares, and extend with a run alone"
            )
        return self

    @model_validator(mode="after")
    def _extends_what_stands(self) -> InferParams:
        if self.extend and (self.overwrite or self.limit is not None):
            raise ValueError("extend keeps all that stands; leave overwrite and limit out")
        return self

    @model_validator(mode="after")
    def _the_provider_is_told(self) -> InferParams:
        if self.provider_options and self.device == "auto":
            raise ValueError("provider_options are of one device and device is 'auto'; name it")
        replaying = [name for name in CUDA_GRAPHS if self.provider_options.get(name, "0") != "0"]
        if replaying:
            raise ValueError(
                f"provider_options.{replaying[0]} would replay the first batch's memory for every "
                "batch; leave it out"
            )
        if self.engine_cache is not None and self.device != "tensorrt":
            raise ValueError(f"engine_cache is of device 'tensorrt', and device is {self.device!r}")
        if self.batch_size == "auto" and self.device == "tensorrt":
            raise ValueError(
                "batch_size 'auto' would build an engine for every size with device 'tensorrt'; "
                "give a number"
            )
        return self

    @model_validator(mode="after")
    def _the_mean_is_of_these_teachers(self) -> InferParams:
        check_ensemble(self.teacher, self.weights, self.mean_of, self.mean_temperature)
        return self

    @model_validator(mode="after")
    def _views_are_made_by_transforms(self) -> InferParams:
        check_views(self.views, self.augment)
        return self
