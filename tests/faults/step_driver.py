"""Runs one command over and over and strikes at its first, second, ... change of the file system.

usage: step_driver.py JOB.json     one JSON line a step on stdout; the test judges them

An audit hook sees every change (open for writing, rename, remove, mkdir, rmdir) just before it
happens. An fsync of a file is one more, and a kill there leaves half of what was written. Each
attempt is a fork of this process, which has everything imported and no threads started, so
hundreds of them take seconds. A struck attempt is followed by the same command left alone. Folders
are listed in an order that removes plan.json first: POSIX promises none.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pandas
import pyarrow
import typer

from softlabel import cli
from softlabel.display import summary, terminal
from softlabel.stages import infer

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "fsync"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# What a run would import or build first; pyarrow looks for pandas at its first array.
READY = (onnx, onnxruntime, pandas, infer, summary, terminal, pyarrow.array([0]))


class Strike:
    """An audit hook that strikes at change number `step` of this process."""

    def __init__(self, step: int, how: str, log: Path) -> None:
        self._step = step
        self._how = how
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._lock = threading.Lock()
        self._seen = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if not opens and event not in CHANGES:
            return
        with self._lock:
            self._seen += 1
            if self._seen != self._step + 1:
                return
        os.write(self._log, f"{event} {arguments[0]!s}".encode())
        if self._how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
        if event == "fsync" and self._how == "SIGKILL":
            os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
        os.kill(os.getpid(), getattr(signal, self._how))


class Listing:
    """`os.scandir`, in falling order of the names."""

    def __init__(self, path: Any = ".") -> None:
        with SCANDIR(path) as entries:
            self._entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

    def __enter__(self) -> Iterator[os.DirEntry[str]]:
        return iter(self._entries)

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return iter(self._entries)


SCANDIR = os.scandir
FSYNC = os.fsync


def fsync(handle: int) -> None:
    """`os.fsync`, announced; a folder has nothing to tear, so its own goes by in silence."""
    if stat.S_ISREG(os.fstat(handle).st_mode):
        sys.audit("fsync", handle)
    FSYNC(handle)


def attempt(work: Path, arguments: list[str], step: int | None, how: str) -> dict[str, Any]:
    """Run the command in a fork; return its exit code, -9 for killed, its stderr and the change."""
    beside = work.with_name("attempt")
    beside.mkdir(exist_ok=True)
    hit, stderr = beside / "hit", beside / "stderr"
    hit.write_text("")
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = run(work, arguments, stderr, step, how, hit)
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": status, "stderr": stderr.read_text(), "hit": hit.read_text()}


def run(
    work: Path, arguments: list[str], stderr: Path, step: int | None, how: str, hit: Path
) -> int:
    os.chdir(work)
    handle = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
    os.dup2(handle, 1)
    os.scandir = Listing  # type: ignore[assignment]
    os.fsync = fsync  # type: ignore[assignment]
    sys.argv = ["softlabel", *arguments]
    if step is not None:
        sys.addaudithook(Strike(step, how, hit))
    try:
        cli.main()
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(ended.code or 0)
    return 70


def folders(work: Path) -> dict[str, dict[str, str]]:
    """The files of each folder in `work` that the command may write, by name, as hexadecimal."""
    return {
        folder.name: {path.name: path.read_bytes().hex() for path in sorted(folder.iterdir())}
        for folder in sorted(work.glob("labels*"))
        if folder.is_dir()
    }


def main() -> None:
    typer.main.get_command(cli.app)
    job = json.loads(Path(sys.argv[1]).read_text())
    template, work = Path(job["template"]), Path(job["work"])
    for step in itertools.count():
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(template, work)
        struck = attempt(work, job["arguments"], step, job["how"])
        line = {"step": step, "struck": struck, "after": folders(work)}
        if struck["hit"]:
            line["again"] = attempt(work, job["arguments"], None, job["how"])
        line["end"] = folders(work)
        line["beside"] = sorted(path.name for path in work.iterdir())
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        if not struck["hit"]:
            return


if __name__ == "__main__":
    main()
