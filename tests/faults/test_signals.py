"""SIGINT and SIGTERM wherever a stage may be when they come, and not in infer alone."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from tests.conftest import Project

SIGNALS = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)

# A model that takes its time where WAITS says so, and tells by a file that it is there.
MODULE = """
import pathlib, time, torch

def wait(where):
    if pathlib.Path(where).exists():
        pathlib.Path("here").touch()
        time.sleep(60)

class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        wait("wait-when-built")
        self.head = torch.nn.Linear(64, num_classes)

    def forward(self, x):
        if torch.compiler.is_exporting():
            wait("wait-when-exported")
        else:
            wait("wait-when-run")
        return self.head(x.flatten(1))
"""


def stop_where_it_waits(
    project: Project, waits: str, number: signal.Signals, *arguments: str
) -> tuple[int, str]:
    """Start the command, signal it once it waits at `waits`, and return its code and stderr."""
    (project.root / waits).touch()
    running = project.spawn(*arguments)
    wait_for(project.root / "here", running)
    sent = time.monotonic()
    running.send_signal(number)
    _, stderr = running.communicate(timeout=30)
    assert time.monotonic() - sent < 10
    return running.returncode, stderr


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_stopped(ended: tuple[int, str], code: int, verb: str) -> None:
    assert ended[0] == code, ended
    assert "Traceback" not in ended[1]
    assert (
        ended[1]
        .splitlines()[-1]
        .startswith(f"softlabel: stopped; continue with: softlabel {verb} ")
    )


@pytest.mark.slow
@SIGNALS
@pytest.mark.parametrize("waits", ["wait-when-built", "wait-when-exported"])
def test_export(empty_project: Project, waits: str, number: signal.Signals, code: int) -> None:
    Path("slow.py").write_text(MODULE)
    state = torch.nn.Linear(64, 3).state_dict()
    save_file({f"head.{name}": value for name, value in state.items()}, "w.safetensors")
    shape = ("--height=8", "--width=8", "--channels=1", "--mean=0", "--std=1")
    names = ("--classes=a", "--classes=b", "--classes=c")
    arguments = ("export", "--model", "slow:Net", "--weights", "w.safetensors", *shape, *names)
    ended = stop_where_it_waits(empty_project, waits, number, *arguments)
    assert_stopped(ended, code, "export")
    assert not Path("models").exists()


@pytest.mark.slow
@SIGNALS
@pytest.mark.parametrize("waits", ["wait-when-built", "wait-when-run"])
def test_training(project: Project, waits: str, number: signal.Signals, code: int) -> None:
    Path("slow.py").write_text(MODULE)
    arguments = ("train-student", "--model", "slow:Net", "--logger", "none", "--output", "out")
    ended = stop_where_it_waits(project, waits, number, *arguments)
    assert_stopped(ended, code, "train-student")
    assert not Path("out/student.json").exists()


@SIGNALS
def test_infer_while_another_host_is_waited_for(
    project: Project, number: signal.Signals, code: int
) -> None:
    Path("labels.lease").write_text('{"host": "far", "pid": 1, "token": "t"}')
    running = project.spawn("infer", "--output", "labels")
    assert running.stderr is not None
    assert running.stderr.readline().startswith("teacher ")
    time.sleep(0.5)
    running.send_signal(number)
    _, stderr = running.communicate(timeout=10)
    assert_stopped((running.returncode, stderr), code, "infer")
    assert not Path("labels").exists()
