"""Every codec at the edges: far and close logits, ties, masked classes, and the class counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabel.pipeline.codecs.codec import Codec, ShiftedRows, encode_rows, shift_rows
from softlabel.pipeline.codecs.dense import DenseU8
from softlabel.pipeline.codecs.factored import Factored, Head
from softlabel.pipeline.codecs.make import make_codec
from softlabel.pipeline.codecs.numerics import id_dtype
from softlabel.pipeline.codecs.topk import TopK
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.schemas.labelset import CodecName

Logits = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
LARGEST_HALF = 65504.0
HALF_STEP = 2.0**-24
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
MOST_CLASSES = 262_144
ANY_T = st.one_of(st.sampled_from(TEMPERATURES), st.floats(1, 64))
ALL: tuple[CodecName, ...] = ("dense-f32", "dense-f16", "dense-u8", "topk", "factored")
PLAIN = ALL[:-1]

FAR = st.sampled_from([1e4, -1e4, 0.0, 65504.0, -65504.0])
# Gaps below float16's smallest step, and below float32's at 1.
CLOSE = st.sampled_from([1.0, BELOW_ONE, 0.0, -1e-8, 2e-8, -6e-8, 1e-30])
VALUES = st.one_of(st.floats(-40, 40, width=32), FAR, CLOSE)
SHAPES = st.tuples(st.integers(1, 5), st.integers(2, 24))


@st.composite
def logit_rows(draw: st.DrawFn, masks: bool = False) -> Logits:
    """`[N, C]`; some rows are all equal, in some one class dominates."""
    rows, classes = draw(SHAPES)
    logits = draw(hnp.arrays(np.float32, (rows, classes), elements=VALUES))
    for row in range(rows):
        kind = draw(st.sampled_from(["as it is", "as it is", "equal", "dominated"]))
        if kind == "equal":
            logits[row] = logits[row, 0]
        elif kind == "dominated":
            logits[row, draw(st.integers(0, classes - 1))] = 1e5
    if masks:
        mask = draw(hnp.arrays(np.bool_, (rows, classes)))
        mask[np.arange(rows), draw(hnp.arrays(np.intp, rows, elements=st.integers(0, 1)))] = False
        logits[mask] = -np.inf
    return logits


@st.composite
def factored_rows(draw: st.DrawFn) -> tuple[Head, Logits]:
    """A head of C classes over d features, and features `[N, d]` up to the end of float16."""
    rows, classes = draw(SHAPES)
    width = draw(st.integers(1, 4))
    values = st.floats(-8, 8, width=32)
    weight = draw(hnp.arrays(np.float32, (classes, width), elements=values))
    bias = draw(hnp.arrays(np.float32, classes, elements=values))
    inner = st.one_of(st.floats(-100, 100, width=32), st.sampled_from([LARGEST_HALF, -1e4, 1e-8]))
    return Head(weight, bias), draw(hnp.arrays(np.float32, (rows, width), elements=inner))


def factored(head: Head, features: Logits) -> tuple[Factored, ShiftedRows]:
    rows = shift_rows(features @ head.weight.T + head.bias)
    return Factored(head, TEMPERATURES), replace(rows, features=features)


def codec_of(name: CodecName, classes: int, k: int = 1) -> Codec:
    return make_codec(name, classes, TEMPERATURES, k=k)


def stored(codec: Codec, rows: ShiftedRows) -> LabelBlock:
    """The rows as a label set gives them back."""
    count = len(rows.shift)
    keys = pa.array([f"s{row}" for row in range(count)], pa.string())
    labels = pa.nulls(count, pa.int32())
    return LabelBlock(keys, labels, rows.top1, rows.shift, codec.encode(rows), codec)


def exact_probs(logits: Logits, T: float) -> Doubles:
    """softmax(z / T) in float64."""
    scaled = logits.astype(np.float64) / T
    scaled -= scaled.max(axis=1, keepdims=True)
    mass = np.exp(scaled)
    return np.asarray(mass / mass.sum(axis=1, keepdims=True))


def gaps(logits: Logits) -> Doubles:
    """Exact distances to the rows' maxima."""
    exact = logits.astype(np.float64)
    return np.asarray(exact - exact.max(axis=1, keepdims=True))


