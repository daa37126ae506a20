"""Parameters of the stages that read or rewrite a label set: verify, inspect, convert, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from softlabel.schemas.location import GivenLocation
from softlabel.schemas.model import Record
from softlabel.schemas.params.shared import (
    IfDifferent,
    MeanOf,
    Paths,
    Positive,
    TeacherDevice,
    check_mean,
)


class VerifyParams(Record):
    """Find out whether a label set is whole and says what its teacher says."""

    labels: Path = Field(Path("labels"), description="label set folder")
    source: GivenLocation | None = Field(
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
    source: GivenLocation | None = Field(
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
        check_mean(len(self.labels), "label sets", self.weights, self.mean, self.temperature)
        return self
