"""Laws of the steps: every position once, on any ranks, and on others from any step on."""

from hypothesis import given
from hypothesis import strategies as st

from softlabel.pipeline.training.spans import Steps

ROWS = st.integers(1, 200)
SIZES = st.integers(1, 30)
RANKS = st.integers(1, 5)


def positions(steps: Steps) -> list[int]:
    """What all ranks see, step by step."""
    ranks = [list(steps.spans(rank)) for rank in range(steps.ranks)]
    return [
        position
        for number in range(len(steps))
        for spans in ranks
        if number < len(spans)
        for position in range(*spans[number])
    ]


@given(ROWS, SIZES, RANKS)
def test_every_position_comes_once_in_order(rows: int, size: int, ranks: int) -> None:
    assert positions(Steps(rows, 0, size, ranks)) == list(range(rows))


@given(ROWS, SIZES, RANKS)
def test_all_ranks_take_as_many_steps(rows: int, size: int, ranks: int) -> None:
    steps = Steps(rows, 0, size, ranks)
    counts = {len(list(steps.spans(rank))) for rank in range(ranks)}
    assert counts == {len(steps)} or rows < ranks
    sizes = [span.end - span.first for rank in range(ranks) for span in steps.spans(rank)]
    assert all(0 < each <= size + 1 for each in sizes)
    assert ranks > 1 or all(each <= size for each in sizes)


@given(ROWS, SIZES, RANKS, SIZES, RANKS, st.data())
def test_other_ranks_go_on_where_some_stopped(
    rows: int, size: int, ranks: int, other_size: int, other_ranks: int, data: st.DataObject
) -> None:
    begun = Steps(rows, 0, size, ranks)
    done = data.draw(st.integers(0, len(begun)))
    stopped = begun.position(done)
    seen = positions(begun)[:stopped]
    assert seen + positions(Steps(rows, stopped, other_size, other_ranks)) == list(range(rows))


@given(ROWS, SIZES, RANKS)
def test_the_position_is_where_the_next_step_begins(rows: int, size: int, ranks: int) -> None:
    steps = Steps(rows, 0, size, ranks)
    starts = [span.first for span in steps.spans(0)]
    assert [steps.position(number) for number in range(len(starts))] == starts
    assert steps.position(len(steps)) == rows