def expect_soft_targets(block: LabelBlock, T: float) -> Logits:
    """Whatever was stored: a distribution whose arg-max, lowest id among equals, is the top-1."""
    probs = block.probs(T)
    assert probs.dtype == np.float32
    assert np.isfinite(probs).all()
    assert (probs >= 0).all()
    assert probs.sum(axis=1, dtype=np.float64) == pytest.approx(1, abs=1e-5)
    logits = block.logits(T)
    assert (logits.max(axis=1) == 0).all()
    assert logits.argmax(axis=1).tolist() == block.top1.tolist()
    assert (probs.max(axis=1) == probs[np.arange(len(probs)), block.top1]).all()
    return logits


@given(logit_rows(), ANY_T, st.integers(1, 23))
@example(np.full((2, 2), 1e4, np.float32), 1.0, 1)
@example(np.asarray([[-1e4, 1e4, -1e4]], np.float32), 8.0, 2)
@example(np.asarray([[BELOW_ONE, 1]], np.float32), 64.0, 1)
@example(np.asarray([[-1e-8, -1e-8, 0, -1e-8]], np.float32), 2.0, 1)
def test_every_row_gives_soft_targets_with_the_teachers_arg_max(
    logits: Logits, T: float, k: int
) -> None:
    classes = logits.shape[1]
    rows = shift_rows(logits)
    for name in PLAIN:
        block = stored(codec_of(name, classes, min(k, classes - 1)), rows)
        expect_soft_targets(block, T)
        assert np.array_equal(block.shift, logits.max(axis=1))
        lowest_id = [row.tolist().index(max(row)) for row in logits]
        assert block.top1.tolist() == lowest_id


@given(factored_rows(), ANY_T)
def test_factored_gives_soft_targets_with_the_teachers_arg_max(
    drawn: tuple[Head, Logits], T: float
) -> None:
    expect_soft_targets(stored(*factored(*drawn)), T)


@given(logit_rows(masks=True))
def test_float32_is_exact(logits: Logits) -> None:
    rows = shift_rows(logits)
    block = stored(codec_of("dense-f32", logits.shape[1]), rows)
    assert np.array_equal(block.logits(), rows.d)
    # Only the subtraction of the shift rounds.
    assert np.array_equal(block.logits(), logits - logits.max(axis=1, keepdims=True))


@given(logit_rows(masks=True))
def test_float16_is_within_its_rounding_down_to_its_end(logits: Logits) -> None:
    decoded = stored(codec_of("dense-f16", logits.shape[1]), shift_rows(logits)).logits()
    assert np.array_equal(np.isneginf(decoded), np.isneginf(logits))
    kept = ~np.isneginf(logits)
    wanted = np.maximum(gaps(logits)[kept], -LARGEST_HALF)
    # Half a unit in the last of 11 bits; float32 rounded the shift itself.
    bound = np.abs(wanted) * (2.0**-11 + 2.0**-23) + HALF_STEP
    assert (np.abs(decoded[kept] - wanted) <= bound).all()
    assert decoded[kept].min() >= -LARGEST_HALF
    highest = logits.max(axis=1, keepdims=True)
    assert np.array_equal(decoded == 0, logits == highest)


@given(logit_rows())
def test_a_byte_is_within_half_a_step_of_its_scale(logits: Logits) -> None:
    decoded = stored(codec_of("dense-u8", logits.shape[1]), shift_rows(logits)).logits()
    d = gaps(logits)
    spread = -d.min(axis=1, keepdims=True)
    q = 255 * np.sqrt(np.divide(-d, spread, out=np.zeros_like(d), where=spread > 0))
    # (q + 1/2)^2 - q^2 above half a step, the whole first step below it.
    bound = spread * (np.where(q < 0.5, 1, q + 0.25) / 255**2 + 1e-5)
    assert (np.abs(decoded - d) <= bound).all()
    assert (decoded >= -spread * (1 + 1e-6)).all()


