"""Laws of fast encoding: a row is packed alike whatever stands beside it, and as exactly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabel.pipeline.codecs.codec import (
    CHUNK_VALUES,
    LARGEST_HALF,
    NEAREST_BELOW_ZERO,
    EncodedRows,
    encode_rows,
    to_half,
)
from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.codecs.make import make_codec
from softlabel.pipeline.codecs.numerics import largest, log_sums
from softlabel.schemas.labelset import CodecName

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
NAMES: tuple[CodecName, ...] = ("dense-f32", "dense-f16", "dense-u8", "topk", "factored")
ROWS, CLASSES, WIDTH = 300, 701, 8

Logits = npt.NDArray[np.float32]


def odd_and_ordinary_rows(masked: bool) -> Logits:
    """More than two chunks of rows, among them ties, extremes and, where asked, masked classes."""
    random = np.random.default_rng(3)
    logits = random.normal(0, 6, (ROWS, CLASSES)).astype(np.float32)
    logits[5] = 0
    logits[6, ::2] = -0.0
    logits[17] = np.repeat(np.float32(4), CLASSES)
    logits[18, 300:] = logits[18, 0]
    logits[40] *= 1e4
    logits[41, :2] = 3e38, -3e38
    logits[42] *= 1e-6
    if masked:
        logits[77, 5:] = -np.inf
    assert logits.size > 2 * CHUNK_VALUES
    return logits


def encoded(name: CodecName, logits: Logits, features: Logits) -> EncodedRows:
    head = Head(np.ones((CLASSES, WIDTH), np.float32), np.zeros(CLASSES, np.float32))
    codec = make_codec(name, CLASSES, TEMPERATURES, k=5, head=head)
    return encode_rows(codec, logits, features if name == "factored" else None)


@pytest.mark.parametrize("step", [1, 7, 128])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_the_rows_beside_it(name: CodecName, step: int) -> None:
    logits = odd_and_ordinary_rows(masked=name not in ("dense-u8", "factored"))
    features = np.random.default_rng(4).normal(0, 1, (ROWS, WIDTH)).astype(np.float32)
    whole = encoded(name, logits, features)
    for first in range(0, ROWS, step):
        rows = slice(first, first + step)
        # A copy, so that the rows also lie elsewhere in memory.
        part = encoded(name, logits[rows].copy(), features[rows].copy())
        assert part.shift.tobytes() == whole.shift[rows].tobytes()
        assert part.top1.tobytes() == whole.top1[rows].tobytes()
        for column, values in part.columns.items():
            assert values.tobytes() == whole.columns[column][rows].tobytes(), (column, first)


def test_rows_need_not_lie_together_in_memory() -> None:
    logits = odd_and_ordinary_rows(masked=False)
    other = encoded("topk", np.asfortranarray(logits), logits[:, :WIDTH])
    whole = encoded("topk", logits, logits[:, :WIDTH])
    assert all((other.columns[name] == whole.columns[name]).all() for name in whole.columns)


def test_a_refused_row_is_named_by_its_number_among_all() -> None:
    logits = odd_and_ordinary_rows(masked=False)
    logits[291, 3] = np.nan
    with pytest.raises(ValueError, match="NaN") as caught:
        encoded("dense-f16", logits, logits[:, :WIDTH])
    assert caught.value.args[1] == 291


def test_float16_is_rounded_as_numpy_rounds_it_at_every_value_and_midpoint() -> None:
    bits = np.arange(0x8000, 0xFC00, dtype=np.uint16)
    halves = bits.view(np.float16).astype(np.float32)
    between = (halves[:-1] + halves[1:]) / 2
    exact = np.concatenate([halves, between])
    near = [np.nextafter(exact, np.float32(edge)) for edge in (0, -np.inf)]
    values = np.concatenate([exact, *near, [-65520, -1e9]]).astype(np.float32)[None]
    wanted = np.maximum(values, -LARGEST_HALF).astype(np.float16)
    wanted[(wanted == 0) & (values < 0)] = NEAREST_BELOW_ZERO
    wanted[values == 0] = 0
    assert to_half(values, values.min(axis=1)).tobytes() == wanted.tobytes()


# The terms that weigh are all alike, so that their errors add up: three squares are too many.
ALIKE = np.full((4, 50), -71.4624, np.float32)
ALIKE[:, 12] = -10.735625


@given(
    hnp.arrays(np.float32, (4, 50), elements=st.floats(-90, 0, width=32)),
    st.sampled_from(
        [TEMPERATURES, (8.0, 1.0, 2.0), (1.0, 3.0, 6.0), tuple(2.0**p for p in range(9))]
    ),
)
@example(ALIKE, tuple(2.0**p for p in range(9)))
def test_log_sums_by_squares_are_within_a_millionth(
    values: Logits, temperatures: tuple[float, ...]
) -> None:
    d = values - values.max(axis=1, keepdims=True)
    sums = np.exp(d[:, None] / np.asarray(temperatures)[:, None], dtype=np.float64).sum(axis=2)
    assert np.allclose(np.exp(log_sums(d, temperatures).astype(np.float64)), sums, rtol=1e-6)


@given(st.data())
def test_the_largest_are_those_of_a_stable_sort(data: st.DataObject) -> None:
    """Over and under the number of classes at which they are dealt to lanes; ties, -inf."""
    k = data.draw(st.integers(1, 4))
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(k, 90)))
    few = st.sampled_from([0.0, -1.0, -2.0, -np.inf])
    elements = data.draw(st.sampled_from([few, st.floats(-9, 0, width=32)]))
    values = data.draw(hnp.arrays(np.float32, shape, elements=elements, fill=st.nothing()))
    wanted = np.argsort(-values, axis=1, kind="stable")[:, :k]
    assert largest(values, k).tolist() == wanted.tolist()
