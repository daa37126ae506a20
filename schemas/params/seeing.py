"""Parameters of the stages that show what came out: calibrate, evaluate, report."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from softlabel.schemas.location import GivenLocation
from softlabel.schemas.model import Record
from softlabel.schemas.params.shared import (
    Device,
    Positive,
)


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
        description="share of the rows that T is fitted on, chosen by key, so that a sequence's "
        "positions stay together; the others are measured (with 1 all rows do both)",
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
    source: GivenLocation = Field(
        Path("data/test"), description="source with hard labels to measure on"
    )
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

    evaluation: Path | None = Field(
        Path("reports/evaluate"),
        description="folder that 'softlabel evaluate' wrote; without it and students the page has "
        "none",
    )
    models: tuple[Path, ...] = Field(
        (Path("models/students"),), description="student folders whose curves are shown"
    )
    labels: Path | None = Field(Path("labels"), description="label set whose rows are shown")
    source: GivenLocation | None = Field(
        Path("data/train"), description="source of that label set, for the pictures"
    )
    calibration: Path | None = Field(
        None,
        description="file that 'softlabel calibrate' wrote, whose reliability before and after is "
        "shown",
    )
    experiments: Path | None = Field(
        None,
        description="file that 'dvc exp show --json' was written to, whose experiments are shown "
        "beside each other; '-' reads it from standard input",
    )
    temperatures: tuple[Positive, ...] = Field(
        (1.0, 2.0, 4.0, 8.0),
        min_length=1,
        description="temperatures of the soft targets shown",
    )
    samples: int = Field(12, ge=1, le=200, description="samples shown with their soft targets")
    title: str = Field("What the soft labels taught", description="title of the page")
    output: Path = Field(Path("reports/report.html"), description="the page to write")
