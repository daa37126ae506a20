from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from softlabel.pipeline.inference import batch_size
from softlabel.pipeline.inference.batch_size import fastest_batch_size, rows_held
from softlabel.pipeline.progress import Quiet
from softlabel.schemas.errors import EnvironmentFault
from softlabel.schemas.sample import RunTeacher, TeacherOutput

Pictures = npt.NDArray[np.uint8]


class Clock:
    """Time that passes only while a teacher runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def fastest(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[int]]]:
    """The size chosen for a teacher that takes `seconds(rows)`, and the sizes that it ran."""
    clock = Clock()
    monkeypatch.setattr(batch_size, "time", clock)

    def choose(seconds: Callable[[int], float], rows: int = 5000) -> tuple[int, list[int]]:
        tried: list[int] = []

        def at_size(size: int) -> RunTeacher:
            tried.append(size)

            def run(pixels: Pictures) -> TeacherOutput:
                assert len(pixels) == size
                clock.now += seconds(size)
                return TeacherOutput(np.zeros((size, 2), np.float32))

            return run

        return fastest_batch_size(at_size, lambda n: np.zeros(n, np.uint8), rows, Quiet()), tried

    return choose


def test_the_smallest_of_the_fast_ones(fastest: Callable[..., tuple[int, list[int]]]) -> None:
    """Sixteen rows cost what one does, then time grows with them: 32 to 128 gain nothing."""
    chosen, tried = fastest(lambda rows: 1 + max(0, rows - 16) / 16)
    assert (chosen, tried) == (16, [1, 2, 4, 8, 16, 32, 64, 128])


def test_what_a_batch_costs_elsewhere_counts(
    fastest: Callable[..., tuple[int, list[int]]],
) -> None:
    """A teacher that is as quick row by row: the loop around it is not."""
    chosen, _ = fastest(lambda rows: rows * 1e-4)
    assert chosen >= 64


def test_small_gains_add_up(fastest: Callable[..., tuple[int, list[int]]]) -> None:
    chosen, _ = fastest(lambda rows: rows / 1.04 ** np.log2(rows))
    assert chosen == 1024


def test_no_larger_than_the_limit_or_the_source(
    fastest: Callable[..., tuple[int, list[int]]],
) -> None:
    assert fastest(lambda rows: 1.0)[0] == 1024
    assert fastest(lambda rows: 1.0, rows=100)[0] == 64


def test_what_the_device_cannot_run_ends_it(
    fastest: Callable[..., tuple[int, list[int]]],
) -> None:
    def up_to_eight(rows: int) -> float:
        if rows > 8:
            raise EnvironmentFault("no memory left")
        return 1.0

    assert fastest(up_to_eight) == (8, [1, 2, 4, 8, 16])
    with pytest.raises(EnvironmentFault, match="no memory left"):
        fastest(lambda rows: up_to_eight(rows + 8))


def test_what_waits_in_the_queues_fits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it is for the logits of twelve batches, 4 bytes each."""
    monkeypatch.setattr(batch_size, "free_memory", lambda: 2.0 * 12 * 4 * 50_000 * 10)
    assert [rows_held(values) for values in (10, 50_000, 100_000, 10**9)] == [1024, 10, 5, 1]
    monkeypatch.setattr(batch_size, "free_memory", lambda: float("inf"))
    assert rows_held(50_000) == 1024


def test_what_would_fill_the_memory_is_not_tried(
    fastest: Callable[..., tuple[int, list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter([0, 10, 20, 40, 80])
    monkeypatch.setattr(batch_size, "resident_memory", lambda: next(taken))
    monkeypatch.setattr(batch_size, "free_memory", lambda: 150.0)
    assert fastest(lambda rows: 1.0) == (4, [1, 2, 4])
