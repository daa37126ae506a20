"""Figures for DVC of the stages that write them on request: equal to those of `--json`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlabel.pipeline.sources.opening import open_source
from tests.unit.encoded import whole

if TYPE_CHECKING:
    from tests.conftest import Command, Project


def done(command: Command, *words: str) -> dict[str, Any]:
    outcome = command(*words, "--metrics=told", "--json")
    assert outcome.code == 0, outcome.stderr
    report: dict[str, Any] = json.loads(outcome.stdout)
    return report


def told(name: str) -> Any:
    return json.loads(Path("told", name).read_bytes())


def test_prepare(empty_project: Project, command: Command) -> None:
    report = done(command, "prepare", "--validation-rows=100")
    assert told("metrics.json") == {
        "rows": report["rows"],
        "classes": 10,
        "height": 8,
        "width": 8,
        "channels": 1,
    }
    plot = told("plots/classes.json")
    assert len(plot) == 3 * 10
    counts = Counter(whole(open_source(Path("data/test"))).hard_labels().tolist())
    drawn = {row["class"]: row["rows"] for row in plot if row["part"] == "test"}
    assert drawn == {str(label): count for label, count in counts.items()}


def test_export(project: Project, command: Command) -> None:
    train = ("train-student", "--model=softlabel.pipeline.small_models:mlp", "--logger=none")
    outcome = command(*train, "--epochs=1", "--output=student", "--source=data/train")
    assert outcome.code == 0, outcome.stderr
    report = done(command, "export", "--model=student/student.json")
    figures = ("bytes", "parameters", "opset", "max_difference", "allowed_difference")
    assert told("metrics.json") == {name: report[name] for name in figures}


def test_plan(project: Project, command: Command) -> None:
    report = done(command, "plan", "--rows=100")
    assert "--metrics" not in report["command"]
    figures = told("metrics.json")
    assert (figures["rows"], figures["sampled"]) == (500, 100)
    for trial in report["trials"]:
        assert figures[trial["name"]]["bytes"] == trial["bytes"]
        assert figures[trial["name"]]["T=4"]["kl"] == trial["kl"]["4.0"]["mean"]
    plot = told("plots/codecs.json")
    assert [row["T"] for row in plot] == [1, 2, 4, 8] * len(report["trials"])
    again = Path("told/metrics.json").read_bytes()
    done(command, "plan", "--rows=100")
    assert Path("told/metrics.json").read_bytes() == again
