"""params.yaml and dvc.yaml agree: no setting escapes DVC, and every path is the same in both."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from softlabel.schemas.params import Params, TrainParams
from softlabel.schemas.settings import load_section, section_model

Document = dict[str, Any]

# Which section of params.yaml each stage reads, and its settings that name what it reads and
# writes. `models` holds what other stages write below it.
SECTIONS = {
    "prepare": "prepare",
    "train_teacher": "train_teacher",
    "export": "export",
    "infer": "infer",
    "infer_test": "infer",
    "inspect": "inspect",
    "calibrate": "calibrate",
    "train_plain": "train_student",
    "train_student": "train_student",
    "evaluate": "evaluate",
    "report": "report",
}
READ = ("path", "source", "validation", "samples", "teacher", "labels", "evaluation", "models")


@pytest.fixture(scope="module")
def params(repo_root: Path) -> Document:
    document: Document = yaml.safe_load((repo_root / "params.yaml").read_text())
    return document


@pytest.fixture(scope="module")
def stages(repo_root: Path) -> Document:
    document: Document = yaml.safe_load((repo_root / "dvc.yaml").read_text())
    stages: Document = document["stages"]
    return stages


def outputs(stage: Document) -> dict[str, Document]:
    """Every output and metric of a stage with its options."""
    listed = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
    return dict(
        next(iter(item.items())) if isinstance(item, dict) else (item, {}) for item in listed
    )


def cells(stage: Document) -> list[tuple[str, int]]:
    """Run and seed of each cell of the stage's matrix."""
    matrix = stage["matrix"]
    return [(run, seed) for run in matrix["run"] for seed in matrix["seed"]]


def below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def test_every_section_is_valid(repo_root: Path, params: Document) -> None:
    # What makes a label set out of others has no part in the demo.
    assert set(params) == Params.model_fields.keys() - {"convert", "merge"}
    for section in params:
        load_section(section_model(section), section, repo_root / "params.yaml", {})
    for run in params["train_student"]["runs"]:
        load_section(TrainParams, "train_student", repo_root / "params.yaml", {"run": run})


def test_the_stages_are_these(stages: Document) -> None:
    assert list(stages) == list(SECTIONS)


def test_each_stage_calls_its_verb_with_its_section(stages: Document) -> None:
    for name, section in SECTIONS.items():
        program, verb, *flags = stages[name]["cmd"].split()
        assert program == "softlabel"
        own = {"train_teacher": "train-student"}.get(name, section.replace("_", "-"))
        assert verb == own
        if name == "train_teacher":
            assert flags == ["--section", "train_teacher"]
        elif name == "infer_test":
            assert flags == ["--source", "data/test", "--output", "labels-test"]
        elif "matrix" in stages[name]:
            assert flags == ["--run", "${item.run}", "--seed", "${item.seed}"]
        else:
            assert flags == []


def test_a_stage_depends_on_its_whole_section(stages: Document) -> None:
    for name, section in SECTIONS.items():
        if "matrix" not in stages[name]:
            assert stages[name]["params"] == [section]


@pytest.mark.parametrize("stage", ["train_plain", "train_student"])
def test_no_setting_of_the_students_escapes(stages: Document, params: Document, stage: str) -> None:
    """The matrix depends on single keys, so a key added to params.yaml must be added there too."""
    keys = [key for key in params["train_student"] if key != "runs"]
    wanted = [f"train_student.{key}" for key in keys] + ["train_student.runs.${item.run}"]
    assert sorted(stages[stage]["params"]) == sorted(wanted)


def test_every_run_is_trained_once_with_the_same_seeds(stages: Document, params: Document) -> None:
    plain, taught = (cells(stages[name]) for name in ("train_plain", "train_student"))
    runs = params["train_student"]["runs"]
    assert sorted({run for run, _ in [*plain, *taught]}) == sorted(runs)
    assert len({*plain, *taught}) == len([*plain, *taught])
    seeds = {run: sorted(s for r, s in [*plain, *taught] if r == run) for run in runs}
    assert len({tuple(value) for value in seeds.values()}) == 1
    assert len(next(iter(seeds.values()))) >= 3


def test_runs_that_read_labels_wait_for_them(stages: Document, params: Document) -> None:
    shared = {key: value for key, value in params["train_student"].items() if key != "runs"}
    for name, wants in (("train_plain", False), ("train_student", True)):
        for run, _ in cells(stages[name]):
            settings = shared | params["train_student"]["runs"][run]
            assert (settings.get("loss") == "kd") == wants
            assert (settings.get("labels") in stages[name]["deps"]) == wants


def settings(stages: Document, params: Document, stage: str) -> Document:
    """The section that the stage reads, with what its command says over it."""
    section: Document = dict(params[SECTIONS[stage]])
    if "matrix" not in stages[stage]:
        _, _, *flags = stages[stage]["cmd"].split()
        section |= {flag[2:]: value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    return section


def named_paths(section: Document) -> Iterator[str]:
    for key in READ:
        value = section.get(key)
        yield from [] if value is None else value if isinstance(value, list) else [value]


@pytest.mark.parametrize("stage", SECTIONS)
def test_what_a_stage_reads_is_a_dependency(stages: Document, params: Document, stage: str) -> None:
    section = settings(stages, params, stage)
    dependencies = stages[stage].get("deps", [])
    for path in named_paths(section):
        assert any(below(dependency, path) for dependency in dependencies), path
    if section.get("model", "").endswith(".json"):
        assert section["model"] in dependencies
        assert section["model"].replace(".json", ".safetensors") in dependencies


@pytest.mark.parametrize("stage", SECTIONS)
def test_what_a_stage_writes_is_an_output(stages: Document, params: Document, stage: str) -> None:
    section = settings(stages, params, stage)
    found = outputs(stages[stage])
    if "matrix" in stages[stage]:
        assert list(found) == [section["output"] + "/${item.run}-${item.seed}"]
    else:
        assert found
        # What is written beside a file has its name before a dash.
        place, _, suffix = section["output"].partition(".")
        beside = {f"{place}-{name}.{suffix}" for name in ("metrics", "plot")}
        folders = [section["output"], *filter(None, [section.get("metrics")])]
        told = [any(below(path, folder) for folder in folders) for path in found]
        assert all(under or path in beside for under, path in zip(told, found, strict=True)), found


def test_what_is_read_is_written_by_an_earlier_stage(stages: Document) -> None:
    written: list[str] = []
    for stage in stages.values():
        for dependency in stage.get("deps", []):
            assert any(below(dependency, path) or below(path, dependency) for path in written), (
                dependency
            )
        for path in outputs(stage):
            written += (
                [
                    path.replace("${item.run}", run).replace("${item.seed}", str(seed))
                    for run, seed in cells(stage)
                ]
                if "matrix" in stage
                else [path]
            )


def test_the_label_set_stays_where_it_is(stages: Document, params: Document) -> None:
    """DVC deletes an output before its stage runs; without `persist` no run could be resumed."""
    assert outputs(stages["infer"]) == {params["infer"]["output"]: {"persist": True}}
    assert params["infer"]["if_different"] == "replace"


def test_what_dvc_keeps_is_not_in_git(repo_root: Path, stages: Document, params: Document) -> None:
    ignored = (repo_root / ".gitignore").read_text().split()
    for stage in stages.values():
        for path in outputs(stage):
            assert "/" + path.split("/")[0] in ignored
    beside = (".lease", ".lease-0-of-3", ".lease-turn", ".replaced")
    for name in (f"/{params['infer']['output']}{suffix}" for suffix in beside):
        assert any(fnmatch(name, pattern) for pattern in ignored), name
