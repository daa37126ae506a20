"""A full disk while infer writes: one clear line, what was finished stays, more room mends it."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from softlabel.pipeline import publish

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome, Project

# 96 classes of 4 bytes and what stands beside them: shards of about 120 kB, eight of them.
CLASSES = tuple(f"class {number}" for number in range(96))
COMMAND = (
    "infer", "--codec", "dense-f32", "--batch-size", "16", "--shard-rows", "256",
    "--allow-bad-teacher",
)  # fmt: skip
SHARDS = 8


@pytest.fixture(scope="module")
def quiet(make_project: Callable[[], Project]) -> Project:
    """A project whose labels/ were made with all the room in the world."""
    project = make_project()
    project.source(shards=(256,) * SHARDS, classes=CLASSES)
    project.teacher(classes=CLASSES)
    outcome = project.run(*COMMAND)
    assert outcome.code == 0, outcome.stderr
    assert len(finished(project.root / "labels")) == SHARDS
    return project


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 640 kB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=640k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of its own needs the right to mount a tmpfs: run this test as root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def finished(labels: Path) -> set[str]:
    return {path.stem for path in labels.glob("part-*.json")}


def expect_sound(labels: Path, quiet: Project) -> None:
    """Every receipt has its shard, whole; nothing is left under a temporary name."""
    expected = quiet.files()
    names = {path.name for path in labels.iterdir()}
    assert names <= expected.keys()
    for name in names:
        assert (labels / name).read_bytes() == expected[name], name
    for stem in finished(labels):
        receipt = json.loads((labels / f"{stem}.json").read_text())
        data = (labels / f"{stem}.parquet").read_bytes()
        assert hashlib.sha256(data).hexdigest() == receipt["sha256"]


def expect_clear(outcome: Outcome) -> None:
    assert outcome.code == 4, outcome.stderr
    assert "Traceback" not in outcome.stderr
    (line,) = [line for line in outcome.stderr.splitlines() if "error" in line]
    assert "No space left on device" in line
    assert "run the same command again" in line


@pytest.mark.slow
def test_a_small_disk(quiet: Project, small_disk: Path) -> None:
    labels = small_disk / "labels"
    command = (*COMMAND, "--output", str(labels))
    outcome = quiet.run(*command)
    expect_clear(outcome)
    assert str(labels) in outcome.stderr
    whole = finished(labels)
    assert 1 <= len(whole) < SHARDS
    expect_sound(labels, quiet)
    # Trying again on the same disk loses nothing.
    expect_clear(quiet.run(*command))
    assert finished(labels) >= whole
    expect_sound(labels, quiet)
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    outcome = quiet.run(*command, "--json")
    assert outcome.code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["shards_kept"] >= len(whole)
    assert {path.name: path.read_bytes() for path in labels.iterdir()} == quiet.files()
    assert [path.name for path in small_disk.iterdir()] == ["labels"]


def test_a_disk_without_any_room(quiet: Project, small_disk: Path) -> None:
    """Not even the lease can be written; the run says so and leaves nothing in the way."""
    with (
        pytest.raises(OSError, match="No space"),
        open(small_disk / "filler", "wb", buffering=0) as filler,
    ):
        while True:
            filler.write(bytes(4096))
    command = (*COMMAND, "--output", str(small_disk / "labels"))
    outcome = quiet.run(*command)
    assert outcome.code == 4, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "No space left on device" in outcome.stderr
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    assert quiet.run(*command).code == 0
    assert {p.name: p.read_bytes() for p in (small_disk / "labels").iterdir()} == quiet.files()


class FullDisk:
    """Lets `room` bytes be published and says then what a full disk says."""

    def __init__(self, room: int) -> None:
        self.room = room

    def open(self, path: Path, mode: str) -> Any:
        file = builtins.open(path, mode)
        return _Limited(file, self) if mode == "wb" else file


class _Limited:
    def __init__(self, file: IO[bytes], disk: FullDisk) -> None:
        self._file = file
        self._disk = disk

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if size > self._disk.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._disk.room -= size
        return self._file.write(data)

    def __enter__(self) -> _Limited:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def published(project: Project) -> int:
    return sum(len(data) for data in project.files().values())


@pytest.mark.parametrize("share", [0.0, 0.005, 0.2, 0.5, 0.77, 0.985, 0.9999])
def test_room_that_ends_at_any_moment(
    quiet: Project,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    """In the plan, in a shard, in a receipt, in the manifest: the same end and the same cure."""
    labels = tmp_path / "labels"
    monkeypatch.chdir(quiet.root)
    disk = FullDisk(int(share * published(quiet)))
    monkeypatch.setattr(publish, "open", disk.open, raising=False)
    expect_clear(command(*COMMAND, "--output", str(labels)))
    expect_sound(labels, quiet)
    assert not (labels / "labelset.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]
    disk.room = 10**9
    outcome = command(*COMMAND, "--output", str(labels))
    assert outcome.code == 0, outcome.stderr
    assert {path.name: path.read_bytes() for path in labels.iterdir()} == quiet.files()


def test_room_that_is_found_missing_when_the_file_is_synced(
    quiet: Project, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that allocates late says it at fsync: then nothing is published either."""
    labels = tmp_path / "labels"
    monkeypatch.chdir(quiet.root)
    fsync, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    expect_clear(command(*COMMAND, "--output", str(labels)))
    expect_sound(labels, quiet)
    assert command(*COMMAND, "--output", str(labels)).code == 0
    assert {path.name: path.read_bytes() for path in labels.iterdir()} == quiet.files()
