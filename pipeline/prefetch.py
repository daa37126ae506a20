"""Running an iterator in a thread of its own, a bounded number of items ahead."""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Abandoned(BaseException):
    """The program ends while a thread still waits for the items of another."""


class _End:
    """Marks the end of the items; carries the error that ended them, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Feeder(Generic[T]):
    def __init__(self, items: Iterator[T], depth: int) -> None:
        self.queue: queue.Queue[T | _End] = queue.Queue(depth)
        self.stopped = threading.Event()
        self._items = items

    def run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                if not self._put(item):
                    break
        except BaseException as caught:
            error = caught
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                with contextlib.suppress(Exception):
                    close()
            self._finish(_End(error))
            # The error's traceback holds this frame: together they would keep all items alive.
            del error

    def _finish(self, end: _End) -> None:
        if self._put(end):
            return
        # Whoever waits for an item now would wait for ever.
        with contextlib.suppress(queue.Empty):
            while True:
                self.queue.get_nowait()
        self.queue.put_nowait(_End(Abandoned()))

    def _put(self, item: T | _End) -> bool:
        while not self.stopped.is_set():
            try:
                self.queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return not self.stopped.is_set()
        return False


def prefetch(items: Iterator[T], depth: int, name: str) -> Generator[T, None, None]:
    """Yield `items` in order while a thread called `name` works up to `depth` items ahead.

    An error in the thread is raised here, at the place of the item that failed. Leaving the
    iteration early stops the thread after the item it is working on.
    """
    feeder = _Feeder(items, depth)
    thread = threading.Thread(target=feeder.run, daemon=True, name=name)
    thread.start()

    def end() -> None:
        feeder.stopped.set()
        # Room for the item that the thread may be waiting to hand over: it sees the stop at once.
        with contextlib.suppress(queue.Empty):
            feeder.queue.get_nowait()
        thread.join()

    # An iteration that is left open when the program ends: a thread that was cut off inside a
    # library takes the whole process down.
    atexit.register(end)
    try:
        while True:
            item = feeder.queue.get()
            if isinstance(item, _End):
                try:
                    if item.error is not None:
                        raise item.error
                finally:
                    # As above: the error's traceback holds this frame.
                    del item
                return
            yield item
    finally:
        atexit.unregister(end)
        end()
