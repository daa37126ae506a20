"""The parameters of every stage: one typed section a stage, as params.yaml spells them.

Each description ends with the unit in square brackets where the value has one. The command line
takes its flags, types and help from here, so a parameter is declared once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from softlabel.schemas.augment import Transforms, check_views
from softlabel.schemas.model import Record
from softlabel.schemas.teacher import Interpolation, OutputKind

Device = Literal["auto", "cpu", "cuda"]
TeacherDevice = Literal["auto", "cpu", "cuda", "tensorrt"]
# Of ONNX Runtime's providers: they need buffers that never move.
CUDA_GRAPHS = ("enable_cuda_graph", "trt_cuda_graph_enable")
IfDifferent = Literal["error", "replace"]
OnBadSample = Literal["stop", "skip"]
InferCodec = Literal["auto", "dense-f32", "dense-f16", "dense-u8", "topk", "factored"]
MeanOf = Literal["logits", "probs"]
Positive = Annotated[float, Field(gt=0)]


def _several(value: object) -> object:
    """A list of the one path that was given."""
    return (value,) if isinstance(value, str | Path) else value


def _check_mean(
    members: int, kind: str, weights: Sequence[float], mean: MeanOf, temperature: float | None
) -> None:
    if weights and len(weights) != members:
        raise ValueError(f"weights are {len(weights)} for {members} {kind}; give one each")
    if mean == "probs" and temperature is None:
        raise ValueError("mean 'probs' needs the temperature of the probabilities; give one")
    if mean == "logits" and temperature is not None:
        raise ValueError("temperature is of mean 'probs'; leave it out for mean 'logits'")


BatchSize = Annotated[int, Field(ge=1)] | Literal["auto"]
Paths = Annotated[
    tuple[Path, ...], BeforeValidator(_several, json_schema_input_type=Path | tuple[Path, ...])
]
Teachers = Annotated[
    Paths,
    Field(
        min_length=1,
        description="the teacher's ONNX file; given several times, an ensemble: the mean of what "
        "they say, their classes mapped by name to the first one's",
    ),
]
Weights = Annotated[
    tuple[Positive, ...],
    Field(description="weight of each teacher of an ensemble, in their order; default: all alike"),
]
EnsembleMean = Annotated[
    MeanOf,
    Field(
        description="what is averaged over an ensemble: raw logits, or probabilities at a "
        "temperature"
    ),
]
EnsembleTemperature = Annotated[
    Positive | None,
    Field(description="for mean_of 'probs': T of the probabilities that are averaged"),
]

ForeignClasses = Annotated[
    tuple[str, ...],
    Field(description="for an ONNX file without our metadata: class names, or @FILE"),
]
ForeignOutput = Annotated[
    str | None,
    Field(description="for an ONNX file without our metadata: the output that holds the logits"),
]
ForeignKind = Annotated[
    OutputKind | None,
    Field(description="for an ONNX file without our metadata: what that output is"),
]
ForeignLayout = Annotated[
    Literal["NHWC", "NCHW"] | None,
    Field(description="for an ONNX file without our metadata: order of the input's axes"),
]
ForeignMean = Annotated[
    tuple[float, ...],
    Field(description="for an ONNX file without our metadata: per-channel mean, pictures in 0..1"),
]
ForeignStd = Annotated[
    tuple[Positive, ...],
    Field(description="for an ONNX file without our metadata: per-channel deviation"),
]

ForeignHeight = Annotated[
    int | None,
    Field(
        gt=0,
        description="for an ONNX file without our metadata that leaves its picture height open "
        "[pixels]",
    ),
]
ForeignWidth = Annotated[
    int | None,
    Field(gt=0, description="the same for the picture width [pixels]"),
]
ForeignResize = Annotated[
    int | None,
    Field(
        gt=0,
        description="for an ONNX file without our metadata: shorter side that encoded pictures "
        "are scaled to before the centre is cropped; needs --interpolation [pixels]",
    ),
]
ForeignInterpolation = Annotated[
    Interpolation | None,
    Field(
        description="for an ONNX file without our metadata: how encoded pictures are scaled; "
        "default: they have the teacher's size already"
    ),
]
Workers = Annotated[
    int | None,
    Field(
        ge=0,
        description="threads that decode pictures, which changes no label; default: as many as "
        "processors [threads]",
    ),
]
Views = Annotated[
    int,
    Field(
        ge=1,
        le=65536,
        description="augmented versions of each sample that are labelled, a row each; more than "
        "one need --augment",
    ),
]
Augment = Annotated[
    Transforms,
    Field(
        description="what makes a view of a picture: torchvision transforms by name, in their "
        "order, such as ["
        '{"name": "random_resized_crop", "scale": [0.25, 1]}, "horizontal_flip"]',
    ),
]
ViewSeed = Annotated[int, Field(ge=0, description="seed of the views; of no use without --augment")]
Resize = Annotated[
    int | None,
    Field(
        gt=0,
        description="shorter side that encoded pictures are scaled to before the centre is "
        "cropped; default: they are scaled to height x width whatever their shape [pixels]",
    ),
]
Scaling = Annotated[
    Interpolation | None,
    Field(description="how encoded pictures are scaled; default: not, they have the size already"),
]


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
    """Train a model from hard labels, stored soft labels, its own predictions or its peers'."""

    model: str = Field(
        description="model factory: package.module:function, timm:NAME or torchvision:NAME"
    )
    model_args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the factory (num_classes is given)"
    )
    weights: Path | None = Field(
        None,
        description="weights to start from, a safetensors file or a checkpoint of tensors alone; "
        "for timm:NAME its pretrained weights too, whose head and first layer are fitted",
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
    targets: Literal["stored", "self", "peers"] = Field(
        "stored",
        description="where soft targets come from: a 'stored' label set; 'self', this student in "
        "the epoch before (PS-KD: T is 1, and the soft weight rises in equal steps to "
        "`soft_weight` in the last epoch); 'peers', the mean of the other members (codistillation)",
    )
    labels: Path | None = Field(
        None,
        description="label set folder, for every loss but 'hard'; with targets 'self' what the "
        "first epoch learns from, by default the hard labels",
    )
    members: int = Field(
        1, ge=1, description="students that are trained in turn, with seeds from `seed` on"
    )
    burn_in: int = Field(
        1, ge=1, description="of targets 'peers': first epochs, without a teacher [epochs]"
    )
    exchange_epochs: int = Field(
        1,
        ge=1,
        description="of targets 'peers': a member publishes its predictions after every so many "
        "epochs, so they grow as old as that [epochs]",
    )
    soft_weight: float = Field(
        0.9, ge=0, le=1, description="weight a of the soft term: (1-a) H(y',s) + a T^2 H(t_T,s_T)"
    )
    temperature: Positive = Field(
        4.0, description="T, divides teacher's and student's logits in the soft term"
    )
    tail: Literal["bucket", "spread"] = Field(
        "bucket",
        description="of topk labels with loss 'kd': the classes that were left out as one "
        "'any other', or spread over all as the label set says",
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
    calibration: Path | None = Field(
        None,
        description="calibration.json of the labels' teacher: its T divides the teacher's logits, "
        "beside `temperature`",
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
    hint_layer: str | None = Field(
        None,
        description="layer of the student that learns the stored features (FitNets), by its path "
        "in the model, as 'layer3' or 'blocks.5'; default: no hints",
    )
    hint_weight: float = Field(
        0.0, ge=0, description="weight of the hint's term, beside hard and soft ones"
    )
    hint_epochs: int = Field(
        0, ge=0, description="first epochs in which the hint alone is minimised [epochs]"
    )
    member_data: Literal["same", "disjoint"] = Field(
        "same",
        description="of targets 'peers': each member trains on all samples, or on a part of its "
        "own, chosen by the keys' hashes",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="e of y' = (1-e) y + e/K; touches the hard term only",
    )
    epochs: int = Field(20, ge=1, description="passes over the source [epochs]")
    batch_size: int = Field(
        128, ge=1, description="samples in one step, of all ranks together under torchrun [rows]"
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="parts that a batch is cut into, for less memory: their gradients make one "
        "step (what looks across a batch, as batch normalisation and loss 'dist' do, sees a part)",
    )
    optimizer: str = Field(
        "adamw",
        description="optimiser: a class of torch.optim in small letters; 'sgd' has Nesterov "
        "momentum 0.9",
    )
    optimizer_args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the optimiser"
    )
    learning_rate: Positive = Field(2e-3, description="highest learning rate [per step]")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay [per step]")
    schedule: Literal["constant", "cosine", "linear", "step"] = Field(
        "cosine",
        description="learning rate over the steps; 'cosine' and 'linear' end at 0, 'step' falls "
        "at `step_epochs`",
    )
    warmup_epochs: float = Field(
        0.0, ge=0, description="at first the learning rate rises evenly for so long [epochs]"
    )
    step_epochs: tuple[int, ...] = Field(
        (), description="for schedule 'step': epochs before which the learning rate falls"
    )
    step_factor: float = Field(
        0.1, gt=0, lt=1, description="for schedule 'step': what it is multiplied by then"
    )
    clip_norm: Positive | None = Field(
        None, description="largest norm of a step's gradient; longer ones are cut to it"
    )
    mixup: float = Field(
        0.0,
        ge=0,
        description="alpha of mixup: pictures and targets are mixed with a partner's of the batch "
        "in shares of Beta(alpha, alpha); 0: not",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        description="alpha of CutMix: a box is cut from the partner; with mixup too, one or the "
        "other by chance; 0: not",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights over the steps, which is validated "
        "and published in place of the last weights",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="stop after so many epochs without a lower validation NLL, and publish the "
        "weights of the epoch that had the lowest [epochs]",
    )
    mean: tuple[float, ...] = Field(
        (), description="per-channel mean of pictures scaled to 0..1; default: 0.5 each"
    )
    std: tuple[Positive, ...] = Field(
        (), description="per-channel deviation of pictures scaled to 0..1; default: 0.5 each"
    )
    height: int | None = Field(
        None, gt=0, description="picture height; default: that of the source's first [pixels]"
    )
    width: int | None = Field(
        None, gt=0, description="picture width; default: that of the source's first [pixels]"
    )
    channels: int | None = Field(
        None,
        gt=0,
        description="picture channels; default: those of stored arrays, of encoded pictures the "
        "teacher's, or 3",
    )
    resize: Resize = None
    interpolation: Scaling = None
    shuffle_rows: int = Field(
        65536, ge=1, description="samples held in memory and shuffled together [rows]"
    )
    seed: int = Field(0, ge=0, description="seed of weights and order")
    device: Device = Field("auto", description="where to train; 'auto' says what it chose")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        "32-true", description="arithmetic of the forward pass, in Fabric's words"
    )
    compile: bool = Field(False, description="let torch.compile make the student faster")
    export_onnx: bool = Field(
        False, description="write student.onnx too, compared with PyTorch as 'export' does"
    )
    logger: Literal["dvclive", "tensorboard", "mlflow", "none"] = Field(
        "dvclive", description="who also writes the curves, beside train.json"
    )
    checkpoint_epochs: int = Field(
        1, ge=0, description="write a checkpoint after every so many epochs; 0: never [epochs]"
    )
    checkpoint_steps: int = Field(
        0,
        ge=0,
        description="write one after every so many steps too, within an epoch; 0: never [steps]",
    )
    if_different: IfDifferent = Field(
        "error",
        description="when the checkpoint of a run with other parameters or data stands: stop, or "
        "'replace' it",
    )
    overwrite: bool = Field(
        False, description="start afresh even where a checkpoint of the same run stands"
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
    def _soft_losses_need_targets(self) -> TrainParams:
        if self.targets == "stored":
            if self.loss != "hard" and self.labels is None:
                raise ValueError(
                    f"loss is {self.loss!r} and labels is not set; give --labels FOLDER"
                )
        elif self.loss == "hard":
            raise ValueError(f"targets are {self.targets!r} and loss is 'hard'; give --loss kd")
        elif self.calibration is not None:
            raise ValueError(f"calibration is of stored labels, and targets are {self.targets!r}")
        return self

    @model_validator(mode="after")
    def _hints_have_a_layer_and_a_weight(self) -> TrainParams:
        asked = self.hint_weight > 0 or self.hint_epochs > 0
        if asked != (self.hint_layer is not None):
            raise ValueError(
                "hint_layer goes with hint_weight or hint_epochs above 0; give the layer and one "
                "of these, or none"
            )
        if asked and (self.loss == "hard" or self.targets != "stored"):
            raise ValueError("hint_layer learns from stored labels; give --labels and --loss kd")
        if asked and self.hint_epochs >= self.epochs:
            raise ValueError(
                f"hint_epochs are {self.hint_epochs} of {self.epochs} epochs, so no output would "
                "ever learn"
            )
        if asked and self.compile:
            raise ValueError("hint_layer is heard by a hook, which compile does not take")
        return self

    @model_validator(mode="after")
    def _self_is_the_papers(self) -> TrainParams:
        if self.targets != "self":
            return self
        if self.loss != "kd" or self.standardise:
            raise ValueError("targets 'self' go with loss 'kd' and without standardise")
        told = {"temperature_end", "soft_weight_end"} & self.model_fields_set
        if told or ("temperature" in self.model_fields_set and self.temperature != 1):
            raise ValueError(
                "targets 'self' are taken at T = 1, and soft_weight rises to its value in the last "
                "epoch; leave temperature, temperature_end and soft_weight_end out"
            )
        return self

    @model_validator(mode="after")
    def _peers_are_several(self) -> TrainParams:
        if (self.targets == "peers") != (self.members > 1):
            raise ValueError(
                f"targets are {self.targets!r} and members {self.members}; targets 'peers' need "
                "two members or more, and several members need targets 'peers'"
            )
        if self.targets != "peers" and self.member_data == "disjoint":
            raise ValueError("member_data 'disjoint' is of targets 'peers'; leave it out")
        if self.targets == "peers" and self.labels is not None:
            raise ValueError("targets 'peers' need no labels; leave labels out")
        if self.targets == "peers" and self.patience is not None:
            raise ValueError("targets 'peers' go together to the last epoch; leave patience out")
        if self.targets == "peers" and self.burn_in >= self.epochs:
            raise ValueError(
                f"burn_in is {self.burn_in} of {self.epochs} epochs, so no member would ever teach"
            )
        return self

    @model_validator(mode="after")
    def _settings_fit_together(self) -> TrainParams:
        if (self.schedule == "step") != bool(self.step_epochs):
            raise ValueError("schedule 'step' and step_epochs go together; give both or neither")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g}, must be below the {self.epochs} epochs"
            )
        if (self.mixup or self.cutmix) and (self.targets != "stored" or self.hint_layer):
            what = "hint_layer" if self.hint_layer else f"targets {self.targets!r}"
            raise ValueError(f"mixup and cutmix do not go with {what}; leave one of them out")
        if self.patience is not None and self.validation is None:
            raise ValueError("patience needs a validation source; give --validation SOURCE")
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
    height: int | None = Field(
        None,
        gt=0,
        description="picture height; default for timm:NAME, here and below: as timm feeds it "
        "[pixels]",
    )
    width: int | None = Field(None, gt=0, description="picture width [pixels]")
    channels: int | None = Field(None, gt=0, description="picture channels")
    resize: Resize = None
    interpolation: Scaling = None
    mean: tuple[float, ...] = Field((), description="per-channel mean of pictures scaled to 0..1")
    std: tuple[Positive, ...] = Field(
        (), description="per-channel deviation of pictures scaled to 0..1"
    )
    output_kind: OutputKind = Field("logits", description="what the model gives")
    features: bool = Field(
        False, description="give out the inputs of the last layer too, for 'infer --features auto'"
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

    teacher: Teachers = (Path("models/teacher.onnx"),)
    source: Path = Field(
        Path("data/train"),
        description="source to label: a folder, a file, or a quoted pattern of files",
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
        if len(self.teacher) == 1 and (self.weights or self.mean_of == "probs"):
            raise ValueError(
                "weights and mean_of are of an ensemble, and there is one teacher; give several"
            )
        _check_mean(
            len(self.teacher), "teachers", self.weights, self.mean_of, self.mean_temperature
        )
        return self

    @model_validator(mode="after")
    def _views_are_made_by_transforms(self) -> InferParams:
        check_views(self.views, self.augment)
        return self


class PlanParams(Record):
    """Try the codecs on a sample of the source before the long run: bytes, fidelity and time."""

    teacher: Teachers = (Path("models/teacher.onnx"),)
    source: Path = Field(Path("data/train"), description="source that shall be labelled")
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
    batch_size: int = Field(256, ge=1, description="samples in one run of the teacher [rows]")
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
        if len(self.teacher) == 1 and (self.weights or self.mean_of == "probs"):
            raise ValueError(
                "weights and mean_of are of an ensemble, and there is one teacher; give several"
            )
        _check_mean(
            len(self.teacher), "teachers", self.weights, self.mean_of, self.mean_temperature
        )
        return self

    @model_validator(mode="after")
    def _views_are_made_by_transforms(self) -> PlanParams:
        check_views(self.views, self.augment)
        return self


class VerifyParams(Record):
    """Find out whether a label set is whole and says what its teacher says."""

    labels: Path = Field(Path("labels"), description="label set folder")
    source: Path | None = Field(
        None, description="its source, to check coverage; default: coverage is not checked"
    )
    teacher: Paths = Field(
        (),
        description="its teacher, to run samples again; needs the source too, and of an ensemble "
        "every teacher",
    )
    replay: int = Field(256, ge=2, description="samples run through the teacher again [rows]")
    seed: int = Field(0, ge=0, description="seed of the choice of those samples")
    device: TeacherDevice = Field(
        "auto", description="where the teacher runs; 'auto' is cuda or cpu and says what it chose"
    )
    repair: bool = Field(
        False, description="remove the broken shards, so that 'infer' redoes exactly those"
    )


class InspectParams(Record):
    """Say what a label set holds."""

    labels: Path = Field(Path("labels"), description="label set folder")
    rows: int = Field(0, ge=0, description="rows to show as people read them [rows]")
    top: int = Field(3, ge=1, description="likeliest classes shown in each row")
    output: Path | None = Field(
        None,
        description="folder that receives metrics.json and plots for DVC; default: nothing is "
        "written",
    )


class ConvertParams(Record):
    """Write a label set again: in another layout, codec or sharding, or a part of it."""

    labels: Path = Field(Path("labels"), description="label set folder to read")
    output: Path = Field(description="label set folder to write")
    layout: Literal["packed", "lists", "sidecar", "merged"] | None = Field(
        None,
        description="Parquet with 'packed' columns or 'lists', WebDataset tars of labels "
        "('sidecar') or 'merged' with the source's members; default: as it is",
    )
    codec: Literal["dense-f32", "dense-f16", "dense-u8", "topk", "factored"] | None = Field(
        None, description="how a row's logits are packed; default: as they are"
    )
    k: int | None = Field(
        None, ge=1, description="classes kept in a row by topk; default: as they are, or 64"
    )
    tail: Literal["uniform", "prior"] | None = Field(
        None,
        description="how topk spreads the mass of the classes it leaves out: evenly, or by the "
        "class prior of the set's own rows; default: as it is, or uniform",
    )
    shard_rows: int | None = Field(
        None, ge=1, description="samples in one label shard; default: shards as they are [rows]"
    )
    keys: Path | None = Field(None, description="file with the keys to keep, a key a line")
    classes: Path | None = Field(
        None, description="file with the classes to keep, a name a line, in their new order"
    )
    source: Path | None = Field(
        None, description="for layout 'merged': folder or pattern of the source's .tar files"
    )
    if_different: IfDifferent = Field(
        "error",
        description="when the output holds other labels: stop, or 'replace' them",
    )
    overwrite: bool = Field(False, description="start afresh even where the same labels stand")

    @model_validator(mode="after")
    def _merged_needs_the_source(self) -> ConvertParams:
        if (self.layout == "merged") != (self.source is not None):
            raise ValueError("layout 'merged' and source go together; give both or neither")
        if self.layout == "merged" and self.shard_rows is not None:
            raise ValueError("layout 'merged' has a shard a source tar; leave shard_rows out")
        if self.layout == "merged" and self.keys is not None:
            raise ValueError("layout 'merged' labels whole source tars; leave keys out")
        return self


class MergeParams(Record):
    """Average several label sets of one source into one: an ensemble of their teachers."""

    labels: tuple[Path, ...] = Field(
        min_length=2, description="label set folders; the first one's order and shards are taken"
    )
    output: Path = Field(description="label set folder to write")
    weights: tuple[Positive, ...] = Field(
        (), description="weight of each label set, in their order; default: all alike"
    )
    mean: MeanOf = Field(
        "logits", description="what is averaged: raw logits, or probabilities at a temperature"
    )
    temperature: Positive | None = Field(
        None, description="for mean 'probs': T of the probabilities that are averaged"
    )
    codec: Literal["dense-f32", "dense-f16", "dense-u8", "topk"] = Field(
        "dense-f16", description="how a row's logits are packed"
    )
    k: int = Field(64, ge=1, description="classes kept in a row by the codec topk")
    if_different: IfDifferent = Field(
        "error",
        description="when the output holds other labels: stop, or 'replace' them",
    )
    overwrite: bool = Field(False, description="start afresh even where the same labels stand")

    @model_validator(mode="after")
    def _weights_and_temperature_fit(self) -> MergeParams:
        _check_mean(len(self.labels), "label sets", self.weights, self.mean, self.temperature)
        return self


class CalibrateParams(Record):
    """Fit the temperature at which a label set is as sure as it is right."""

    labels: Path = Field(
        Path("labels"), description="label set with hard labels, best of a held-out source"
    )
    output: Path = Field(Path("reports/calibration.json"), description="the file to write")
    fit_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of the rows that T is fitted on, chosen by key; the others are measured "
        "(with 1 all rows do both)",
    )
    bins: int = Field(15, ge=1, description="equal-width bins of the ECE, each (low, high]")
    seed: int = Field(0, ge=0, description="seed of the choice of rows")


class EvaluateParams(Record):
    """Measure students on a source: accuracy, NLL and calibration."""

    models: tuple[Path, ...] = Field(
        (Path("models/students"),),
        min_length=1,
        description="student folders, student.json files, or folders of student folders",
    )
    source: Path = Field(Path("data/test"), description="source with hard labels to measure on")
    labels: Path | None = Field(
        None,
        description="label set of that source, to measure too and to compare each student with",
    )
    output: Path = Field(
        Path("reports/evaluate"),
        description="folder that receives evaluate.json, and metrics.json and plots for DVC",
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
    calibration: Path | None = Field(
        None,
        description="file that 'softlabel calibrate' wrote, whose reliability before and after is "
        "shown",
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
