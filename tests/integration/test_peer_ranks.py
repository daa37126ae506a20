"""Peers as ranks of torchrun: what they would be taught in turn in one process, and so trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.test_train_kill import COMMON, flags, results
from tests.integration.test_train_resume import STUDENT

if TYPE_CHECKING:
    from tests.conftest import Project

PEERS = {"targets": "peers", "members": 3, "temperature": 2.0}


def train(project: Project, ranks: int, **settings: Any) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    return subprocess.run(
        [*launcher, "softlabel", "train-student", *flags(COMMON | PEERS | settings)],
        cwd=project.root,
        # The arithmetic of one thread, as torchrun has it.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "dies"),
    [
        ({"exchange_epochs": 2}, 15),
        ({"member_data": "disjoint"}, 8),
        ({"exchange_steps": 3}, 15),
    ],
)
def test_ranks_train_what_turns_do(
    project: Project, tmp_path_factory: pytest.TempPathFactory, more: dict[str, Any], dies: int
) -> None:
    """One of two ranks is killed within an epoch, and they go on."""
    (project.root / "watched.py").write_text(STUDENT)
    together = project.copy(tmp_path_factory.mktemp("together") / "project")
    in_turn = train(project, ranks=1, **more)
    assert in_turn.returncode == 0, in_turn.stderr
    (together.root / "die").write_text(str(dies))
    killed = train(together, ranks=2, **more)
    assert killed.returncode != 0
    assert not list(together.root.rglob("student.json"))
    outcome = train(together, ranks=2, **more)
    assert outcome.returncode == 0, outcome.stderr
    assert "Warning" not in outcome.stderr
    assert "goes on after" in outcome.stderr
    assert results(together.root) == results(project.root)
    members = sorted(Path(name).parts[1] for name in results(project.root) if "train.json" in name)
    assert members == ["member-0", "member-1", "member-2"]
    assert [line.split()[1] for line in outcome.stdout.splitlines() if "wrote" in line] == [
        f"out/{name}:" for name in members
    ]


@pytest.mark.slow
def test_more_ranks_than_members_are_refused(project: Project) -> None:
    (project.root / "watched.py").write_text(STUDENT)
    outcome = train(project, ranks=3, members=2)
    assert outcome.returncode != 0
    assert "torchrun started 3 ranks for 2 members; pass --nproc-per-node 2" in outcome.stderr
