"""One writer a folder: a lease file beside it, with owner and heartbeat.

On one host an flock on the lease file decides: the kernel drops it with its process, however that
dies. A file system that does not carry locks between hosts is covered by the heartbeat: a lease
from another host counts as dead only after its counter stood still for three beats on our own
monotonic clock, so that no clock jump matters.

Shares of one run may write a folder together, each under a lease of its own. Who starts takes its
lease first and looks for others' then, so of two that do not go together one at least is refused:
a share beside the whole run, beside itself, or beside a share of another number of parts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softlabel.schemas.errors import EnvironmentFault, LeaseHeld

BEAT_SECONDS = 5.0
TURN_SECONDS = 0.05
# Part i of n, counted from 0.
Share = tuple[int, int]
_SHARE = re.compile(r"-([0-9]+)-of-([0-9]+)")


def lease_path(folder: Path, share: Share | None = None) -> Path:
    """The lease of `folder`: beside it, so that the folder itself holds nothing but data."""
    name = ".lease" if share is None else f".lease-{share[0]}-of-{share[1]}"
    return _beside(folder, name)


@contextlib.contextmanager
def lease(
    folder: Path, beat_seconds: float = BEAT_SECONDS, share: Share | None = None
) -> Iterator[Lease]:
    """Hold the lease on `folder`, or on a share of it, inside the block.

    Raises LeaseHeld when another writer lives that may not be there at the same time.
    """
    with _holding(lease_path(folder, share), beat_seconds) as held:
        _refuse_others(folder, share, beat_seconds)
        yield held


@contextlib.contextmanager
def turn(folder: Path, beat_seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Wait until no other share of `folder` is inside its block: for what shares do in common."""
    with contextlib.ExitStack() as stack:
        while True:
            with contextlib.suppress(LeaseHeld):
                stack.enter_context(_holding(_beside(folder, ".lease-turn"), beat_seconds))
                break
            time.sleep(TURN_SECONDS)
        yield


@contextlib.contextmanager
def _holding(path: Path, beat_seconds: float) -> Iterator[Lease]:
    handle = _open_locked(path)
    try:
        _wait_out_other_host(handle, path, beat_seconds)
        held = Lease(handle, path)
        stop = threading.Event()
        beater = threading.Thread(
            target=held.beat_until, args=(stop, beat_seconds), daemon=True, name="lease"
        )
        beater.start()
        try:
            yield held
        finally:
            stop.set()
            beater.join()
            if not held.lost:
                path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _refuse_others(folder: Path, share: Share | None, beat_seconds: float) -> None:
    """Raise LeaseHeld where a writer lives that may not be there beside this one."""
    if share is not None:
        _refuse_living(lease_path(folder), beat_seconds)
    for path, other in _share_leases(folder):
        if share is None or other[1] != share[1]:
            _refuse_living(path, beat_seconds)
            # Its holder is dead, and may never come again. Who opens it now is refused by ours.
            if share is None:
                path.unlink(missing_ok=True)


def _share_leases(folder: Path) -> list[tuple[Path, Share]]:
    begin = lease_path(folder).name
    found = []
    for path in sorted(lease_path(folder).parent.iterdir()):
        match = _SHARE.fullmatch(path.name.removeprefix(begin))
        if path.name.startswith(begin) and match is not None:
            found.append((path, (int(match[1]), int(match[2]))))
    return found


def _refuse_living(path: Path, beat_seconds: float) -> None:
    """Raise LeaseHeld where the lease is held. Two that only look do not refuse each other."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _wait_out_other_host(handle, path, beat_seconds)
    except BlockingIOError:
        raise _held(path, _read(handle)) from None
    finally:
        os.close(handle)


class Lease:
    """A lease that this process holds; `check` tells whether it still does."""

    def __init__(self, handle: int, path: Path) -> None:
        self._handle = handle
        self._path = path
        self._owner = {
            "host": host_identity(),
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "token": uuid.uuid4().hex,
        }
        self._beats = 0
        # A reader must not meet a lease that is half written.
        self._lock = threading.Lock()
        self.lost = False
        self._write()

    def check(self) -> None:
        """Raise LeaseHeld when another host took the lease over while this process slept."""
        with self._lock:
            self._look()
        if self.lost:
            raise LeaseHeld(f"{self._path}: another writer took over; this one stops")

    def beat_until(self, stop: threading.Event, seconds: float) -> None:
        """Write a new count every `seconds` until `stop` is set or the lease is lost."""
        while not stop.wait(seconds):
            with self._lock:
                self._look()
                if self.lost:
                    return
                self._beats += 1
                self._write()

    def _look(self) -> None:
        if _read(self._handle).get("token") != self._owner["token"]:
            self.lost = True

    def _write(self) -> None:
        data = json.dumps(self._owner | {"beats": self._beats}).encode()
        os.pwrite(self._handle, data, 0)
        os.ftruncate(self._handle, len(data))


def host_identity() -> str:
    """A name for this running system; containers on one kernel share it, as they share locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _open_locked(path: Path) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise EnvironmentFault(
                f"{path}: the lease cannot be opened: {error.strerror}; "
                "make its folder writable or choose another output"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read(handle)
            os.close(handle)
            raise _held(path, owner) from None
        # The holder before us may have removed the name between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def _wait_out_other_host(handle: int, path: Path, beat_seconds: float) -> None:
    owner = _read(handle)
    if not owner or owner.get("host") == host_identity():
        return
    deadline = time.monotonic() + 3 * beat_seconds
    while time.monotonic() < deadline:
        time.sleep(beat_seconds / 5)
        now = _read(handle)
        if now and now != owner:
            raise _held(path, now)


def _read(handle: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(handle, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _held(path: Path, owner: dict[str, Any]) -> LeaseHeld:
    return LeaseHeld(
        f"{path}: held by {_describe(owner)}; wait for it or stop it, then run this again"
    )


def _beside(folder: Path, suffix: str) -> Path:
    real = folder.resolve()
    return real.with_name(real.name + suffix)


def _describe(owner: dict[str, Any]) -> str:
    if "pid" not in owner:
        return "another process"
    return f"process {owner['pid']} on {owner.get('hostname', 'an unknown host')}"