@given(logit_rows())
def test_the_logits_that_give_a_byte_lie_within_its_bounds(logits: Logits) -> None:
    codec = DenseU8(logits.shape[1], TEMPERATURES)
    block = stored(codec, shift_rows(logits))
    lowest, highest = codec.bounds(block.payload)
    slack = 1e-4 * (1 + np.abs(gaps(logits)))
    assert (lowest - slack <= gaps(logits)).all()
    assert (gaps(logits) <= highest + slack).all()
    assert (lowest <= block.logits()).all()
    assert (block.logits() <= highest).all()
    # No more than a step of the scale apart.
    q = block.payload["logits"].astype(np.float64)
    spread = block.payload["range"][:, None]
    assert (highest - lowest <= spread * (2 * q + 0.25) / 255**2 * (1 + 1e-4)).all()


@given(logit_rows(), st.integers(1, 23), st.sampled_from(TEMPERATURES))
def test_topk_keeps_the_largest_and_the_mass_of_the_rest(logits: Logits, k: int, T: float) -> None:
    classes = logits.shape[1]
    k = min(k, classes - 1)
    rows = shift_rows(logits)
    block = stored(codec_of("topk", classes, k), rows)
    ids = np.argsort(-rows.d, axis=1, kind="stable")[:, :k]
    assert block.payload["ids"].dtype == id_dtype(classes)
    assert np.array_equal(block.payload["ids"], ids)
    half = stored(codec_of("dense-f16", classes), rows).payload["logits"]
    assert block.payload["logits"].dtype == np.float16
    assert np.array_equal(block.payload["logits"], np.take_along_axis(half, ids, axis=1))
    tail = gaps(logits)
    np.put_along_axis(tail, ids, -np.inf, axis=1)
    rest = np.exp(tail / T).sum(axis=1)
    masses = np.exp(block.payload["logits"].astype(np.float64) / T).sum(axis=1)
    probs = block.probs(T).astype(np.float64)
    left = 1 - np.take_along_axis(probs, ids, axis=1).sum(axis=1)
    wanted = rest / (masses + rest)
    assert (left <= wanted + 1e-5).all()
    # An even tail stands no higher than the smallest kept logit, which float16 may have lowered:
    # by x 2^-11 where exp(-x) is its mass, and x exp(-x) < 0.37.
    assert (left >= wanted - (classes - k) * 2.0**-12 - 1e-5).all()


@given(factored_rows())
def test_factored_is_within_the_rounding_of_its_features(drawn: tuple[Head, Logits]) -> None:
    head, features = drawn
    codec, rows = factored(head, features)
    decoded = stored(codec, rows).logits()
    exact = features.astype(np.float64) @ head.weight.astype(np.float64).T + head.bias
    rounding = np.abs(features.astype(np.float64)) * 2.0**-11 + HALF_STEP
    moved = rounding @ np.abs(head.weight.astype(np.float64)).T
    size = (np.abs(features) @ np.abs(head.weight).T + np.abs(head.bias)).max(axis=1, keepdims=True)
    bound = moved + moved.max(axis=1, keepdims=True) + size * 2.0**-20 + 1e-30
    assert (np.abs(decoded - (exact - exact.max(axis=1, keepdims=True))) <= 2 * bound).all()


@given(logit_rows(masks=True), ANY_T)
def test_a_masked_class_has_no_mass(logits: Logits, T: float) -> None:
    masked = np.isneginf(logits)
    classes = logits.shape[1]
    rows = shift_rows(logits)
    for name in PLAIN[:2]:
        block = stored(codec_of(name, classes), rows)
        expect_soft_targets(block, T)
        assert (block.probs(T)[masked] == 0).all()
    # topk spreads its tail over all that it left out: that must be masked as a whole.
    finite = (~masked).sum(axis=1)
    k = int(finite.max())
    if k < classes:
        block = stored(codec_of("topk", classes, k), rows)
        expect_soft_targets(block, T)
        assert (block.probs(T)[masked] == 0).all()


