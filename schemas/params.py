"""The parameters of every stage: one typed section a stage, as params.yaml spells them.

Each description ends with the unit in square brackets where the value has one. The command line
takes its flags, types and help from here, so a parameter is declared once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from softlabel.schemas.model import Record

Device = Literal["auto", "cpu", "cuda"]
IfDifferent = Literal["error", "replace"]
Positive = Annotated[float, Field(gt=0)]

DIGITS_CLASSES = tuple("0123456789")


class PrepareParams(Record):
    """Write raw data as a source: Parquet shards with keys, pictures and hard labels."""

    format: Literal["digits", "idx"] = Field(
        "digits",
        description="raw data: 'digits' (scikit-learn's 1,797 scans) or 'idx' (MNIST-style files)",
    )
    path: Path | None = Field(
        None, description="folder of the IDX files, plain or .gz; unused for 'digits'"
    )
    output: Path = Field(
        Path("data"), description="folder that receives train/, validation/ and test/"
    )
    classes: tuple[str, ...] = Field(
        (), description="class names in label order; default: the label numbers as text"
    )
    validation_rows: int = Field(
        0, ge=0, description="samples taken from the training part for validation/ [rows]"
    )
    test_rows: int = Field(
        500, ge=1, description="samples put into test/ (digits only; IDX has its own) [rows]"
    )
    shard_rows: int = Field(8192, ge=1, description="samples in one source shard [rows]")
    seed: int = Field(0, ge=0, description="seed of the split")


class TrainParams(Record):
    """Train a model from hard labels or from stored soft labels."""

    model: str = Field(
        description="model factory: package.module:function, timm:NAME or torchvision:NAME"
    )
    model_args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the factory (num_classes is given)"
    )
    source: Path = Field(Path("data/train"), description="source to train on")
    validation: Path | None = Field(
        None, description="source whose accuracy and NLL are taken after every epoch"
    )
    loss: Literal["hard", "kd", "dkd", "dist", "mse", "reverse-kl", "js"] = Field(
        "hard",
        description="'hard' labels alone, or mixed with stored soft labels: 'kd' cross-entropy, "
        "'dkd' decoupled, 'dist' correlations, 'mse' of centred logits, 'reverse-kl', "
        "'js' Jensen-Shannon",
    )
    labels: Path | None = Field(None, description="label set folder, for every loss but 'hard'")
    soft_weight: float = Field(
        0.9, ge=0, le=1, description="weight a of the soft term: (1-a) H(y',s) + a T^2 H(t_T,s_T)"
    )
    temperature: Positive = Field(
        4.0, description="T, divides teacher's and student's logits in the soft term"
    )
    soft_weight_end: float | None = Field(
        None, ge=0, le=1, description="soft weight of the last epoch; default: it stays"
    )
    temperature_end: Positive | None = Field(
        None, description="temperature of the last epoch; default: it stays"
    )
    soft_schedule: Literal["linear", "cosine"] = Field(
        "linear", description="how soft weight and temperature go from first to last epoch"
    )
    standardise: bool = Field(
        False, description="compare logits by their z-scores in the soft term; T divides those"
    )
    target_weight: float = Field(
        1.0, ge=0, description="weight of the target's part in the loss 'dkd'"
    )
    other_weight: float = Field(
        8.0, ge=0, description="weight of the other classes' part in the loss 'dkd'"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="e of y' = (1-e) y + e/K; touches the hard term only",
    )
    epochs: int = Field(20, ge=1, description="passes over the source [epochs]")
    batch_size: int = Field(128, ge=1, description="samples in one step [rows]")
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="optimiser; 'sgd' has Nesterov momentum 0.9"
    )
    learning_rate: Positive = Field(2e-3, description="highest learning rate [per step]")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay [per step]")
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="learning rate over the steps; 'cosine' ends at 0"
    )
    mean: tuple[float, ...] = Field(
        (), description="per-channel mean of pictures scaled to 0..1; default: 0.5 each"
    )
    std: tuple[Positive, ...] = Field(
        (), description="per-channel deviation of pictures scaled to 0..1; default: 0.5 each"
    )
    shuffle_rows: int = Field(
        65536, ge=1, description="samples held in memory and shuffled together [rows]"
    )
    seed: int = Field(0, ge=0, description="seed of weights and order")
    device: Device = Field("auto", description="where to train; 'auto' says what it chose")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        "32-true", description="arithmetic of the forward pass, in Fabric's words"
    )
    logger: Literal["dvclive", "none"] = Field(
        "dvclive", description="who also writes the curves, beside train.json"
    )
    output: Path = Field(
        Path("models/students"),
        description="folder of the result, or with a run the parent of RUN-SEED/",
    )
    run: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$",
        description="overlay of `runs` to take; the result goes to OUTPUT/RUN-SEED/",
    )
    runs: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="named overlays of this section, chosen by `run`",
        json_schema_extra={"flag": False},
    )

    @model_validator(mode="after")
    def _soft_losses_need_labels(self) -> TrainParams:
        if self.loss != "hard" and self.labels is None:
            raise ValueError(f"loss is {self.loss!r} and labels is not set; give --labels FOLDER")
        return self


class ExportParams(Record):
    """Turn a trained PyTorch model into a verified ONNX teacher."""

    model: str = Field(
        description="package.module:function, timm:NAME, torchvision:NAME, or the student.json "
        "that train-student wrote (it names weights, classes and preprocessing too)"
    )
    model_args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the factory (num_classes is given)"
    )
    weights: Path | None = Field(
        None, description="safetensors file, or a checkpoint that torch reads with weights_only"
    )
    classes: tuple[str, ...] = Field(
        (), description="class names in the order of the outputs; or @FILE with a name a line"
    )
    height: int | None = Field(None, gt=0, description="picture height [pixels]")
    width: int | None = Field(None, gt=0, description="picture width [pixels]")
    channels: int | None = Field(None, gt=0, description="picture channels")
    mean: tuple[float, ...] = Field((), description="per-channel mean of pictures scaled to 0..1")
    std: tuple[Positive, ...] = Field(
        (), description="per-channel deviation of pictures scaled to 0..1"
    )
    output: Path = Field(Path("models/teacher.onnx"), description="the ONNX file to publish")
    opset: int = Field(20, ge=18, le=23, description="ONNX operator set")
    samples: Path | None = Field(
        None, description="source whose first rows feed the parity check; default: random pictures"
    )
    tolerance: Positive = Field(
        1e-4,
        description="largest |ONNX Runtime - PyTorch| allowed, times max(1, largest |logit|)",
    )


class InferParams(Record):
    """Run the teacher once over a source and store its logits as a label set."""

    teacher: Path = Field(Path("models/teacher.onnx"), description="the teacher's ONNX file")
    source: Path = Field(Path("data/train"), description="source to label")
    output: Path = Field(Path("labels"), description="label set folder")
    codec: Literal["auto", "dense-f32", "dense-f16", "dense-u8", "topk"] = Field(
        "auto",
        description="how a row's logits are packed; 'auto' is dense-f16 up to 4,096 classes, "
        "beyond them topk",
    )
    k: int = Field(64, ge=1, description="classes kept in a row by the codec topk")
    temperatures: tuple[Positive, ...] = Field(
        (1.0, 2.0, 4.0, 8.0),
        min_length=1,
        description="temperatures whose log-sums and fidelity are recorded",
    )
    batch_size: int = Field(256, ge=1, description="samples in one run of the teacher [rows]")
    shard_rows: int = Field(65536, ge=1, description="samples in one label shard at most [rows]")
    device: Device = Field("auto", description="where the teacher runs; 'auto' says what it chose")
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
    classes: tuple[str, ...] = Field(
        (), description="for an ONNX file without our metadata: class names, or @FILE"
    )
    output_name: str | None = Field(
        None, description="for an ONNX file without our metadata: the output that holds the logits"
    )
    output_kind: Literal["logits"] | None = Field(
        None, description="for an ONNX file without our metadata: what that output is"
    )
    layout: Literal["NHWC", "NCHW"] | None = Field(
        None, description="for an ONNX file without our metadata: order of the input's axes"
    )
    mean: tuple[float, ...] = Field(
        (), description="for an ONNX file without our metadata: per-channel mean, pictures in 0..1"
    )
    std: tuple[Positive, ...] = Field(
        (), description="for an ONNX file without our metadata: per-channel deviation"
    )


class VerifyParams(Record):
    """Find out whether a label set is whole and says what its teacher says."""

    labels: Path = Field(Path("labels"), description="label set folder")
    source: Path | None = Field(
        None, description="its source, to check coverage; default: coverage is not checked"
    )
    teacher: Path | None = Field(
        None, description="its teacher, to run samples again; needs the source too"
    )
    replay: int = Field(256, ge=2, description="samples run through the teacher again [rows]")
    seed: int = Field(0, ge=0, description="seed of the choice of those samples")
    device: Device = Field("auto", description="where the teacher runs; 'auto' says what it chose")
    repair: bool = Field(
        False, description="remove the broken shards, so that 'infer' redoes exactly those"
    )


class InspectParams(Record):
    """Say what a label set holds."""

    labels: Path = Field(Path("labels"), description="label set folder")
    rows: int = Field(0, ge=0, description="rows to show as people read them [rows]")
    top: int = Field(3, ge=1, description="likeliest classes shown in each row")


class EvaluateParams(Record):
    """Measure students on a source: accuracy, NLL and calibration."""

    models: tuple[Path, ...] = Field(
        (Path("models/students"),),
        min_length=1,
        description="student folders, student.json files, or folders of student folders",
    )
    source: Path = Field(Path("data/test"), description="source with hard labels to measure on")
    output: Path = Field(
        Path("reports/evaluate"), description="folder that receives metrics.json and evaluate.json"
    )
    bins: int = Field(15, ge=1, description="equal-width bins of the ECE, each (low, high]")
    batch_size: int = Field(1024, ge=1, description="samples in one forward pass [rows]")
    device: Device = Field("auto", description="where to run; 'auto' says what it chose")


class ReportParams(Record):
    """Make one self-contained HTML page of what came out."""

    evaluation: Path = Field(
        Path("reports/evaluate"), description="folder that 'softlabel evaluate' wrote"
    )
    models: tuple[Path, ...] = Field(
        (Path("models/students"),), description="student folders whose curves are shown"
    )
    labels: Path | None = Field(Path("labels"), description="label set whose rows are shown")
    source: Path | None = Field(
        Path("data/train"), description="source of that label set, for the pictures"
    )
    temperatures: tuple[Positive, ...] = Field(
        (1.0, 2.0, 4.0, 8.0),
        min_length=1,
        description="temperatures of the soft targets shown",
    )
    samples: int = Field(12, ge=1, le=200, description="samples shown with their soft targets")
    title: str = Field("What the soft labels taught", description="title of the page")
    output: Path = Field(Path("reports/report.html"), description="the page to write")


class Params(Record):
    """The whole of params.yaml; every section is optional."""

    prepare: PrepareParams = PrepareParams()
    train_teacher: TrainParams | None = None
    export: ExportParams | None = None
    infer: InferParams = InferParams()
    train_student: TrainParams | None = None
    verify: VerifyParams = VerifyParams()
    inspect: InspectParams = InspectParams()
    evaluate: EvaluateParams = EvaluateParams()
    report: ReportParams = ReportParams()
