"""Laws of `topk` with a class prior, of the prior itself, and of a smaller k from a larger."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softlabel.pipeline.codecs.codec import Columns, encode_rows
from softlabel.pipeline.codecs.numerics import kl_sums, softmax
from softlabel.pipeline.codecs.topk import TopK
from softlabel.pipeline.inference.prior import TailPrior, spread_rows
from softlabel.schemas.labelset import SourceFile

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
Floats = npt.NDArray[np.float32]

numbers = st.one_of(
    st.floats(-50, 50, width=32), st.sampled_from([0.0, 5.0, -5.0, 1e4, -1e4, 1e-7])
)
priors = st.one_of(st.floats(-20, 20, width=32), st.sampled_from([0.0, 1e4, -1e4, -200.0]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Floats, Floats, int]:
    """Logits `[N, C]`, a prior `[C]` and k < C."""
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(2, 24))
    logits = draw(hnp.arrays(np.float32, (rows, classes), elements=numbers))
    prior = draw(hnp.arrays(np.float32, classes, elements=priors))
    return logits, prior, draw(st.integers(1, classes - 1))


def tail_of(full: Floats, ids: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    tail = full.astype(np.float64)
    np.put_along_axis(tail, ids.astype(np.int64), -np.inf, axis=1)
    return tail


@given(cases(), st.sampled_from([*TEMPERATURES, 3.0, 50.0]))
def test_the_tail_has_its_mass_and_no_class_above_the_smallest_kept(
    case: tuple[Floats, Floats, int], T: float
) -> None:
    logits, prior, k = case
    classes = len(prior)
    codec = TopK(k, classes, TEMPERATURES, prior)
    columns = encode_rows(codec, logits).columns
    full = codec.logits(columns, T)
    kept = columns["logits"].astype(np.float64)
    tail = tail_of(full, columns["ids"])
    assert np.isfinite(full).all()
    assert (tail.max(axis=1) <= kept[:, -1]).all()
    # The kept logits were rounded, so a tail of their like may be more than fits under them.
    wanted = np.minimum(codec.tail_lse(columns, T), np.log(classes - k) + kept[:, -1] / T)
    got = np.logaddexp.reduce(tail / T, axis=1)
    # Float32 logits of 1e4 are steps of 1e-3 themselves.
    assert got == pytest.approx(wanted, abs=5e-4, rel=2e-7)
    shares = softmax(full, T)
    assert shares.sum(axis=1) == pytest.approx(1, abs=1e-5)


@given(cases())
def test_the_arg_max_and_the_kept_logits_stay(case: tuple[Floats, Floats, int]) -> None:
    logits, prior, k = case
    codec = TopK(k, len(prior), TEMPERATURES, prior)
    rows = encode_rows(codec, logits)
    full = codec.logits(rows.columns, 2.0)
    best = full[np.arange(len(full)), rows.top1]
    assert (best == 0).all()
    assert (full.max(axis=1) == 0).all()
    kept = np.take_along_axis(full, rows.columns["ids"].astype(np.int64), axis=1)
    assert np.array_equal(kept, rows.columns["logits"].astype(np.float32))


@given(cases(), st.sampled_from(TEMPERATURES))
def test_the_classes_left_out_stand_in_the_prior_s_order(
    case: tuple[Floats, Floats, int], T: float
) -> None:
    logits, prior, k = case
    codec = TopK(k, len(prior), TEMPERATURES, prior)
    columns = encode_rows(codec, logits).columns
    full = codec.logits(columns, T)
    for row, ids in zip(full, columns["ids"], strict=True):
        out = np.setdiff1d(np.arange(len(prior)), ids)
        by_prior = out[np.argsort(prior[out], kind="stable")]
        assert (np.diff(row[by_prior]) >= 0).all()
        free = by_prior[row[by_prior] < columns["logits"].astype(np.float32).min()]
        gaps = np.diff(row[free].astype(np.float64))
        assert (gaps <= np.diff(prior[free].astype(np.float64)) + 2e-3).all()


@given(cases(), st.sampled_from(TEMPERATURES))
def test_an_even_prior_is_the_uniform_tail(case: tuple[Floats, Floats, int], T: float) -> None:
    logits, prior, k = case
    even = TopK(k, len(prior), TEMPERATURES, np.full_like(prior, 7))
    uniform = TopK(k, len(prior), TEMPERATURES)
    columns = encode_rows(uniform, logits).columns
    assert even.logits(columns, T) == pytest.approx(uniform.logits(columns, T), rel=1e-5, abs=1e-4)


@given(cases())
def test_a_tail_of_one_class_is_that_class(case: tuple[Floats, Floats, int]) -> None:
    logits, prior, _ = case
    codec = TopK(len(prior) - 1, len(prior), TEMPERATURES, prior)
    columns = encode_rows(codec, logits).columns
    full = codec.logits(columns, 1.0)
    shifted = logits - logits.max(axis=1, keepdims=True)
    assert full == pytest.approx(shifted, rel=1e-3, abs=1e-5)


@given(cases(), st.sampled_from(TEMPERATURES))
def test_an_empty_tail_stays_empty(case: tuple[Floats, Floats, int], T: float) -> None:
    logits, prior, k = case
    order = np.argsort(-logits, axis=1, kind="stable")
    np.put_along_axis(logits, order[:, k:], -np.inf, axis=1)
    codec = TopK(k, len(prior), TEMPERATURES, prior)
    columns = encode_rows(codec, logits).columns
    assert np.isneginf(columns["tail_lse"]).all()
    assert np.isneginf(tail_of(codec.logits(columns, T), columns["ids"])).all()


@pytest.mark.parametrize("prior", [[0, 1, np.nan], [0, -np.inf, 1], [0, 1]])
def test_a_prior_is_a_finite_logit_a_class(prior: list[float]) -> None:
    with pytest.raises(ValueError, match="prior must be 3 finite logits"):
        TopK(1, 3, TEMPERATURES, np.asarray(prior, np.float32))


def test_worked_rows_of_water_filling() -> None:
    """Three classes share a mass of 1.5 ceilings: one is held, the others have the rest."""
    codec = TopK(1, 4, (1.0,), np.log(np.asarray([1, 8, 2, 2], np.float32)))
    columns: Columns = {
        "ids": np.asarray([[0], [0]], np.uint16),
        "logits": np.zeros((2, 1), np.float16),
        "tail_lse": np.log(np.asarray([[1.5], [0.6]], np.float32)),
    }
    shares = np.exp(codec.logits(columns, 1.0).astype(np.float64))
    assert shares[0] == pytest.approx([1, 1, 0.25, 0.25])
    assert shares[1] == pytest.approx([1, 0.4, 0.1, 0.1])


@given(cases(), st.integers(1, 23))
def test_narrow_is_encoding_with_a_smaller_k(case: tuple[Floats, Floats, int], k: int) -> None:
    logits, prior, wide = case
    assume(k <= wide)
    codec, small = TopK(wide, len(prior), TEMPERATURES), TopK(k, len(prior), TEMPERATURES)
    narrowed = codec.narrow(encode_rows(codec, logits).columns, k)
    expected = encode_rows(small, logits).columns
    assert set(narrowed) == set(expected)
    for name in ("ids", "logits"):
        assert np.array_equal(narrowed[name], expected[name])
        assert narrowed[name].dtype == expected[name].dtype
    assert narrowed["tail_lse"].dtype == np.float32
    # The dropped logits come with float16's rounding: half a unit in their last place.
    moved = np.abs(expected["tail_lse"]) * 2.0**-11 + 50 * 2.0**-11 + 1e-6
    assert (np.abs(narrowed["tail_lse"] - expected["tail_lse"]) <= moved).all()


@pytest.mark.parametrize("k", [0, 4])
def test_narrow_cannot_widen(k: int) -> None:
    codec = TopK(3, 5, TEMPERATURES)
    columns = encode_rows(codec, np.zeros((1, 5), np.float32)).columns
    with pytest.raises(ValueError, match="k must be from 1 to 3, which the labels keep"):
        codec.narrow(columns, k)


def test_masked_classes_are_kept_or_all_left_out() -> None:
    logits = np.asarray([[3, 2, 1, -np.inf, -np.inf, -np.inf]] * 2, np.float32)
    for k in (3, 4, 5):
        codec = TopK(k, 6, TEMPERATURES)
        columns = codec.narrow(encode_rows(codec, logits).columns, 3)
        assert np.isneginf(columns["tail_lse"]).all()
        probs = softmax(TopK(3, 6, TEMPERATURES).logits(columns, 2.0), 2.0)
        assert (probs[:, 3:] == 0).all()
        with pytest.raises(ValueError, match="-inf among classes that topk leaves out") as caught:
            codec.narrow(encode_rows(codec, logits).columns, 2)
        assert caught.value.args[1] == 0
    logits[0] = 0
    with pytest.raises(ValueError, match="-inf among classes that topk leaves out") as caught:
        encode_rows(TopK(2, 6, TEMPERATURES), logits)
    assert caught.value.args[1] == 1


@given(cases())
def test_the_sampled_prior_is_finite_and_its_largest_logit_0(
    case: tuple[Floats, Floats, int],
) -> None:
    logits, prior, k = case
    sample = TailPrior(len(prior), k)
    sample.add(logits - logits.max(axis=1, keepdims=True))
    found = np.asarray(sample.logits())
    assert found.shape == prior.shape
    assert np.isfinite(found).all()
    assert found.max() == 0


def test_masked_classes_leave_the_sampled_prior_finite() -> None:
    sample = TailPrior(4, 1)
    sample.add(np.asarray([[0, -1, -np.inf, -np.inf], [0, -np.inf, -np.inf, -np.inf]], np.float32))
    found = sample.logits()
    assert np.isfinite(found).all()
    assert found[1] == 0
    assert found[2] == found[3] < -100


def test_a_sample_without_tails_gives_an_even_prior() -> None:
    sample = TailPrior(3, 1)
    sample.add(np.asarray([[0, -np.inf, -np.inf]], np.float32))
    assert sample.logits() == (0, 0, 0)


def test_the_sampled_prior_is_what_the_tails_share() -> None:
    """At T = 2 rows with the tails (.2, .1) and (.02, .03) of the classes 1 and 2."""
    sample = TailPrior(3, 1)
    probs = np.asarray([[0.7, 0.2, 0.1], [0.95, 0.02, 0.03]])
    sample.add(np.asarray(2 * np.log(probs / probs.max(axis=1, keepdims=True)), np.float32))
    kept, first, second = sample.logits()
    assert kept == first == 0
    assert second == pytest.approx(2 * np.log(0.13 / 0.22), abs=1e-3)


def test_the_order_of_batches_does_not_matter_to_the_prior() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (64, 30)).astype(np.float32)
    d = logits - logits.max(axis=1, keepdims=True)
    whole, parts = TailPrior(30, 4), TailPrior(30, 4)
    whole.add(d)
    for part in np.split(d[::-1], 8):
        parts.add(part)
    assert whole.logits() == pytest.approx(parts.logits(), abs=2e-3)


def zipf_like(rows: int, classes: int = 300) -> Floats:
    random = np.random.default_rng(11)
    common = random.permutation(-1.2 * np.log(np.arange(1, classes + 1)))
    own = random.normal(size=(rows, 8)) @ random.normal(size=(8, classes))
    return np.asarray(common + 0.4 * own, np.float32)


def test_the_sampled_prior_says_more_than_a_uniform_tail_at_every_temperature() -> None:
    logits = zipf_like(1500)
    sample = TailPrior(300, 10)
    sample.add(logits[:1000] - logits[:1000].max(axis=1, keepdims=True))
    prior = np.asarray(sample.logits(), np.float32)
    loss = []
    for shape in (None, prior):
        codec = TopK(10, 300, TEMPERATURES, shape)
        columns = encode_rows(codec, logits[1000:]).columns
        decoded = [codec.logits(columns, T) for T in TEMPERATURES]
        loss.append(np.asarray(kl_sums(logits[1000:], decoded, TEMPERATURES)))
    assert (loss[1] < 0.9 * loss[0]).all()


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=8),
    st.integers(1, 5000),
)
def test_sampled_rows_are_spread_evenly_over_all_files(sizes: list[int], rows: int) -> None:
    files = [SourceFile(name=f"part-{i}", rows=size, bytes=size) for i, size in enumerate(sizes)]
    starts = dict(zip([file.name for file in files], np.cumsum([0, *sizes]), strict=False))
    segments = spread_rows(files, rows)
    assert segments == spread_rows(files, rows)
    taken = np.concatenate(
        [starts[s.source] + np.arange(s.first, s.first + s.rows) for s in segments]
    )
    total = sum(sizes)
    assert (np.diff(taken) > 0).all()
    assert taken[0] == 0
    assert taken[-1] < total
    wanted = min(rows, total)
    assert wanted / 2 < len(taken) <= wanted
    largest_gap = np.diff([*taken, total]).max()
    assert largest_gap <= 2 * -(-total // min(512, wanted)) + 1
    for segment in segments:
        assert segment.first + segment.rows <= sizes[int(segment.source.removeprefix("part-"))]