@given(logit_rows(masks=True), st.integers(1, 23))
def test_topk_refuses_a_tail_that_is_masked_in_part_and_names_the_row(
    logits: Logits, k: int
) -> None:
    classes = logits.shape[1]
    k = min(k, classes - 1)
    left_out = np.maximum((~np.isneginf(logits)).sum(axis=1) - k, 0)
    partly = (left_out > 0) & (left_out < classes - k)
    codec, rows = codec_of("topk", classes, k), shift_rows(logits)
    if not partly.any():
        expect_soft_targets(stored(codec, rows), 2.0)
        return
    with pytest.raises(ValueError, match="-inf among classes that topk leaves out") as caught:
        codec.encode(rows)
    assert caught.value.args[1] == int(partly.argmax())


@given(logit_rows(masks=True))
def test_a_byte_refuses_a_masked_class_and_names_the_row(logits: Logits) -> None:
    masked = np.isneginf(logits).any(axis=1)
    assume(masked.any())
    with pytest.raises(ValueError, match="-inf, which dense-u8 cannot store") as caught:
        codec_of("dense-u8", logits.shape[1]).encode(shift_rows(logits))
    assert caught.value.args[1] == int(masked.argmax())


def test_a_head_whose_bias_masks_a_class_keeps_it_masked() -> None:
    head = Head(np.eye(3, dtype=np.float32), np.asarray([0, -np.inf, 0], np.float32))
    features: Logits = np.asarray([[1, 9, 2], [4, 0, 3]], np.float32)
    block = stored(*factored(head, features))
    expect_soft_targets(block, 2.0)
    assert block.probs(2.0)[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520.0, 1e6])
def test_features_that_float16_cannot_hold_are_refused_by_row(value: float) -> None:
    head = Head(np.ones((4, 2), np.float32), np.zeros(4, np.float32))
    codec, rows = factored(head, np.ones((3, 2), np.float32))
    assert rows.features is not None
    rows.features[2, 1] = value
    with pytest.raises(ValueError, match="features are beyond 65,504") as caught:
        codec.encode(rows)
    assert caught.value.args[1] == 2


@given(logit_rows(), st.sampled_from([np.nan, np.inf]), st.data())
def test_rows_that_are_no_logits_are_refused_by_number(
    logits: Logits, value: float, data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, len(logits) - 1))
    logits[row, data.draw(st.integers(0, logits.shape[1] - 1))] = value
    with pytest.raises(ValueError, match=r"logits hold (NaN|\+inf)") as caught:
        shift_rows(logits)
    assert caught.value.args[1] == row


@given(
    hnp.arrays(
        np.float32, SHAPES.filter(lambda s: s[1] > 2), elements=st.floats(-40, 40, width=32)
    ),
    st.integers(1, 8),
    st.floats(1, 200),
)
def test_between_recorded_temperatures_the_tail_lies_on_its_chord(
    logits: Logits, k: int, T: float
) -> None:
    """The exact log-sum is convex in 1/T: the chord through its neighbours bounds it from above,
    and the chords beside it, drawn out, from below."""
    classes = logits.shape[1]
    k = min(k, classes - 1)
    codec = TopK(k, classes, TEMPERATURES)
    columns = codec.encode(shift_rows(logits))
    tail = gaps(logits)
    np.put_along_axis(tail, columns["ids"].astype(np.int64), -np.inf, axis=1)
    points = np.asarray([0.0, *sorted(1 / T for T in TEMPERATURES)])
    sums = np.stack([np.logaddexp.reduce(tail * x, axis=1) if x else
                     np.full(len(tail), np.log(classes - k)) for x in points])  # fmt: skip
    right = max(1, int(np.searchsorted(points, 1 / T)))
    weight = (1 / T - points[right - 1]) / (points[right] - points[right - 1])
    chord = (1 - weight) * sums[right - 1] + weight * sums[right]
    got = codec.tail_lse(columns, T)
    assert got == pytest.approx(chord, rel=1e-5, abs=1e-4)
    assert (got >= np.logaddexp.reduce(tail / T, axis=1) - 1e-4 * (1 + np.abs(chord))).all()


