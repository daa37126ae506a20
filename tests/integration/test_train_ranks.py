"""Two ranks under torchrun train on what one process would: each sample once, with its label."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration import ranks_driver
from tests.unit.builders import write_labels, write_source

# The last of six batches has a single sample: one of two ranks has none of its own there.
SHARDS, BATCH, STEPS, EPOCHS = (10, 1, 19, 4, 7), 8, 6, 2
JOBS = list(itertools.product((8, 65536), (1, 3)))


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_source(tmp_path / "data", SHARDS)
    write_labels(tmp_path / "labels", source, batch_size=3, shard_rows=6)


def job(output: str, **changed: Any) -> dict[str, Any]:
    params = {
        "model": "softlabel.pipeline.small_models:mlp",
        "model_args": {"inputs": 6, "hidden": 8},
        "source": "data",
        "validation": "data",
        "loss": "kd",
        "labels": "labels",
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "device": "cpu",
        "logger": "none",
        "seed": 5,
        "output": output,
    }
    return {"params": params | changed}


def torchrun(ranks: int, *jobs: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    Path("jobs.json").write_text(json.dumps(jobs))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, f"--nproc-per-node={ranks}", ranks_driver.__file__, "jobs.json"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def seen(output: str, rank: int) -> list[int]:
    lines = Path(f"{output}.seen-{rank}").read_text().splitlines()
    return [int(number) for line in lines for number in line.split()]


def batches(output: str) -> list[list[int]]:
    """The batches of a training in one process."""
    order = seen(output, 0)
    rows = sum(SHARDS)
    return [
        order[epoch * rows :][:rows][first : first + BATCH]
        for epoch in range(EPOCHS)
        for first in range(0, rows, BATCH)
    ]


def history(output: str) -> list[dict[str, float]]:
    found = json.loads((Path(output) / "train.json").read_text())["history"]
    return [{name: value for name, value in e.items() if value is not None} for e in found]


@pytest.mark.slow
def test_ranks_and_parts_see_the_batches_of_one_process() -> None:
    jobs = {f"{rows}-{parts}": {"shuffle_rows": rows, "accumulate": parts} for rows, parts in JOBS}
    outcome = torchrun(2, *(job(f"two-{name}", **values) for name, values in jobs.items()))
    assert outcome.returncode == 0, outcome.stderr
    assert "Warning" not in outcome.stderr
    for name, values in jobs.items():
        ranks_driver.run(job(f"one-{name}", **values | {"accumulate": 1}), rank=0)
        for rank in range(2):
            assert seen(f"two-{name}", rank) == [
                number
                for batch in batches(f"one-{name}")
                for number in batch[rank * len(batch) // 2 : (rank + 1) * len(batch) // 2]
            ]
        for two, one in zip(history(f"two-{name}"), history(f"one-{name}"), strict=True):
            assert two == pytest.approx(one, rel=1e-5)
        weights = [load_file(f"{which}-{name}/student.safetensors") for which in ("two", "one")]
        torch.testing.assert_close(*weights)
    assert seen("one-8-1", 0) != seen("one-65536-1", 0)


@pytest.mark.slow
def test_ranks_and_parts_have_other_shares_of_the_hard_labels(tmp_path: Path) -> None:
    source = write_source(tmp_path / "some", SHARDS, unlabelled=3)
    write_labels(tmp_path / "of-some", source)
    some: dict[str, Any] = {"source": "some", "labels": "of-some", "soft_weight": 0.3}
    two, one = job("two", **some, accumulate=3), job("one", **some)
    outcome = torchrun(2, two | {"unlabelled": 3})
    assert outcome.returncode == 0, outcome.stderr
    ranks_driver.run(one | {"unlabelled": 3}, rank=0)
    for together, alone in zip(history("two"), history("one"), strict=True):
        assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_two_ranks_killed_and_one_goes_on() -> None:
    ranks_driver.run(job("quiet"), rank=0)
    outcome = torchrun(2, job("killed", checkpoint_steps=3) | {"die": STEPS + 5})
    assert outcome.returncode != 0
    assert not Path("killed/student.json").exists()
    Path("killed.seen-0").unlink()
    ranks_driver.run(job("killed", checkpoint_steps=3), rank=0)
    expected = batches("quiet")[STEPS + 3 :]
    assert seen("killed", 0) == [number for batch in expected for number in batch]
    for other, one in zip(history("killed"), history("quiet"), strict=True):
        assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_one_process_stops_and_two_ranks_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks_driver.run(job("quiet"), rank=0)
    stopped = job("stopped", checkpoint_steps=3)
    monkeypatch.setattr(os, "kill", _stop)
    with pytest.raises(KeyboardInterrupt):
        ranks_driver.run(stopped | {"die": 5}, rank=0)
    Path("stopped.seen-0").unlink()
    outcome = torchrun(2, stopped)
    assert outcome.returncode == 0, outcome.stderr
    together = sorted(seen("stopped", 0) + seen("stopped", 1))
    assert together == sorted(number for batch in batches("quiet")[3:] for number in batch)
    for other, one in zip(history("stopped"), history("quiet"), strict=True):
        assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_an_error_of_all_ranks_is_said_once() -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    words = ["-m", "softlabel", "train-student", "--model=a:b", "--loss=kd", "--labels=nowhere"]
    outcome = subprocess.run(
        [*launcher, *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert outcome.returncode != 0
    assert outcome.stderr.count("softlabel: ") == 1, outcome.stderr
    assert "softlabel: error: nowhere: no such label set" in outcome.stderr


def _stop(process: int, number: int) -> None:
    raise KeyboardInterrupt
