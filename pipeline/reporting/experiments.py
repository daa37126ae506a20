"""Experiments from what `dvc exp show --json` prints: DVC itself is not asked."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.reports.experiments import Experiment

STANDARD_INPUT = Path("-")
LISTING = "dvc exp show --json"


class _Failure(BaseModel):
    msg: str
    type: str = ""


class _File(BaseModel):
    data: JsonValue = None
    error: _Failure | None = None


class _Files(BaseModel):
    params: dict[str, _File] = {}
    metrics: dict[str, _File] = {}


class _Executor(BaseModel):
    state: str


class _State(BaseModel):
    rev: str
    name: str | None = None
    data: _Files | None = None
    error: _Failure | None = None
    experiments: list[_Range] | None = None


class _Range(BaseModel):
    revs: list[_State]
    executor: _Executor | None = None


def read_experiments(path: Path) -> tuple[Experiment, ...]:
    """The rows of the listing in the file `path`, or of standard input where that is `-`.

    In DVC's order: the workspace, and each revision before the experiments that grew from it.
    Raises ParameterError where there is no such file, DataError where it is no listing of DVC 3.
    """
    where, text = "standard input" if path == STANDARD_INPUT else str(path), _read(path)
    try:
        states = TypeAdapter(list[_State]).validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the whole"
        raise DataError(
            f"{where}: is not what '{LISTING}' of DVC 3 prints ({place}: {problem['msg']}); write "
            "it again"
        ) from error
    if not states:
        raise DataError(f"{where}: lists no revision; run '{LISTING}' in a folder that git tracks")
    return tuple(one for state in states for one in _with_descendants(state))


def _read(path: Path) -> bytes:
    if path == STANDARD_INPUT:
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ParameterError(
            f"{path}: no such file; write it with '{LISTING} > {path.name}'"
        ) from error


def _with_descendants(state: _State) -> Iterator[Experiment]:
    yield _experiment(state)
    for group in state.experiments or ():
        for each in group.revs:
            yield _experiment(each, state.rev, group.executor)


def _experiment(
    state: _State, baseline: str | None = None, executor: _Executor | None = None
) -> Experiment:
    files = state.data or _Files()
    unread = {
        name: file.error.msg or file.error.type
        for name, file in [*files.params.items(), *files.metrics.items()]
        if file.error is not None
    }
    return Experiment(
        rev=state.rev,
        name=state.name,
        baseline=baseline,
        state=None if executor is None or executor.state == "success" else executor.state,
        error=None if state.error is None else state.error.msg or state.error.type,
        params=_values(files.params),
        metrics=_values(files.metrics),
        unread=unread,
    )


def _values(files: dict[str, _File]) -> dict[str, JsonValue]:
    return {name: _finite(file.data) for name, file in files.items() if file.error is None}


def _finite(value: JsonValue) -> JsonValue:
    """`value` with the words for what JSON has no numbers for."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    return value
