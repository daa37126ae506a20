"""The demo's pipeline under DVC, in a folder as an unpacked archive leaves it.

One full run serves all tests; each works on a copy of what it left, or leaves it as it was.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import softlabel

if TYPE_CHECKING:
    from tests.conftest import Outcome, Project

pytestmark = pytest.mark.slow

KD = {f"train_student@kd-{seed}" for seed in range(3)}
PLAIN = {f"train_plain@{run}-{seed}" for run in ("hard", "smooth") for seed in range(3)}
CHAIN = {"prepare", "train_teacher", "export", "infer"}
MEASURES = {"infer_test", "inspect", "calibrate"}
END = {"evaluate", "report"}


@pytest.fixture(scope="module")
def finished(finished_demo: tuple[Project, Outcome]) -> Project:
    """The demo's folder, every stage of which has run."""
    project, outcome = finished_demo
    assert ran(outcome) == CHAIN | MEASURES | PLAIN | KD | END
    return project


def repro(project: Project, *arguments: str) -> Outcome:
    outcome = project.call("dvc", "repro", *arguments)
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    return outcome


def ran(outcome: Outcome) -> set[str]:
    return set(re.findall(r"^Running stage '(.*)'", outcome.stdout, re.MULTILINE))


def students(project: Project) -> dict[str, bytes]:
    """Every student's weights by its folder's name."""
    folder = project.root / "models/students"
    return {p.parent.name: p.read_bytes() for p in sorted(folder.glob("*/student.safetensors"))}


def test_the_report_stands(finished: Project) -> None:
    assert "<html" in (finished.root / "reports/report.html").read_text()[:2000]
    assert len(students(finished)) == 9
    assert len(set(students(finished).values())) == 9


def test_a_second_time_nothing_runs(finished: Project) -> None:
    before = finished.files("labels") | finished.files("models")
    outcome = repro(finished)
    assert ran(outcome) == set()
    assert "up to date" in outcome.stdout
    assert "up to date" in finished.call("dvc", "status").stdout
    assert finished.files("labels") | finished.files("models") == before


def test_dvc_reads_the_metrics(finished: Project) -> None:
    outcome = finished.call("dvc", "metrics", "show", "--json")
    assert outcome.code == 0, outcome.stderr
    stages = ("hard", "smooth", "kd", "accuracy", "nll", "ece", "temperature", "signs", "T=4")
    for word in (*stages, "validation", "max_difference"):
        assert f'"{word}"' in outcome.stdout


def test_dvc_draws_the_plots(finished: Project) -> None:
    outcome = finished.call("dvc", "plots", "show", "--json")
    assert outcome.code == 0, outcome.stderr
    plots = json.loads(outcome.stdout)
    assert "errors" not in plots
    assert set(plots["data"]) == {
        "Reliability of the students",
        "Agreement with the teacher by class",
        "Reliability of the teacher",
        "Entropy of the soft targets",
        "Validation accuracy",
        "Mutual information of picture and logits",
    }
    for drawn in plots["data"].values():
        (one,) = drawn
        assert one["content"]["data"]["values"]


def test_another_temperature_trains_the_kd_students_again(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project")
    labels, before = project.files("labels"), students(project)
    project.set_params({"train_student.runs.kd.temperature": 2.0})
    assert changed(project) == KD
    outcome = repro(project)
    assert ran(outcome) == KD | END
    assert project.files("labels") == labels
    after = students(project)
    assert {name for name in before if after[name] != before[name]} == {"kd-0", "kd-1", "kd-2"}


@pytest.mark.parametrize(
    ("name", "value", "stages"),
    [
        ("train_student.runs.kd.soft_weight", 0.7, KD),
        ("train_student.runs.smooth.label_smoothing", 0.2, {n for n in PLAIN if "smooth" in n}),
        ("train_student.epochs", 3, PLAIN | KD),
        ("train_student.model_args", {"inputs": 64, "hidden": 8}, PLAIN | KD),
        ("infer.temperatures", [1.0, 3.0], {"infer", "infer_test"}),
        ("calibrate.seed", 1, {"calibrate"}),
        ("export.opset", 21, {"export"}),
        ("train_teacher.learning_rate", 0.001, {"train_teacher"}),
        ("evaluate.bins", 10, {"evaluate"}),
        ("report.samples", 4, {"report"}),
    ],
)
def test_what_a_setting_makes_run_again(
    finished: Project, name: str, value: object, stages: set[str]
) -> None:
    """Each stage depends on its own settings only; what it feeds follows if its output changes."""
    kept = (finished.root / "params.yaml").read_text()
    try:
        finished.set_params({name: value})
        assert changed(finished) == stages
    finally:
        (finished.root / "params.yaml").write_text(kept)


def changed(project: Project) -> set[str]:
    """The stages whose own inputs differ from the last run's, by `dvc status`."""
    outcome = project.call("dvc", "status")
    assert outcome.code == 0, outcome.stderr
    return set(re.findall(r"^(\S+):$", outcome.stdout, re.MULTILINE))


def test_another_teacher_and_back(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    labels, before = project.files("labels"), students(project)
    teacher = (project.root / "models/teacher.onnx").read_bytes()
    identity = softlabel.open(project.root / "labels").identity
    project.set_params({"train_teacher.seed": 1})
    outcome = repro(project)
    assert ran(outcome) == {"train_teacher", "export", "infer"} | MEASURES | KD | END
    assert (project.root / "models/teacher.onnx").read_bytes() != teacher
    assert softlabel.open(project.root / "labels").identity != identity
    after = students(project)
    assert {name for name in before if after[name] != before[name]} == {"kd-0", "kd-1", "kd-2"}
    assert not list(project.root.glob("labels.*"))

    project.set_params({"train_teacher.seed": 0})
    repro(project)
    assert (project.root / "models/teacher.onnx").read_bytes() == teacher
    assert project.files("labels") == labels
    assert students(project) == before


def test_the_same_again_from_nothing_gives_the_same_labels(
    finished: Project, tmp_path: Path
) -> None:
    """Another folder, another time: the same teacher, and the same labels byte for byte."""
    project = type(finished)(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((finished.root / name).read_bytes())
    assert project.call("dvc", "init", "--quiet", "--no-scm").code == 0
    assert ran(repro(project, "infer")) == CHAIN
    assert project.files("data") == finished.files("data")
    onnx = "models/teacher.onnx"
    assert (tmp_path / onnx).read_bytes() == (finished.root / onnx).read_bytes()
    assert project.files("labels") == finished.files("labels")
