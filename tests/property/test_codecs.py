"""Laws of every codec: bounds, order, mass, and clear refusals."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabel.pipeline.codecs.codec import Codec, shift_rows
from softlabel.pipeline.codecs.make import make_codec
from softlabel.pipeline.codecs.numerics import kl_sums, largest, log_softmax, softmax
from softlabel.pipeline.codecs.topk import TopK
from softlabel.schemas.labelset import CodecName

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
Logits = npt.NDArray[np.float32]

shapes = st.tuples(st.integers(1, 6), st.integers(4, 40))
gentle = hnp.arrays(np.float32, shapes, elements=st.floats(-50, 50, width=32))
wild = hnp.arrays(
    np.float32,
    shapes,
    elements=st.one_of(
        st.floats(-10_000, 10_000, width=32),
        st.sampled_from([0.0, 1e4, -1e4, 1e-7, -1e-7, 5.0]),
    ),
)


def codecs(classes: int) -> dict[str, Codec]:
    names: tuple[CodecName, ...] = ("dense-f32", "dense-f16", "dense-u8", "topk")
    return {name: make_codec(name, classes, TEMPERATURES, k=3) for name in names}


@given(wild)
def test_soft_targets_sum_to_one_and_keep_the_arg_max(logits: Logits) -> None:
    rows = shift_rows(logits)
    for name, codec in codecs(logits.shape[1]).items():
        columns = codec.encode(rows)
        for T in (*TEMPERATURES, 3.0, 50.0):
            decoded = codec.logits(columns, T)
            assert softmax(decoded, T).sum(axis=1) == pytest.approx(1, abs=1e-5), name
            best = decoded[np.arange(len(logits)), rows.top1]
            assert (decoded.max(axis=1) == best).all(), name
            if name in ("dense-f32", "dense-f16", "dense-u8"):
                assert (decoded.argmax(axis=1) == rows.top1).all(), name


@given(wild)
def test_float32_is_exact_and_float16_within_its_rounding(logits: Logits) -> None:
    rows = shift_rows(logits)
    exact = make_codec("dense-f32", logits.shape[1], TEMPERATURES)
    assert np.array_equal(exact.logits(exact.encode(rows), 1), rows.d)
    half = make_codec("dense-f16", logits.shape[1], TEMPERATURES)
    decoded = half.logits(half.encode(rows), 1)
    bound = np.maximum(np.abs(rows.d) * 2.0**-11, 6e-8)
    assert (np.abs(decoded - rows.d) <= bound).all()


@given(gentle)
def test_a_byte_is_within_its_step(logits: Logits) -> None:
    rows = shift_rows(logits)
    codec = make_codec("dense-u8", logits.shape[1], TEMPERATURES)
    columns = codec.encode(rows)
    spread = columns["range"][:, None].astype(np.float64)
    # Half a step of q either way, and the whole first step where q is held at 1.
    q = 255 * np.sqrt(
        np.divide(-rows.d, spread, out=np.zeros_like(rows.d, np.float64), where=spread > 0)
    )
    bound = spread * ((q + 1.001) ** 2 - q**2) / 255**2 + 1e-4
    assert (np.abs(codec.logits(columns, 1) - rows.d) <= bound).all()


@given(gentle, st.integers(1, 3))
def test_topk_keeps_the_largest_in_order_and_the_mass_of_the_rest(logits: Logits, k: int) -> None:
    rows = shift_rows(logits)
    codec = TopK(k, logits.shape[1], TEMPERATURES)
    columns = codec.encode(rows)
    order = np.argsort(-rows.d, axis=1, kind="stable")[:, :k]
    assert np.array_equal(columns["ids"], order)
    for index, T in enumerate(TEMPERATURES):
        full = np.exp(log_softmax(logits.astype(np.float64) / T))
        kept = softmax(codec.logits(columns, T), T)
        mass = np.take_along_axis(full, order, axis=1).sum(axis=1)
        got = np.take_along_axis(kept.astype(np.float64), order, axis=1).sum(axis=1)
        assert got == pytest.approx(mass, abs=2e-3), (index, T)
        assert np.isfinite(columns["tail_lse"]).all()


@given(gentle, st.floats(1, 40))
def test_between_recorded_temperatures_the_tail_stays_on_its_chord(
    logits: Logits, T: float
) -> None:
    codec = TopK(2, logits.shape[1], TEMPERATURES)
    rows = shift_rows(logits)
    columns = codec.encode(rows)
    tail = rows.d.astype(np.float64).copy()
    np.put_along_axis(tail, columns["ids"].astype(np.int64), -np.inf, axis=1)
    exact = np.logaddexp.reduce(tail / T, axis=1)
    interpolated = codec.tail_lse(columns, T)
    # Convex in 1/T: a chord never lies below the curve.
    assert (interpolated >= exact - 1e-3).all()
    assert (interpolated <= np.log(logits.shape[1] - 2) + 1e-6).all()


def test_topk_below_its_temperatures_is_an_error() -> None:
    codec = TopK(1, 4, (2.0, 4.0))
    columns = codec.encode(shift_rows(np.zeros((1, 4), np.float32)))
    with pytest.raises(ValueError, match="temperature 1 is below 2"):
        codec.logits(columns, 1.0)


def test_a_small_tail_survives() -> None:
    logits = np.array([[0, -200, -201, -202]], np.float32)
    columns = TopK(1, 4, (1.0,)).encode(shift_rows(logits))
    expected = np.logaddexp.reduce(logits[0, 1:].astype(np.float64))
    assert columns["tail_lse"][0, 0] == pytest.approx(expected, rel=1e-6)


def test_equal_values_are_kept_by_id() -> None:
    values = np.array([[1, 2, 2, 2, 2, 0, 2]], np.float32)
    assert largest(values, 3).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("name", ["dense-f32", "dense-f16", "topk"])
def test_a_masked_class_has_probability_zero(name: CodecName) -> None:
    logits = np.array([[3, -np.inf, 1, 0, -np.inf]], np.float32)
    codec = make_codec(name, 5, TEMPERATURES, k=4)
    probs = softmax(codec.logits(codec.encode(shift_rows(logits)), 2.0), 2.0)
    assert probs[0, [1, 4]].tolist() == [0, 0]
    assert probs.sum() == pytest.approx(1)


def test_a_byte_cannot_hold_a_masked_class() -> None:
    codec = make_codec("dense-u8", 3, TEMPERATURES)
    logits = np.array([[0, 1, 2], [0, -np.inf, 1]], np.float32)
    with pytest.raises(ValueError, match="dense-u8 cannot store") as caught:
        codec.encode(shift_rows(logits))
    assert caught.value.args[1] == 1


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "NaN"), (np.inf, r"\+inf"), (-np.inf, "nothing but -inf")]
)
def test_rows_without_soft_targets_are_refused(value: float, said: str) -> None:
    logits = np.zeros((3, 4), np.float32)
    logits[2] = value
    with pytest.raises(ValueError, match=said) as caught:
        shift_rows(logits)
    assert caught.value.args[1] == 2


def test_a_finite_logit_is_never_masked_by_overflow() -> None:
    logits = np.array([[3e38, -3e38, 0]], np.float32)
    assert np.isfinite(shift_rows(logits).d).all()


@given(gentle)
def test_more_bytes_say_more(logits: Logits) -> None:
    rows = shift_rows(logits)
    loss = {}
    for name, codec in codecs(logits.shape[1]).items():
        columns = codec.encode(rows)
        decoded = [codec.logits(columns, T) for T in TEMPERATURES]
        loss[name] = sum(kl_sums(logits, decoded, TEMPERATURES))
    assert loss["dense-f32"] <= loss["dense-f16"] + 1e-9
    assert loss["dense-f16"] <= loss["dense-u8"] + 1e-5
