"""Figures in the forms that `dvc metrics show`, `dvc plots show` and `dvc exp show` read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softlabel.pipeline.publish import make_folder, publish_bytes


def publish_metrics(path: Path, figures: Mapping[str, Any]) -> None:
    """Write numbers, by name or in mappings of such, which DVC compares from run to run."""
    _publish(path, figures)


def publish_plot(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of one plot: each has the fields that `dvc.yaml` names as x and y."""
    _publish(path, rows)


def _publish(path: Path, document: Any) -> None:
    make_folder(path.parent)
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
    publish_bytes(path, (text + "\n").encode())
