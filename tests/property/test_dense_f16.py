"""Laws of the codec: what is stored decodes to what was meant, whatever the logits are."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabel.pipeline.codecs.numerics import kl_sums, softmax
from tests.unit.builders import encode_half

Logits = npt.NDArray[np.float32]

# float16 has 11 significant bits and a smallest step of 2^-24; float32 rounds the shift itself.
HALF_RELATIVE = 2.0**-11 + 2.0**-23
HALF_STEP = 2.0**-24
LARGEST_HALF = 65504.0

ORDINARY = st.floats(-30, 30, width=32)
EXTREME = st.sampled_from([0.0, 1.0, 1e4, -1e4, 3e38, -3e38, 65504.0, -65504.0, -65520.0])
# Gaps that float16 cannot hold: they must not become ties.
CLOSE = st.sampled_from([1.0, float(np.nextafter(np.float32(1), np.float32(0))), 1e-8, 2e-8, 0.0])
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8)


@st.composite
def logit_rows(draw: st.DrawFn, masked: bool = True, extreme: bool = True) -> Logits:
    """`[N, C]`, at least one finite value a row."""
    elements = st.one_of(ORDINARY, CLOSE, EXTREME) if extreme else st.one_of(ORDINARY, CLOSE)
    rows, classes = draw(SHAPES)
    values = draw(hnp.arrays(np.float32, (rows, classes), elements=elements))
    if masked:
        mask = draw(hnp.arrays(np.bool_, (rows, classes)))
        kept = draw(hnp.arrays(np.intp, rows, elements=st.integers(0, classes - 1)))
        mask[np.arange(rows), kept] = False
        values[mask] = -np.inf
    return values


def log_softmax(row: Sequence[float]) -> list[float]:
    """In pure Python with exact sums: the reference."""
    highest = max(row)
    norm = math.log(math.fsum(math.exp(value - highest) for value in row))
    return [value - highest - norm for value in row]


def kl(full: Sequence[float], kept: Sequence[float], temperature: float) -> float:
    logs = log_softmax([value / temperature for value in full])
    others = log_softmax([value / temperature for value in kept])
    pairs = zip(logs, others, strict=True)
    return math.fsum(math.exp(p) * (p - q) for p, q in pairs if p > -math.inf)


@given(logit_rows())
@example(np.asarray([[3e38, -3e38]], np.float32))
@example(np.asarray([[-3e38, -3e38]], np.float32))
@example(np.asarray([[1e4, 1e4 - 65519]], np.float32))
def test_decoded_values_are_the_shifted_logits(logits: Logits) -> None:
    stored = encode_half(logits, [1.0])
    exact = logits.astype(np.float64)
    wanted = exact - exact.max(axis=1, keepdims=True)
    masked = np.isneginf(logits)
    assert np.array_equal(np.isneginf(stored.payload), masked)
    finite = np.maximum(wanted[~masked], -LARGEST_HALF)
    error = np.abs(stored.payload[~masked].astype(np.float64) - finite)
    assert (error <= np.abs(finite) * HALF_RELATIVE + HALF_STEP).all()
    assert np.array_equal(stored.shift, logits.max(axis=1))


@given(logit_rows())
def test_the_maximum_alone_is_stored_as_zero(logits: Logits) -> None:
    stored = encode_half(logits, [1.0])
    highest = logits.max(axis=1, keepdims=True)
    assert np.array_equal(stored.payload == 0, logits == highest)
    lowest_id = [row.tolist().index(max(row)) for row in logits]
    assert stored.top1.tolist() == lowest_id
    assert stored.payload.argmax(axis=1).tolist() == lowest_id


@given(logit_rows(), st.floats(1, 64))
def test_log_sums_are_those_of_float64(logits: Logits, temperature: float) -> None:
    (lse,) = encode_half(logits, [temperature]).lse.T
    exact = logits.astype(np.float64)
    scaled = (exact - exact.max(axis=1, keepdims=True)) / temperature
    wanted = np.log(np.exp(scaled).sum(axis=1))
    assert np.allclose(lse, wanted, rtol=1e-5, atol=1e-6)
    assert (lse >= 0).all()
    assert (lse <= math.log(logits.shape[1]) + 1e-6).all()


@given(logit_rows(), st.data())
def test_bad_rows_are_refused_by_number(logits: Logits, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(logits) - 1))
    kind = data.draw(st.sampled_from(["NaN", "+inf", "nothing but -inf"]))
    column = data.draw(st.integers(0, logits.shape[1] - 1))
    if kind == "nothing but -inf":
        logits[row] = -np.inf
    else:
        logits[row, column] = np.nan if kind == "NaN" else np.inf
    try:
        encode_half(logits, [1.0])
    except ValueError as error:
        assert error.args == (f"logits hold {kind}", row)
    else:
        raise AssertionError("was encoded")


@given(
    logit_rows(extreme=False),
    st.floats(0.25, 64),
    st.floats(-1e3, 1e3, width=32),
)
def test_softmax_is_a_distribution_and_sees_no_shift(
    logits: Logits, temperature: float, shift: float
) -> None:
    probs = softmax(logits, temperature)
    scaled = logits.astype(np.float64) / temperature
    assert probs.dtype == np.float32
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-6)
    assert (probs[np.isneginf(logits)] == 0).all()
    wanted = [[math.exp(log) for log in log_softmax(row)] for row in scaled.tolist()]
    assert np.allclose(probs, wanted, rtol=1e-4, atol=1e-7)
    moved = softmax(logits + np.float32(shift), temperature)
    # Adding 1e3 in float32 rounds each logit by up to 2^-14 itself.
    assert np.allclose(moved, probs, atol=2e-4 / min(temperature, 1))


@given(logit_rows(), st.floats(1, 64))
def test_kl_is_that_of_the_definition(logits: Logits, temperature: float) -> None:
    stored = encode_half(logits, [temperature]).payload
    (got,) = kl_sums(logits, [stored], [temperature])
    rows = zip(logits.astype(float).tolist(), stored.astype(float).tolist(), strict=True)
    wanted = math.fsum(kl(full, kept, temperature) for full, kept in rows)
    assert math.isclose(got, wanted, rel_tol=1e-6, abs_tol=1e-12)


@given(hnp.arrays(np.float16, (3, 5), elements=st.integers(-100, 0).map(float)), st.floats(1, 64))
def test_kl_of_what_float16_holds_is_zero(values: npt.NDArray[np.float16], T: float) -> None:
    values[:, 0] = 0
    assert kl_sums(values.astype(np.float32), [values], [T]) == (0.0,)
