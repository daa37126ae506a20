"""Reading params.yaml: defaults < file < run overlay < flags, with the nearest name for a typo."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from softlabel.schemas.augment import TRANSFORMS
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.params import Params

S = TypeVar("S", bound=BaseModel)


def load_section(
    model: type[S],
    section: str,
    file: Path | None,
    overrides: Mapping[str, Any],
) -> S:
    """Return section `section` of `file` as `model`, overlaid by its run and by `overrides`.

    A missing `file` of None means defaults alone. The whole file is checked, not this section
    alone, so that a typo anywhere shows at once; values that are merely missing from other
    sections are not an error. Raises ParameterError.
    """
    document = _read(file) if file is not None else {}
    where = str(file) if file is not None else "the command line"
    _check_sections(document, where)
    values = dict(document.get(section) or {})
    run = overrides.get("run", values.get("run"))
    if run is not None:
        runs = values.get("runs") or {}
        if run not in runs:
            raise ParameterError(f"{where}: {section}.runs has no {run!r}{_nearest(run, runs)}")
        values |= runs[run]
    values |= overrides
    return _validate(model, values, section, where, flags=overrides)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParameterError(f"{file}: no such file; pass --params FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{file}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ParameterError(f"{file}: is not YAML: {' '.join(str(error).split())}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ParameterError(f"{file}: must be a mapping of sections, is a {_kind(document)}")
    return document


def _check_sections(document: Mapping[str, Any], where: str) -> None:
    for name, values in document.items():
        field = Params.model_fields.get(str(name))
        if field is None:
            raise ParameterError(
                f"{where}: {name}: unknown section{_nearest(str(name), Params.model_fields)}"
            )
        if not isinstance(values, dict | None):
            raise ParameterError(f"{where}: {name}: must be a mapping, is a {_kind(values)}")
        model = section_model(str(name))
        values = values or {}
        _validate(model, values, str(name), where, complete=False)
        for run, overlay in (values.get("runs") or {}).items():
            if not isinstance(overlay, dict):
                raise ParameterError(
                    f"{where}: {name}.runs.{run}: must be a mapping, is a {_kind(overlay)}"
                )
            _validate(model, values | overlay, f"{name}.runs.{run}", where, complete=False)


def section_model(name: str) -> type[BaseModel]:
    """The parameter model of section `name` of params.yaml."""
    annotation = Params.model_fields[name].annotation
    candidates = get_args(annotation) or (annotation,)
    return next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))


def _validate(
    model: type[S],
    values: Mapping[str, Any],
    section: str,
    where: str,
    complete: bool = True,
    flags: Mapping[str, Any] | None = None,
) -> S:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = _with_words(error.errors(include_url=False))
    if not complete:
        # Missing values may still come as flags; a rule over several fields waits for them too.
        problems = [p for p in problems if p["type"] != "missing" and p["loc"]]
        if not problems:
            return model.model_construct()
    by_flag = [p for p in problems if p["loc"] and p["loc"][0] in (flags or {})]
    in_file = [p for p in problems if p not in by_flag]
    lines = [f"{_flag(p)}: {_reason(model, p)}" for p in by_flag]
    if in_file:
        named = "; ".join(_one_problem(model, section, problem) for problem in in_file)
        lines.append(f"{where}: {named}")
    raise ParameterError("; ".join(lines))


def _with_words(problems: Sequence[Any]) -> list[Any]:
    """One problem in place of two where a value may be a number or a word and is neither."""
    words = {p["loc"][:-1]: p for p in problems if "literal[" in str(p["loc"][-1:])}
    merged = []
    for problem in problems:
        place = problem["loc"][:-1]
        if place not in words:
            merged.append(problem)
        elif problem is not words[place]:
            said = f"{problem['msg']}, or {words[place]['ctx']['expected']}"
            merged.append({**problem, "loc": place, "msg": said})
    return merged


def _one_problem(model: type[BaseModel], section: str, problem: Any) -> str:
    path = ".".join([section, *(str(part) for part in problem["loc"])])
    if problem["type"] == "missing":
        return f"{path}: is missing; set it there or pass {_flag(problem)}"
    return f"{path}: {_reason(model, problem)}"


def _flag(problem: Any) -> str:
    return "--" + str(problem["loc"][0]).replace("_", "-")


def _reason(model: type[BaseModel], problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        *place, name = (str(part) for part in problem["loc"])
        owner = TRANSFORMS.get(place[-1], model) if place else model
        kind = "parameter" if owner is model else f"argument {name!r} of {place[-1]}"
        return f"unknown {kind}{_nearest(name, owner.model_fields)}"
    if problem["type"].startswith("union_tag"):
        given = problem.get("ctx", {}).get("tag")
        unknown = "names no transform" if given is None else f"unknown transform {given!r}"
        return f"{unknown}{_nearest(given or '', TRANSFORMS)}"
    reason = str(problem["msg"].removeprefix("Value error, "))
    if not problem["loc"]:
        return reason
    return f"{reason[0].lower()}{reason[1:]}, got {problem['input']!r}"


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known) or 'none'}"


def _kind(value: object) -> str:
    names = {
        type(None): "nothing",
        list: "list",
        str: "text",
        int: "number",
        float: "number",
        bool: "boolean",
    }
    return names.get(type(value), type(value).__name__)