@pytest.mark.parametrize("T", [0.999, 0.5, 1e-3])
def test_topk_below_its_smallest_temperature_is_an_error(T: float) -> None:
    block = stored(codec_of("topk", 4), shift_rows(np.zeros((1, 4), np.float32)))
    with pytest.raises(ValueError, match=f"temperature {T:g} is below 1, the smallest"):
        block.probs(T)


@pytest.mark.parametrize("T", [0, -1, np.nan, np.inf])
def test_no_codec_takes_a_temperature_that_is_none(T: float) -> None:
    for name in PLAIN:
        block = stored(codec_of(name, 4), shift_rows(np.zeros((1, 4), np.float32)))
        with pytest.raises(ValueError, match="temperature must be above 0"):
            block.probs(T)


def many_classes(classes: int, winners: Sequence[int]) -> Logits:
    """A row a winner, with every other class at least 2 below it."""
    logits = np.random.default_rng(classes).uniform(-9, 0, (len(winners), classes))
    logits[np.arange(len(winners)), winners] = 2
    return logits.astype(np.float32)


def expect_class_count(classes: int) -> None:
    wide = np.uint16 if classes <= 65_536 else np.uint32
    winners = (classes - 1, 0, classes // 2)
    logits = many_classes(classes, winners)
    rows = shift_rows(logits)
    assert rows.top1.dtype == wide
    for name in PLAIN:
        k = min(4, classes - 1)
        block = stored(codec_of(name, classes, k), rows)
        probs = block.probs(2.0)
        assert probs.shape == logits.shape
        assert probs.argmax(axis=1).tolist() == list(winners)
        assert probs.sum(axis=1, dtype=np.float64) == pytest.approx(1, abs=1e-4)
        worst = 0.02 if name == "dense-u8" else 2e-3
        wanted = exact_probs(logits, 2.0)[np.arange(3), list(winners)]
        assert probs.max(axis=1) == pytest.approx(wanted, rel=worst)
        if name == "topk":
            assert block.payload["ids"].dtype == wide
            assert block.payload["ids"][:, 0].tolist() == list(winners)
    weight = np.zeros((classes, 2), np.float32)
    weight[list(dict.fromkeys(winners)), 0] = 1
    weight[0, 1] = 1
    head = Head(weight, (np.arange(classes) / classes).astype(np.float32))
    block = stored(*factored(head, np.ones((2, 2), np.float32)))
    assert block.top1.dtype == wide
    expect_soft_targets(block, 2.0)


@pytest.mark.parametrize("classes", [2, 3, 65_536, 65_537, MOST_CLASSES])
def test_class_counts_at_the_edges(classes: int) -> None:
    expect_class_count(classes)


@settings(max_examples=8)
@given(st.integers(2, MOST_CLASSES))
def test_any_class_count(classes: int) -> None:
    expect_class_count(classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topk", "dense-u8"])
def test_a_chunk_of_more_than_two_to_the_31_elements(name: CodecName) -> None:
    """Rows that overlap in memory, so that 8.6 GB of logits take one megabyte, and each differs."""
    rows = 2**31 // MOST_CLASSES + 2
    line = np.random.default_rng(0).normal(0, 3, MOST_CLASSES + rows - 1).astype(np.float32)
    logits = np.lib.stride_tricks.sliding_window_view(line, MOST_CLASSES)
    assert logits.size > 2**31
    codec = make_codec(name, MOST_CLASSES, (1.0,), k=8)
    packed = encode_rows(codec, logits)
    assert len(packed.top1) == rows
    for row in (0, rows // 2, rows - 2, rows - 1):
        alone = encode_rows(codec, np.ascontiguousarray(logits[row : row + 1]))
        assert packed.top1[row] == alone.top1[0] == logits[row].argmax()
        assert packed.shift[row] == logits[row].max()
        for column, values in alone.columns.items():
            assert np.array_equal(packed.columns[column][row : row + 1], values), column
