"""The command line: one command a stage, its flags taken from the stage's parameter model."""

from __future__ import annotations

import errno
import importlib
import inspect
import json
import os
import shlex
import signal
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.exceptions import TyperException

from softlabel.schemas import params as models
from softlabel.schemas.errors import EnvironmentFault, ParameterError, SoftlabelError
from softlabel.schemas.settings import load_section, section_model

PARAMS_FILE = Path("params.yaml")
OUR_BUG = 70
# What the operating system says when the machine, and not the data, is at fault.
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class Verb(NamedTuple):
    """A command: its parameter model, its section of params.yaml and an example."""

    params: type[BaseModel]
    section: str
    example: str


VERBS = {
    "prepare": Verb(
        models.PrepareParams,
        "prepare",
        "softlabel prepare --format idx --path fashion-mnist --output data",
    ),
    "export": Verb(
        models.ExportParams,
        "export",
        "softlabel export --model models/teacher/student.json --output models/teacher.onnx",
    ),
    "plan": Verb(
        models.PlanParams,
        "plan",
        "softlabel plan --teacher models/teacher.onnx --source data/train",
    ),
    "infer": Verb(
        models.InferParams,
        "infer",
        "softlabel infer --teacher models/teacher.onnx --source data/train --output labels",
    ),
    "verify": Verb(
        models.VerifyParams,
        "verify",
        "softlabel verify --labels labels --source data/train --teacher models/teacher.onnx",
    ),
    "inspect": Verb(
        models.InspectParams,
        "inspect",
        "softlabel inspect --labels labels --rows 5",
    ),
    "convert": Verb(
        models.ConvertParams,
        "convert",
        "softlabel convert --labels labels --output labels-topk --codec topk --k 10",
    ),
    "merge": Verb(
        models.MergeParams,
        "merge",
        "softlabel merge --labels labels-a --labels labels-b --output labels-mean",
    ),
    "calibrate": Verb(
        models.CalibrateParams,
        "calibrate",
        "softlabel calibrate --labels labels-validation --output reports/calibration.json",
    ),
    "train-student": Verb(
        models.TrainParams,
        "train_student",
        "softlabel train-student --run kd --seed 1",
    ),
    "evaluate": Verb(
        models.EvaluateParams,
        "evaluate",
        "softlabel evaluate --models models/students --source data/test",
    ),
    "report": Verb(
        models.ReportParams,
        "report",
        "softlabel report --output reports/report.html",
    ),
}

app = typer.Typer(
    name="softlabel",
    help="Soft labels as a dataset: run the teacher once, train any number of students.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived; no handler of errors may take it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> None:
    """Run the command line and exit with the code of design contract 4."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are one line on stderr."""
    try:
        return int(app(args=list(arguments), prog_name="softlabel", standalone_mode=False) or 0)
    except TyperException as error:
        return _fail(error.format_message(), error.exit_code)
    except Stopped as stop:
        return _interrupted(arguments, 128 + stop.number)
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _explain(error)


def _explain(error: Exception) -> int:
    if isinstance(error, SoftlabelError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, MemoryError):
        message = "not enough memory; a smaller batch_size or shuffle_rows needs less"
        return _fail(message, EnvironmentFault.exit_code)
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        message = f"{error.filename or 'a file'}: {error.strerror}; make room or access for it"
        return _fail(message, EnvironmentFault.exit_code)
    kind = type(error).__name__
    return _fail(f"our own bug: {kind}: {error}; run again with --debug and report it", OUR_BUG)


def _fail(message: str, code: int) -> int:
    if _speaks_for_all():
        typer.echo(f"softlabel: error: {' '.join(message.split())}", err=True)
    return code


def _interrupted(arguments: Sequence[str], code: int) -> int:
    again = shlex.join(["softlabel", *arguments])
    if _speaks_for_all():
        typer.echo(f"softlabel: stopped; continue with: {again}", err=True)
    return code


def _speaks_for_all() -> bool:
    """Whether this is the first of torchrun's ranks on this machine that does not come to its end.

    The others fail of the same, or because the first one is gone.
    """
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if place is None:
        return True
    command = zlib.crc32(" ".join(sys.argv).encode())
    try:
        # Every rank has a folder there; they lie side by side.
        (Path(place).parent.parent / f"softlabel-{command:08x}").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _on_signal(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _on_second_signal)
    raise Stopped(number)


def _on_second_signal(number: int, frame: FrameType | None) -> None:
    """End at once, whatever a thread is doing: nothing that counts is ever half written."""
    code = _interrupted(sys.argv[1:], 128 + number)
    sys.stderr.flush()
    os._exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        from softlabel import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def _add_command(name: str, verb: Verb) -> None:
    fields = {
        field: info
        for field, info in verb.params.model_fields.items()
        if not (isinstance(info.json_schema_extra, dict) and "flag" in info.json_schema_extra)
    }

    def command(**flags: Any) -> int:
        common = {key: flags.pop(key) for key in ("params", "section", "json", "debug")}
        overrides = _overrides(name, fields, flags)
        return _run_stage(
            name, verb, overrides, common["params"], common["section"], common["json"]
        )

    parameters = [_option(field, info) for field, info in fields.items()] + _common_options(verb)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    # \b keeps the example on a line of its own.
    summary = f"{verb.params.__doc__}\n\n\b\nExample: {verb.example}"
    app.command(name, help=summary)(command)


def _option(name: str, info: FieldInfo) -> inspect.Parameter:
    shown = _flag_type(info.annotation)
    flag = "--" + name.replace("_", "-")
    declared = f"{flag}/--no-{flag[2:]}" if shown is bool else flag
    text = f"{info.description}{_default_text(info)}"
    return _parameter(name, shown, None, declared, text)


def _common_options(verb: Verb) -> list[inspect.Parameter]:
    return [
        _parameter(
            "params", Path, None, "--params", f"parameter file [default: {PARAMS_FILE} if present]"
        ),
        _parameter(
            "section",
            str,
            verb.section,
            "--section",
            f"section of the parameter file [default: {verb.section}]",
        ),
        _parameter("json", bool, False, "--json", "print the result as JSON"),
        _parameter("debug", bool, False, "--debug", "show the traceback of an error"),
    ]


def _parameter(name: str, kind: Any, default: Any, flag: str, text: str) -> inspect.Parameter:
    option = typer.Option(default, flag, help=text, show_default=False)
    annotation = kind if default is not None else kind | None
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=option, annotation=annotation)


