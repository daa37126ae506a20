"""infer struck at every single change it makes to the file system, then started again.

Real SIGKILL at chance moments (test_infer_kill.py) finds what nobody thought of; this finds what
chance would need years for: the moment between two renames.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Project

DRIVER = Path(__file__).with_name("step_driver.py")
# 48 rows in three label shards of four batches.
RUN = ["infer", "--batch-size", "4", "--shard-rows", "16"]
FACTORED = [*RUN, "--codec", "factored"]
REPLACE = [*RUN, "--teacher", "models/new.onnx", "--if-different", "replace"]
OVERWRITE = [*RUN, "--overwrite"]
Step = dict[str, Any]
Files = dict[str, str]


@pytest.fixture(scope="module")
def templates(make_project: Callable[[], Project]) -> Path:
    """Projects in the states that a command may meet, each a folder by its name."""
    project: Project = make_project()
    root = project.root
    base = root / "nothing"
    base.mkdir()
    inside = type(project)(base)
    inside.source(shards=(48,))
    inside.teacher()
    inside.teacher("models/new.onnx", sharpness=50)
    for name in ("complete", "new"):
        shutil.copytree(base, root / name)
    complete = type(project)(root / "complete")
    assert complete.run(*RUN).code == 0
    assert type(project)(root / "new").run(*REPLACE).code == 0
    shutil.copytree(complete.root, root / "broken")
    shard = root / "broken/labels/part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    shutil.copytree(complete.root, root / "unfinished")
    (root / "unfinished/labels/labelset.json").unlink()
    (root / "unfinished/labels/part-00002.json").unlink()
    # A run that was to replace was killed, and its teacher changed again since.
    shutil.copytree(root / "unfinished", root / "replaced twice")
    shutil.copytree(complete.root / "labels", root / "replaced twice/labels.replaced")
    return root


@pytest.fixture(scope="module")
def factored(make_project: Callable[[], Project]) -> Path:
    """Projects whose teacher has more classes than its last layer has inputs, likewise."""
    project: Project = make_project()
    base = type(project)(project.root / "nothing")
    base.root.mkdir()
    classes = [f"class-{number}" for number in range(70)]
    base.source(shards=(48,), classes=classes)
    base.teacher(classes=classes)
    complete = base.copy(project.root / "complete")
    assert complete.run(*FACTORED).code == 0
    assert base.copy(project.root / "dense").run(*RUN).code == 0
    headless = complete.copy(project.root / "headless")
    (headless.root / "labels/head.safetensors").write_bytes(b"torn")
    return project.root


def strike(templates: Path, tmp_path: Path, start: str, how: str, command: list[str]) -> list[Step]:
    """What became of the command from state `start`, struck at each of its steps in turn."""
    job = {
        "template": str(templates / start),
        "work": str(tmp_path / "work"),
        "arguments": command,
        "how": how,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path / "job.json")],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(steps) > 5
    *struck, last = steps
    assert all(step["struck"]["hit"] for step in struck)
    assert last["struck"]["code"] == 0
    return steps


def label_files(folder: Path) -> Files:
    return {path.name: path.read_bytes().hex() for path in sorted(folder.iterdir())}


def assert_ends_as_if_left_alone(steps: list[Step], expected: Files) -> None:
    for step in steps:
        again = step.get("again", {"code": 0, "stderr": ""})
        assert again["code"] == 0, (step["struck"]["hit"], again["stderr"])
        assert step["end"] == {"labels": expected}, step["struck"]["hit"]
        assert step["beside"] == ["data", "labels", "models"], step["struck"]["hit"]


def test_killed_while_it_makes_a_set(templates: Path, tmp_path: Path) -> None:
    steps = strike(templates, tmp_path, "nothing", "SIGKILL", RUN)
    assert {step["struck"]["code"] for step in steps[:-1]} == {-9}
    assert len(steps) > 15
    assert_ends_as_if_left_alone(steps, label_files(templates / "complete/labels"))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["complete", "unfinished", "replaced twice"])
def test_killed_while_it_replaces(templates: Path, tmp_path: Path, start: str) -> None:
    steps = strike(templates, tmp_path, start, "SIGKILL", REPLACE)
    new, old = (label_files(templates / name / "labels") for name in ("new", "complete"))
    if start != "unfinished":
        for step in steps:
            after = step["after"]
            assert after.get("labels") in (new, old) or after.get("labels.replaced") == old
    assert_ends_as_if_left_alone(steps, new)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["complete", "unfinished"])
def test_killed_while_it_overwrites(templates: Path, tmp_path: Path, start: str) -> None:
    steps = strike(templates, tmp_path, start, "SIGKILL", OVERWRITE)
    assert_ends_as_if_left_alone(steps, label_files(templates / "complete/labels"))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["broken", "unfinished"])
def test_killed_while_it_mends(templates: Path, tmp_path: Path, start: str) -> None:
    steps = strike(templates, tmp_path, start, "SIGKILL", RUN)
    assert_ends_as_if_left_alone(steps, label_files(templates / "complete/labels"))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["nothing", "complete"])
def test_no_room_left_on_the_disk(templates: Path, tmp_path: Path, start: str) -> None:
    steps = strike(templates, tmp_path, start, "full", REPLACE)
    for step in steps[:-1]:
        struck = step["struck"]
        assert "Traceback" not in struck["stderr"], struck
        if struck["hit"] == "os.mkdir .":
            # To make a folder that is there needs no room.
            assert struck["code"] == 0
            continue
        assert struck["code"] == 4, struck
        assert "No space left" in struck["stderr"].splitlines()[-1], struck
    assert_ends_as_if_left_alone(steps, label_files(templates / "new/labels"))


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_stopped(templates: Path, tmp_path: Path, how: str, code: int) -> None:
    steps = strike(templates, tmp_path, "nothing", how, RUN)
    complete = label_files(templates / "complete/labels")
    for step in steps[:-1]:
        struck = step["struck"]
        assert struck["code"] == code, struck
        assert "Traceback" not in struck["stderr"], struck
        assert "continue with: softlabel infer" in struck["stderr"].splitlines()[-1], struck
        for name, content in step["after"].get("labels", {}).items():
            assert complete[name] == content, struck
    assert_ends_as_if_left_alone(steps, complete)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["nothing", "headless"])
def test_killed_while_it_makes_or_mends_a_factored_set(
    factored: Path, tmp_path: Path, start: str
) -> None:
    steps = strike(factored, tmp_path, start, "SIGKILL", FACTORED)
    complete = label_files(factored / "complete/labels")
    assert "head.safetensors" in complete
    for step in steps:
        files = step["after"].get("labels", {})
        if any(name.startswith("part-") for name in files):
            assert start == "headless" or files["head.safetensors"] == complete["head.safetensors"]
    assert_ends_as_if_left_alone(steps, complete)


@pytest.mark.slow
def test_killed_while_a_factored_set_replaces_another(factored: Path, tmp_path: Path) -> None:
    replace = [*FACTORED, "--if-different", "replace"]
    steps = strike(factored, tmp_path, "dense", "SIGKILL", replace)
    assert_ends_as_if_left_alone(steps, label_files(factored / "complete/labels"))
