"""Parameters of train-teacher and train-student."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from softlabel.schemas.location import GivenLocation
from softlabel.schemas.model import Record
from softlabel.schemas.params.shared import (
    Device,
    IfDifferent,
    MeanOf,
    Paths,
    Positive,
    Resize,
    Scaling,
    check_mean,
)


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
    source: GivenLocation = Field(Path("data/train"), description="source to train on")
    validation: GivenLocation | None = Field(
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
    labels: Paths = Field(
        (),
        description="label set folder, for every loss but 'hard', which only takes its classes and "
        "leaves out the same samples; given several times, an "
        "ensemble: the mean of what they say, with the first one's classes; with targets 'self' "
        "what the first epoch learns from, by default the hard labels",
    )
    labels_weights: tuple[Positive, ...] = Field(
        (), description="weight of each of several label sets, in their order; default: all alike"
    )
    mean_of: MeanOf = Field(
        "logits",
        description="what is averaged over several label sets: raw logits, or probabilities at a "
        "temperature",
    )
    mean_temperature: Positive | None = Field(
        None, description="for mean_of 'probs': T of the probabilities that are averaged"
    )
    members: int = Field(
        1,
        ge=1,
        description="students with seeds from `seed` on, trained in turn; under torchrun its ranks "
        "share them out",
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
    exchange_steps: int | None = Field(
        None,
        ge=1,
        description="of targets 'peers', in place of `exchange_epochs`: after the burn-in every "
        "member says before every so many steps what it thinks of the samples that the others meet "
        "in them, so predictions grow as old as that [steps]",
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
    information_samples: int = Field(
        0,
        ge=0,
        description="training samples of two classes, half of each, on which the mutual "
        "information of picture and logits is estimated after every epoch; 0: not [rows]",
    )
    information_classes: tuple[str, ...] = Field(
        (), description="names of these two classes; default: the first two"
    )
    information_shift: float = Field(
        1 / 32,
        gt=0,
        le=0.5,
        description="how far these pictures are moved at random, at most, as a share of their "
        "shorter side: without noise all are told apart",
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
            if self.loss != "hard" and not self.labels:
                raise ValueError(
                    f"loss is {self.loss!r} and labels is not set; give --labels FOLDER"
                )
        elif self.loss == "hard":
            raise ValueError(f"targets are {self.targets!r} and loss is 'hard'; give --loss kd")
        elif self.calibration is not None:
            raise ValueError(f"calibration is of stored labels, and targets are {self.targets!r}")
        return self

    @model_validator(mode="after")
    def _an_ensemble_has_one_mean(self) -> TrainParams:
        sets = len(self.labels)
        check_mean(sets, "label sets", self.labels_weights, self.mean_of, self.mean_temperature)
        if sets > 1 and self.hint_layer is not None:
            raise ValueError("hint_layer learns the features of one label set; give one --labels")
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
        if self.targets == "peers" and self.labels:
            raise ValueError("targets 'peers' need no labels; leave labels out")
        if self.targets == "peers" and self.patience is not None:
            raise ValueError("targets 'peers' go together to the last epoch; leave patience out")
        if self.exchange_steps is not None and self.targets != "peers":
            raise ValueError("exchange_steps is of targets 'peers'; leave it out")
        if self.exchange_steps is not None and "exchange_epochs" in self.model_fields_set:
            raise ValueError(
                "predictions are exchanged by exchange_epochs or by exchange_steps; "
                "give one of them"
            )
        if self.targets == "peers" and self.burn_in >= self.epochs:
            raise ValueError(
                f"burn_in is {self.burn_in} of {self.epochs} epochs, so no member would ever teach"
            )
        return self

    @model_validator(mode="after")
    def _information_is_of_two_classes(self) -> TrainParams:
        if self.information_samples % 2:
            raise ValueError(
                f"information_samples is {self.information_samples}, must be even: half of each "
                "of two classes"
            )
        named = self.information_classes
        if named and (len(named) != 2 or named[0] == named[1]):
            raise ValueError(f"information_classes are {list(named)}, must be two different names")
        if named and not self.information_samples:
            raise ValueError("information_classes need information_samples; give both")
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
