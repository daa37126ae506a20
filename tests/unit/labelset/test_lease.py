import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softlabel.pipeline.labelset.lease import Lease, host_identity, lease, lease_path, turn
from softlabel.schemas.errors import EnvironmentFault, LeaseHeld

# So long that a test would never end that waited for a heartbeat it need not wait for.
NEVER = 3600.0
SHORT = 0.05

HOLD = """
import sys
from pathlib import Path
from softlabel.pipeline.labelset.lease import lease
share = tuple(map(int, sys.argv[2:])) or None
with lease(Path(sys.argv[1]), beat_seconds=0.05, share=share):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(folder: Path, *share: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lease until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(folder), *map(str, share)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def write_owner(
    folder: Path, beats: int, share: tuple[int, int] | None = None, **owner: Any
) -> None:
    document = {"host": "elsewhere", "hostname": "far", "pid": 7, "token": "t", "beats": beats}
    # In place, as a holder does it: a reader never finds the file empty.
    with open(os.open(lease_path(folder, share), os.O_WRONLY | os.O_CREAT), "w") as file:
        file.write(json.dumps(document | owner))
        file.truncate()


def wait_until_lost(held: Lease) -> None:
    deadline = time.monotonic() + 30
    while not held.lost:
        assert time.monotonic() < deadline, "the takeover was not noticed"
        time.sleep(0.01)


def test_the_lease_lies_beside_the_folder_and_goes_with_its_holder(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    with lease(folder) as held:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["labels", "labels.lease"]
        assert list(folder.iterdir()) == []
        held.check()
    assert not lease_path(folder).exists()


def test_the_lease_file_names_its_owner_and_beats(tmp_path: Path) -> None:
    with lease(tmp_path / "labels", SHORT):
        path = lease_path(tmp_path / "labels")
        first = json.loads(path.read_text())
        assert (first["pid"], first["host"]) == (os.getpid(), host_identity())
        deadline = time.monotonic() + 30
        while json.loads(path.read_text())["beats"] < first["beats"] + 3:
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.01)


def test_the_lease_goes_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the work"), lease(tmp_path / "labels"):
        raise RuntimeError("the work")
    assert list(tmp_path.iterdir()) == []


def test_a_second_holder_in_another_process_is_refused_by_pid(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    with holder(folder) as process:
        refusal = rf"labels\.lease: held by process {process.pid} on \S+; wait for it or stop it"
        with pytest.raises(LeaseHeld, match=refusal), lease(folder, NEVER):
            pass
        assert lease_path(folder).exists()


def test_a_second_holder_in_this_process_is_refused(tmp_path: Path) -> None:
    with lease(tmp_path / "labels"):
        refusal = pytest.raises(LeaseHeld, match=f"held by process {os.getpid()} on")
        with refusal, lease(tmp_path / "labels", NEVER):
            pass
    with lease(tmp_path / "labels", NEVER):
        pass


def test_leases_on_two_folders_do_not_meet(tmp_path: Path) -> None:
    with lease(tmp_path / "one"), lease(tmp_path / "two"):
        pass


def test_the_lease_is_free_after_the_holders_exit(tmp_path: Path) -> None:
    with holder(tmp_path / "labels") as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0
        assert not lease_path(tmp_path / "labels").exists()
        with lease(tmp_path / "labels", NEVER):
            pass


def test_the_lease_of_a_killed_holder_is_taken_at_once(tmp_path: Path) -> None:
    with holder(tmp_path / "labels") as process:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert lease_path(tmp_path / "labels").exists()
        with lease(tmp_path / "labels", NEVER):
            owner = json.loads(lease_path(tmp_path / "labels").read_text())
            assert owner["pid"] == os.getpid()
    assert not lease_path(tmp_path / "labels").exists()


def test_a_beating_holder_on_another_host_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    write_owner(folder, beats=0)
    stop = threading.Event()

    def beat() -> None:
        beats = 0
        while not stop.wait(SHORT):
            beats += 1
            write_owner(folder, beats)

    other = threading.Thread(target=beat)
    other.start()
    try:
        # A beat of a second leaves a busy machine time to see one of the other's.
        with pytest.raises(LeaseHeld, match="held by process 7 on far"), lease(folder, 1.0):
            pass
    finally:
        stop.set()
        other.join()
    assert json.loads(lease_path(folder).read_text())["host"] == "elsewhere"


def test_a_still_holder_on_another_host_is_replaced(tmp_path: Path) -> None:
    write_owner(tmp_path / "labels", beats=12)
    with lease(tmp_path / "labels", SHORT) as held:
        held.check()
        assert json.loads(lease_path(tmp_path / "labels").read_text())["pid"] == os.getpid()
    assert not lease_path(tmp_path / "labels").exists()


def test_the_lease_of_a_dead_process_on_this_host_is_taken_at_once(tmp_path: Path) -> None:
    write_owner(tmp_path / "labels", beats=3, host=host_identity())
    with lease(tmp_path / "labels", NEVER):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_lease_file_that_says_nothing_is_taken(tmp_path: Path, content: bytes) -> None:
    lease_path(tmp_path / "labels").write_bytes(content)
    with lease(tmp_path / "labels", NEVER):
        pass
    assert not lease_path(tmp_path / "labels").exists()


def test_a_holder_that_was_replaced_notices_and_leaves_the_others_lease(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    with lease(folder, SHORT) as held:
        write_owner(folder, beats=1, pid=99)
        wait_until_lost(held)
        with pytest.raises(LeaseHeld, match=r"labels\.lease: another writer took over"):
            held.check()
    assert json.loads(lease_path(folder).read_text())["pid"] == 99


def test_a_place_without_room_for_the_lease_is_an_environment_fault(tmp_path: Path) -> None:
    fault = pytest.raises(EnvironmentFault, match=r"labels\.lease: the lease cannot be opened")
    with fault, lease(tmp_path / "absent" / "labels"):
        pass


@pytest.mark.parametrize("share", [None, (1, 4), (0, 3)], ids=["the whole", "itself", "of three"])
def test_a_share_refuses_what_does_not_go_with_it(
    tmp_path: Path, share: tuple[int, int] | None
) -> None:
    folder = tmp_path / "labels"
    with holder(folder, 1, 4) as process:
        with (
            pytest.raises(LeaseHeld, match=f"labels.lease-1-of-4: held by process {process.pid} "),
            lease(folder, NEVER, share),
        ):
            pass
        with lease(folder, NEVER, (2, 4)), lease(folder, NEVER, (3, 4)):
            pass
    # A dead one holds nothing; who has the whole to itself clears its name away.
    assert lease_path(folder, (1, 4)).exists()
    with lease(folder, NEVER, share):
        assert lease_path(folder, (1, 4)).exists() == (share is not None)


def test_the_whole_refuses_a_share(tmp_path: Path) -> None:
    with (
        holder(tmp_path / "labels") as process,
        pytest.raises(LeaseHeld, match=f"labels.lease: held by process {process.pid} "),
        lease(tmp_path / "labels", NEVER, (1, 4)),
    ):
        pass
    assert not lease_path(tmp_path / "labels", (1, 4)).exists()


@pytest.mark.parametrize(("mine", "theirs"), [(None, (1, 4)), ((1, 4), None)])
def test_a_beating_heart_on_another_host_counts_for_shares_too(
    tmp_path: Path, mine: tuple[int, int] | None, theirs: tuple[int, int] | None
) -> None:
    """Where the file system carries no locks between hosts."""
    folder = tmp_path / "labels"
    write_owner(folder, 1, share=theirs)
    stop = threading.Event()

    def beat() -> None:
        beats = 1
        while not stop.wait(SHORT / 5):
            beats += 1
            write_owner(folder, beats, share=theirs)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with (
            pytest.raises(LeaseHeld, match="held by process 7 on far"),
            lease(folder, 1.0, mine),
        ):
            pass
    finally:
        stop.set()
        beating.join()


def test_turns_are_taken_one_after_the_other(tmp_path: Path) -> None:
    inside, most = [], []

    def take() -> None:
        with turn(tmp_path / "labels"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    takers = [threading.Thread(target=take) for _ in range(5)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(60)
    assert most == [1] * 5
    assert list(tmp_path.iterdir()) == []
