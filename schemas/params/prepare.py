"""Parameters of prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from softlabel.schemas.model import Record
from softlabel.schemas.params.shared import Metrics


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
    metrics: Metrics = None
