import math

import numpy as np
import numpy.typing as npt
import pytest

from softlabel.pipeline.codecs.numerics import id_dtype, kl_sums, softmax
from tests.unit.builders import encode_half


def rows(*values: list[float]) -> npt.NDArray[np.float32]:
    return np.asarray(values, np.float32)


def test_worked_row() -> None:
    stored = encode_half(rows([1, 3, 2]), [1.0, 2.0])
    assert stored.payload.dtype == np.float16
    assert stored.payload.tolist() == [[-2, 0, -1]]
    assert stored.shift.tolist() == [3]
    assert stored.top1.tolist() == [1]
    wanted = [math.log(1 + math.exp(-1 / T) + math.exp(-2 / T)) for T in (1, 2)]
    assert stored.lse.dtype == np.float32
    assert stored.lse[0].tolist() == pytest.approx(wanted, rel=1e-6)


def test_ties_go_to_the_lowest_id() -> None:
    stored = encode_half(rows([0, 7, 7], [5, 5, 5]), [1.0])
    assert stored.top1.tolist() == [1, 0]
    assert stored.payload.tolist() == [[-7, 0, 0], [0, 0, 0]]
    assert stored.lse[1, 0] == pytest.approx(math.log(3))


def test_a_gap_below_float16_does_not_become_a_tie() -> None:
    below = float(np.nextafter(np.float32(1e-4), np.float32(0)))
    stored = encode_half(rows([below, 1e-4]), [1.0])
    assert stored.payload[0, 1] == 0
    assert stored.payload[0, 0] == np.float16(-6e-8) < 0


def test_finite_values_are_clamped_and_masked_classes_are_kept() -> None:
    stored = encode_half(rows([0, -1e6, -np.inf, -65504, -65519]), [1.0])
    assert stored.payload.tolist() == [[0, -65504, -math.inf, -65504, -65504]]


def test_extreme_spread_stays_finite() -> None:
    stored = encode_half(rows([3e38, -3e38], [-3e38, -3e38]), [1.0, 8.0])
    assert stored.payload.tolist() == [[0, -65504], [0, 0]]
    assert stored.lse[0].tolist() == [0, 0]
    assert stored.lse[1].tolist() == pytest.approx([math.log(2)] * 2)


def test_extreme_spread_at_a_temperature_below_one() -> None:
    stored = encode_half(rows([0, -3e38]), [0.5])
    assert stored.lse.tolist() == [[0]]


def test_one_row_among_good_ones_is_named() -> None:
    with pytest.raises(ValueError, match="logits hold NaN") as caught:
        encode_half(rows([0, 1], [2, 3], [math.nan, 0], [math.inf, 0]), [1.0])
    assert caught.value.args[1] == 2


@pytest.mark.parametrize(
    ("classes", "dtype"), [(2, np.uint16), (65536, np.uint16), (65537, np.uint32)]
)
def test_id_type_follows_from_the_classes(classes: int, dtype: type[np.unsignedinteger]) -> None:
    assert id_dtype(classes) == dtype
    assert classes - 1 <= np.iinfo(id_dtype(classes)).max


def test_top1_has_the_id_type_and_reaches_the_last_class() -> None:
    logits = np.zeros((1, 65537), np.float32)
    logits[0, 65536] = 1
    stored = encode_half(logits, [1.0])
    assert stored.top1.dtype == np.uint32
    assert stored.top1.tolist() == [65536]


def test_log_sum_of_many_equal_classes_is_the_logarithm_of_their_number() -> None:
    stored = encode_half(np.full((2, 21841), 4.5, np.float32), [1.0, 8.0])
    assert stored.lse == pytest.approx(math.log(21841), rel=1e-6)


def test_kl_sums_over_rows_at_each_temperature() -> None:
    logits = rows([math.log(3), 0], [0, 0])
    stored = np.asarray([[0, 0], [0, 0]], np.float16)
    root = math.sqrt(3) / (1 + math.sqrt(3))
    wanted = (
        0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5),
        root * math.log(root / 0.5) + (1 - root) * math.log((1 - root) / 0.5),
    )
    assert kl_sums(logits, [stored] * 2, [1.0, 2.0]) == pytest.approx(wanted, rel=1e-6)


def test_kl_with_a_masked_class_on_both_sides() -> None:
    logits = rows([0, -math.inf, 0])
    assert kl_sums(logits, [encode_half(logits, [1.0]).payload], [1.0]) == (0,)


def test_softmax_worked() -> None:
    logits = np.asarray([[0, math.log(3)]], np.float32)
    assert softmax(logits, 1.0)[0].tolist() == pytest.approx([0.25, 0.75])
    assert softmax(2 * logits, 2.0)[0].tolist() == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("logits", [[3e38, -3e38], [3e38, 0], [1e4, -1e4]])
def test_softmax_of_extreme_logits(logits: list[float], temperature: float) -> None:
    assert softmax(rows(logits), temperature).tolist() == [[1, 0]]
