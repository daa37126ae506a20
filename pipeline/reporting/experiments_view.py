"""The report's table of experiments: what differs between them, and what all of them share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from pydantic import JsonValue

from softlabel.pipeline.reporting.wording import count
from softlabel.schemas.reports.experiments import Experiment

# COLUMNS_SHOWN: of parameters, and as many of metrics.
ROWS_SHOWN, COLUMNS_SHOWN, SHARED_SHOWN = 200, 60, 200
SHORT_COMMIT = 7
NOTHING, UNREAD = "\u2013", "!"
WORKSPACE = "workspace"
# Of larger numbers the difference may be infinite.
MOST_PLACED = 1e300

Kind = Literal["params", "metrics"]


@dataclass(frozen=True, slots=True)
class Column:
    """A parameter or metric: its file, and the keys that lead to it there."""

    kind: Kind
    file: str
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """As `dvc exp show` spells it; of a file that is nothing but one value, the file's."""
        return ".".join(self.keys) or self.file


@dataclass(frozen=True, slots=True)
class Cell:
    """A value as it is shown; number: where it is one, place: from 0, the column's lowest, to 1.

    changed: a parameter is not what it is in the revision that the experiment grew from.
    """

    text: str
    number: int | float | None = None
    place: float | None = None
    changed: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    experiment: Experiment
    values: Mapping[Column, JsonValue]

    def says(self, column: Column) -> str | None:
        """The exact value, nothing where the file lacks it, and None where there is no file."""
        if column in self.values:
            value = self.values[column]
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            return json.dumps(value, sort_keys=True)
        there: Mapping[str, JsonValue] = getattr(self.experiment, column.kind)
        return "" if column.file in there else None


def experiments_view(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """What the template shows: columns by file, a row an experiment, and what is the same in all.

    A column is of what those that have its file do not agree on.
    """
    rows = [_Row(one, dict(_values(one))) for one in experiments]
    columns = dict.fromkeys(column for row in rows for column in row.values)
    differing = [column for column in columns if len(_said(column, rows)) > 1]
    shared = [column for column in columns if len(_said(column, rows)) == 1]
    shown = [
        *[column for column in differing if column.kind == "params"][:COLUMNS_SHOWN],
        *[column for column in differing if column.kind == "metrics"][:COLUMNS_SHOWN],
    ]
    cells = {column: _cells(column, rows) for column in shown}
    return {
        "rows": [
            _shown_row(row, [cells[column][index] for column in shown])
            for index, row in enumerate(rows[:ROWS_SHOWN])
        ],
        "of_rows": len(rows),
        "columns": shown,
        "of_columns": len(differing),
        "groups": [
            {"kind": kind, "file": file, "columns": list(group)}
            for (kind, file), group in groupby(shown, lambda column: (column.kind, column.file))
        ],
        "shared": [(column, _shared(column, rows)) for column in shared[:SHARED_SHOWN]],
        "of_shared": len(shared),
    }


def experiments_alone(experiments: Sequence[Experiment]) -> tuple[str, str]:
    """What there is to compare, in words, where nothing but experiments is there."""
    grown = sum(one.baseline is not None for one in experiments)
    revisions = sum(one.baseline is None and one.rev != WORKSPACE for one in experiments)
    found = f"{count(grown, 'experiment')} and {count(revisions, 'revision')} side by side."
    return found, "What differs between them, parameters and metrics, stands in one table."


def _values(experiment: Experiment) -> Iterator[tuple[Column, JsonValue]]:
    kinds: tuple[tuple[Kind, dict[str, JsonValue]], ...] = (
        ("params", experiment.params),
        ("metrics", experiment.metrics),
    )
    for kind, files in kinds:
        for file, content in files.items():
            for keys, value in _leaves(content):
                yield Column(kind, file, keys), value


def _leaves(
    value: JsonValue, keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], JsonValue]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*keys, key))
    else:
        yield keys, value


def _said(column: Column, rows: Sequence[_Row]) -> set[str]:
    return {said for row in rows if (said := row.says(column)) is not None}


def _cells(column: Column, rows: Sequence[_Row]) -> list[Cell]:
    """A column's cells, with their places where it is of metrics."""
    baselines = {row.experiment.rev: row for row in rows if row.experiment.baseline is None}
    cells = []
    for row in rows[:ROWS_SHOWN]:
        baseline = baselines.get(row.experiment.baseline or "")
        changed = column.kind == "params" and baseline is not None and _apart(column, row, baseline)
        cells.append(replace(_cell(column, row), changed=changed))
    return cells if column.kind == "params" else _placed(cells)


def _apart(column: Column, row: _Row, baseline: _Row) -> bool:
    said, before = row.says(column), baseline.says(column)
    return said is not None and before is not None and said != before


def _cell(column: Column, row: _Row) -> Cell:
    if column not in row.values:
        return Cell(UNREAD if column.file in row.experiment.unread else NOTHING)
    value = row.values[column]
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    return Cell(_text(value, rounded=column.kind == "metrics"), number)


def _text(value: JsonValue, rounded: bool) -> str:
    if isinstance(value, str):
        return value
    if rounded and isinstance(value, float):
        return f"{value:.5g}"
    return json.dumps(value, ensure_ascii=False)


def _placed(cells: list[Cell]) -> list[Cell]:
    """The cells with their places between the lowest and the highest number."""
    numbers = [c.number for c in cells if c.number is not None and abs(c.number) <= MOST_PLACED]
    low, high = min(numbers, default=0), max(numbers, default=0)
    if low == high:
        return cells
    return [
        replace(cell, place=float((cell.number - low) / (high - low)))
        if cell.number is not None and abs(cell.number) <= MOST_PLACED
        else cell
        for cell in cells
    ]


def _shown_row(row: _Row, cells: Sequence[Cell]) -> dict[str, Any]:
    one = row.experiment
    commit = "" if one.rev == WORKSPACE else one.rev[:SHORT_COMMIT]
    return {
        "name": one.name or commit or one.rev,
        "commit": commit if one.name else "",
        "grown": one.baseline is not None,
        "said": [*filter(None, (one.state, one.error))],
        "unread": one.unread,
        "cells": cells,
    }


def _shared(column: Column, rows: Sequence[_Row]) -> Cell:
    return _cell(column, next(row for row in rows if column in row.values))