def _flag_type(annotation: Any) -> Any:
    """What typer shall parse for a field: optional ones bare, tuples repeated, JSON as text."""
    if _is_json(annotation):
        return str
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        # A number or a word is told apart by the parameter model.
        return _flag_type(kinds[0]) if len(kinds) == 1 else str
    if origin is Literal:
        return annotation
    if origin is tuple:
        return list[_flag_type(get_args(annotation)[0])]  # type: ignore[misc]
    if hasattr(annotation, "__metadata__"):
        return _flag_type(annotation.__origin__)
    return annotation


def _is_json(annotation: Any) -> bool:
    """Whether a flag takes JSON: a mapping, or a list of records."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated or (origin is tuple and inner):
        return _is_json(inner[0])
    if origin is UnionType:
        return all(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in inner)
    return origin is dict


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return " [required here or in the parameter file]"
    default = info.get_default(call_default_factory=True)
    if default in (None, (), {}, False):
        return ""
    shown = " ".join(str(item) for item in default) if isinstance(default, tuple) else default
    return f" [default: {shown}]"


def _overrides(verb: str, fields: dict[str, FieldInfo], flags: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    for name, value in given.items():
        if _is_json(fields[name].annotation):
            try:
                given[name] = json.loads(value)
            except ValueError as error:
                raise ParameterError(
                    f"{verb}: --{name.replace('_', '-')}: {value!r} is not JSON: {error}"
                ) from error
    return given


def _run_stage(
    name: str, verb: Verb, overrides: dict[str, Any], file: Path | None, section: str, as_json: bool
) -> int:
    from softlabel.display.summary import summary
    from softlabel.display.terminal import Terminal

    if file is None and PARAMS_FILE.exists():
        file = PARAMS_FILE
    _check_section(verb, section)
    params = load_section(verb.params, section, file, overrides)
    stage = importlib.import_module(f"softlabel.stages.{name.replace('-', '_')}")
    silent = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0"
    with Terminal(quiet=as_json or silent) as progress:
        work = stage.preview if getattr(params, "dry_run", False) else stage.run
        report = work(params, progress)
    # Of the ranks that torchrun starts the first speaks for all.
    if not silent:
        typer.echo(report.model_dump_json(indent=2) if as_json else summary(report))
    return int(getattr(report, "exit_code", 0))


def _check_section(verb: Verb, section: str) -> None:
    sections = [name for name in models.Params.model_fields if section_model(name) is verb.params]
    if section not in sections:
        raise ParameterError(f"--section {section}: this verb reads {' or '.join(sections)}")


for _name, _verb in VERBS.items():
    _add_command(_name, _verb)
