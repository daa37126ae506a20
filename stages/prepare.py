"""prepare: raw data into a canonical source, split into train, validation and test."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from softlabel.pipeline.dvc_files import publish_metrics, publish_plot
from softlabel.pipeline.progress import Progress, Quiet
from softlabel.pipeline.publish import make_folder, sync_folder, temporary_name
from softlabel.pipeline.sources.digits import CLASSES, read_digits
from softlabel.pipeline.sources.idx import read_idx_pair
from softlabel.pipeline.sources.parquet import write_source_shard
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.params import PrepareParams
from softlabel.schemas.reports import PrepareReport
from softlabel.schemas.sample import SampleBlock


def run(params: PrepareParams, progress: Progress | None = None) -> PrepareReport:
    """Write `output/train`, `output/test` and, where asked for, `output/validation`.

    Each part appears whole or not at all. Raises ParameterError, DataError.
    """
    progress = progress or Quiet()
    parts, classes = _digits(params) if params.format == "digits" else _idx(params)
    parts = _hold_out(parts, "validation", params.validation_rows, params.seed)
    progress.start("prepare", sum(len(block) for block in parts.values()), "samples")
    for name, block in parts.items():
        _write_part(params.output / name, block, classes, params.shard_rows)
        progress.advance(len(block))
    report = PrepareReport(
        output=params.output,
        rows={name: len(block) for name, block in parts.items()},
        classes=classes,
        shape=parts["train"].inputs.shape[1:],
    )
    if params.metrics is not None:
        _publish_for_dvc(params.metrics, report, parts)
    return report


def _publish_for_dvc(folder: Path, report: PrepareReport, parts: Mapping[str, SampleBlock]) -> None:
    """The sizes as metrics, and as a plot how many samples of each class a part has."""
    height, width, channels = report.shape
    shape = {"height": height, "width": width, "channels": channels}
    figures = {"rows": report.rows, "classes": len(report.classes), **shape}
    publish_metrics(folder / "metrics.json", figures)
    counts = {
        part: np.bincount(block.hard_labels(), minlength=len(report.classes))
        for part, block in parts.items()
    }
    rows = [
        {"part": part, "class": name, "rows": int(count)}
        for part, counted in counts.items()
        for name, count in zip(report.classes, counted, strict=True)
    ]
    publish_plot(folder / "plots" / "classes.json", rows)


def _digits(params: PrepareParams) -> tuple[dict[str, SampleBlock], tuple[str, ...]]:
    parts = _hold_out({"train": read_digits()}, "test", params.test_rows, params.seed)
    return parts, _classes(params, parts, CLASSES)


def _idx(params: PrepareParams) -> tuple[dict[str, SampleBlock], tuple[str, ...]]:
    if params.path is None:
        raise ParameterError("prepare.path: is missing; pass --path FOLDER for format 'idx'")
    if not params.path.is_dir():
        raise ParameterError(f"prepare.path: {params.path}: no such folder")
    parts = {
        "train": read_idx_pair(params.path, "train"),
        "test": read_idx_pair(params.path, "t10k"),
    }
    highest = max(_highest_label(block) for block in parts.values())
    return parts, _classes(params, parts, tuple(str(label) for label in range(highest + 1)))


def _classes(
    params: PrepareParams, parts: Mapping[str, SampleBlock], default: tuple[str, ...]
) -> tuple[str, ...]:
    classes = params.classes or default
    highest = max(_highest_label(block) for block in parts.values())
    if highest >= len(classes):
        raise DataError(
            f"prepare.classes: names {len(classes)} classes, the data has label {highest}; "
            "name every class"
        )
    return classes


def _highest_label(block: SampleBlock) -> int:
    return int(block.hard_labels().max(initial=-1))


def _hold_out(
    parts: dict[str, SampleBlock], name: str, rows: int, seed: int
) -> dict[str, SampleBlock]:
    """Move `rows` random samples of 'train' into part `name`; both keep the data's order."""
    if rows == 0:
        return parts
    train = parts["train"]
    if rows >= len(train):
        raise ParameterError(
            f"prepare.{name}_rows: {rows} leaves nothing of {len(train)} samples to train on"
        )
    order = np.random.default_rng(seed).permutation(len(train))
    held, kept = np.sort(order[:rows]), np.sort(order[rows:])
    return parts | {"train": _take(train, kept), name: _take(train, held)}


def _take(block: SampleBlock, rows: np.ndarray) -> SampleBlock:
    return SampleBlock(
        block.keys.take(pa.array(rows)), block.inputs[rows], block.labels.take(pa.array(rows))
    )


def _write_part(
    folder: Path, block: SampleBlock, classes: tuple[str, ...], shard_rows: int
) -> None:
    if folder.exists() and not _is_source(folder):
        raise ParameterError(f"{folder}: holds other files than a source; choose another output")
    make_folder(folder.parent)
    temporary = temporary_name(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for index, first in enumerate(range(0, len(block), shard_rows)):
        piece = block.slice(first, min(shard_rows, len(block) - first))
        write_source_shard(temporary / f"part-{index:05d}.parquet", piece, classes)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    sync_folder(folder.parent)


def _is_source(folder: Path) -> bool:
    return folder.is_dir() and all(path.suffix == ".parquet" for path in folder.iterdir())
