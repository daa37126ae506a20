"""Where a report's numbers come from: hashes, sizes, and the commands that made them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.reporting.experiments import LISTING, STANDARD_INPUT
from softlabel.pipeline.reporting.wording import UNNAMED, count, file_size
from softlabel.schemas.labelset import MeasuredFidelity, SourceFile
from softlabel.schemas.location import Url, located
from softlabel.schemas.params import ReportParams
from softlabel.schemas.reports import EvaluateReport, TrainReport
from softlabel.schemas.reports.training import StudentCard

FILES_SHOWN = 4
LINE_WIDTH = 80


@dataclass(frozen=True, slots=True)
class Command:
    """One step of the way: the verb, why, and the command line."""

    purpose: str
    line: str


@dataclass(frozen=True, slots=True)
class LabelOrigin:
    """What the manifest of a label set says of its making."""

    folder: str
    identity: str
    teachers: tuple[str, ...]
    codec: str
    rows: int
    size: str
    shards: str
    agreement: float | None
    labelled: int
    fidelity: tuple[MeasuredFidelity, ...]
    files: tuple[SourceFile, ...]
    more_files: int


def label_origin(labels: LabelSet) -> LabelOrigin:
    """The manifest's figures, ready to be shown."""
    manifest = labels.manifest
    identity, counts = manifest.identity, manifest.statistics
    return LabelOrigin(
        folder=shown_path(labels.folder),
        identity=labels.identity,
        teachers=identity.teacher_sha256,
        codec=identity.codec,
        rows=manifest.rows,
        size=file_size(sum(shard.bytes for shard in manifest.shards)),
        shards=count(len(manifest.shards), "shard"),
        agreement=counts.correct / counts.labelled if counts.labelled else None,
        labelled=counts.labelled,
        fidelity=manifest.fidelity,
        files=identity.source[:FILES_SHOWN],
        more_files=max(0, len(identity.source) - FILES_SHOWN),
    )


def shown_path(path: PurePath | Url) -> str:
    """A relative path as it is, of an absolute one the name: the page names no folder outside."""
    if isinstance(path, Url):
        return path.name
    inside = not path.is_absolute() and ".." not in path.parts
    return path.as_posix() if inside else path.name


def commands(
    params: ReportParams,
    evaluation: EvaluateReport | None,
    cards: Sequence[StudentCard],
    trained: Sequence[TrainReport],
    labels: LabelSet | None,
) -> tuple[Command, ...]:
    """The verbs with the values that are known, in the order in which they ran."""
    found = [] if labels is None else [_label_command(params, labels)]
    for run in dict.fromkeys(card.run for card in cards):
        seeds = sorted({card.seed for card in cards if card.run == run})
        settings = next((one.settings for one in trained if one.run == run), {})
        found.append(Command(f"train “{run}”", _train(run, seeds, settings)))
    if evaluation is not None:
        found.append(Command("measure the students", _evaluate(params, evaluation)))
    if params.calibration is not None:
        line = _line("calibrate", "--output", params.calibration)
        found.append(Command("fit the teacher's temperature", line))
    if params.experiments not in (None, STANDARD_INPUT):
        line = f"{LISTING} > {shlex.quote(shown_path(params.experiments))}"
        found.append(Command("list the experiments", line))
    found.append(Command("write this page", _report(params)))
    return tuple(found)


def other_labels(cards: Sequence[StudentCard], labels: LabelSet) -> tuple[str, ...]:
    """The runs whose students learned from another label set than this one."""
    runs = (
        card.run for card in cards if card.labels_identity_sha256 not in (None, labels.identity)
    )
    return tuple(dict.fromkeys(runs))


def _label_command(params: ReportParams, labels: LabelSet) -> Command:
    making = labels.manifest.making
    if making.verb != "infer":
        return Command("make the label set out of others", making.command)
    several = len(labels.manifest.identity.teacher_sha256) > 1
    who = "teachers, the files with the hashes" if several else "teacher, the file with the hash"
    return Command(f"run the {who} above, once", _infer(params, labels))


def _infer(params: ReportParams, labels: LabelSet) -> str:
    identity = labels.manifest.identity
    source = [] if params.source is None else ["--source", params.source]
    values = [part for T in identity.temperatures for part in ("--temperatures", f"{T:g}")]
    codec = ["--codec", identity.codec, *([] if identity.k is None else ["--k", identity.k])]
    codec += ["--tail", "prior"] if identity.tail == "prior" else []
    layout = labels.manifest.layout
    values += [] if layout == "packed" else ["--layout", layout]
    limit = labels.manifest.limit
    values += [] if limit is None else ["--limit", str(limit)]
    return _line("infer", *source, "--output", labels.folder, *codec, *values)


def _train(run: str, seeds: Sequence[int], settings: Mapping[str, object]) -> str:
    """The command of all seeds, with every setting that was given to the first one."""
    parts: list[object] = ["--run", run] if run != UNNAMED else []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if name in ("run", "seed") or value is None:
            continue
        if isinstance(value, bool):
            parts.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, dict):
            parts += [flag, json.dumps(value)]
        else:
            values = value if isinstance(value, list) else [value]
            parts += [part for one in values for part in (flag, _shown(one))]
    line = _line("train-student", *parts, "--seed")
    if len(seeds) == 1:
        return f"{line} {seeds[0]}"
    return f"for seed in {' '.join(map(str, seeds))}; do {line} $seed; done"


def _evaluate(params: ReportParams, evaluation: EvaluateReport) -> str:
    flags = [*_models(params), "--source", evaluation.source]
    if evaluation.label_set is not None:
        flags += ["--labels", evaluation.label_set.folder]
    return _line("evaluate", *flags, "--output", params.evaluation)


def _models(params: ReportParams) -> list[object]:
    return [part for path in params.models for part in ("--models", path)]


def _report(params: ReportParams) -> str:
    flags: list[object] = []
    if params.evaluation is not None:
        flags += ["--evaluation", params.evaluation, *_models(params)]
    for name in ("labels", "source", "calibration", "experiments"):
        value = getattr(params, name)
        flags += [] if value is None else [f"--{name}", value]
    flags += [part for T in params.temperatures for part in ("--temperatures", f"{T:g}")]
    flags += ["--samples", params.samples, "--title", params.title, "--output", params.output]
    line = _line("report", *flags)
    return f"{LISTING} | \\\n{line}" if params.experiments == STANDARD_INPUT else line


def _shown(value: object) -> object:
    """A value as it may stand on the page: of a path outside the project its name."""
    outside = isinstance(value, str) and ("/" in value or value == "..")
    return located(value) if outside else value


def _line(verb: str, *parts: object) -> str:
    """The command line, continued on another line where a flag would make it too long."""
    lines = [f"softlabel {verb}"]
    for part in parts:
        word = shlex.quote(shown_path(part) if isinstance(part, PurePath | Url) else str(part))
        if word.startswith("--") and len(lines[-1]) + len(word) > LINE_WIDTH:
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)
