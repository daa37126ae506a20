import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from softlabel.pipeline.prefetch import prefetch


def names_of_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


class Source:
    """Counts what was asked of it, and tells whether it was closed."""

    def __init__(self, items: int) -> None:
        self.items = items
        self.made = 0
        self.closed = False

    def __iter__(self) -> Iterator[int]:
        try:
            for item in range(self.items):
                self.made += 1
                yield item
        finally:
            self.closed = True


def wait_for(source: Source, made: int) -> None:
    deadline = time.monotonic() + 30
    while source.made < made:
        assert time.monotonic() < deadline, f"made only {source.made}"
        time.sleep(0.005)


@pytest.mark.parametrize("depth", [1, 3, 2000])
def test_items_come_in_order_and_all(depth: int) -> None:
    assert list(prefetch(iter(range(1000)), depth, "reader")) == list(range(1000))
    assert "reader" not in names_of_threads()


def test_none_and_empty() -> None:
    assert list(prefetch(iter([None, None]), 1, "reader")) == [None, None]
    assert list(prefetch(iter(()), 1, "reader")) == []


def test_items_are_made_in_a_thread_of_that_name() -> None:
    def ask() -> Iterator[str]:
        yield threading.current_thread().name

    assert list(prefetch(ask(), 1, "reader of part-00000")) == ["reader of part-00000"]


def test_an_error_comes_at_the_place_of_its_item() -> None:
    def fail() -> Iterator[int]:
        yield 0
        yield 1
        raise ValueError("item 2 is bad")

    items = prefetch(fail(), 5, "reader")
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="item 2 is bad"):
        next(items)
    assert "reader" not in names_of_threads()
    assert list(items) == []


def test_work_goes_on_while_the_consumer_is_busy() -> None:
    source = Source(100)
    items = prefetch(iter(source), 3, "reader")
    assert next(items) == 0
    wait_for(source, made=4)
    assert list(items) == list(range(1, 100))


def test_the_work_ahead_is_bounded() -> None:
    source = Source(100)
    items = prefetch(iter(source), 3, "reader")
    for taken in range(1, 4):
        next(items)
        wait_for(source, made=taken + 3)
        time.sleep(0.15)
        # Three wait in the queue, a fourth in the thread's hands.
        assert source.made <= taken + 3 + 1
    list(items)


def test_stopping_early_ends_the_thread_and_closes_the_source() -> None:
    source = Source(100)
    kept = iter(source)  # held here, so that only prefetch can close it
    items = prefetch(kept, 2, "reader")
    for item in items:
        assert "reader" in names_of_threads()
        if item == 3:
            break
    items.close()
    assert "reader" not in names_of_threads()
    assert source.closed
    assert source.made < 100


def test_an_error_of_the_consumer_ends_a_chain_of_threads() -> None:
    source = Source(100)

    def consume() -> None:
        doubled = (2 * item for item in prefetch(iter(source), 2, "reader"))
        for item in prefetch(doubled, 2, "teacher"):
            if item == 6:
                raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full") as caught:
        consume()
    del caught
    deadline = time.monotonic() + 30
    while names_of_threads() & {"reader", "teacher"}:
        assert time.monotonic() < deadline, "threads stay"
        time.sleep(0.005)
    assert source.closed


def test_nothing_runs_before_the_first_item_is_asked_for() -> None:
    source = Source(3)
    items = prefetch(iter(source), 2, "reader")
    assert "reader" not in names_of_threads()
    items.close()
    assert source.made == 0


def test_a_chain_that_is_left_open_ends_with_the_program() -> None:
    """The second thread waits for the first one's item at that moment."""
    program = """
import time
from softlabel.pipeline.prefetch import prefetch

def slow():
    yield 0
    while True:
        time.sleep(0.5)
        yield 1

read = prefetch(slow(), 1, "reader")
ran = prefetch((item for item in read), 1, "teacher")
print(next(ran))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_an_error_is_let_go_of_with_what_it_held() -> None:
    """Without a cycle, so that nothing upstream lives until the collector comes by."""
    held = Source(1)
    gone = weakref.ref(held)

    def fail(source: Source) -> Iterator[int]:
        yield from source
        raise ValueError("no more")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="no more") as caught:
            list(prefetch(fail(held), 1, "reader"))
        del caught, held
        assert gone() is None
    finally:
        gc.enable()
