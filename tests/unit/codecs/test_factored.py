"""The head of a factored set: its file, its order of classes, and what the codec keeps of a row."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load

from softlabel.pipeline.codecs.codec import EncodedRows, encode_rows
from softlabel.pipeline.codecs.factored import Factored, Head, read_head
from softlabel.pipeline.codecs.make import make_codec
from softlabel.pipeline.codecs.numerics import kl_sums, softmax
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Identity
from softlabel.schemas.teacher import Preprocess

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)


def make_head(classes: int = 30, width: int = 8, seed: int = 0) -> Head:
    random = np.random.default_rng(seed)
    weight = (random.normal(size=(classes, width)) / np.sqrt(width)).astype(np.float32)
    return Head(weight, random.normal(size=classes).astype(np.float32))


def features_of(rows: int, width: int = 8) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 3, (rows, width)).astype(np.float32)


def encoded(head: Head, rows: int = 200) -> tuple[Factored, EncodedRows]:
    codec = Factored(head, TEMPERATURES)
    features = features_of(rows, head.weight.shape[1])
    return codec, encode_rows(codec, head.logits(features), features)


def test_the_file_is_a_pure_function_of_the_head() -> None:
    head = make_head()
    turned = Head(np.asfortranarray(head.weight), head.bias[::-1][::-1])
    assert head.to_bytes() == turned.to_bytes()
    stored = load(turned.to_bytes())
    assert np.array_equal(stored["weight"], head.weight)
    assert np.array_equal(stored["bias"], head.bias)
    assert head.digest() == hashlib.sha256(head.to_bytes()).hexdigest()
    assert head.digest() != make_head(seed=1).digest()


def test_a_head_comes_back(tmp_path: Path) -> None:
    head = make_head()
    (tmp_path / "head").write_bytes(head.to_bytes())
    back = read_head(tmp_path / "head", head.digest(), "infer")
    assert np.array_equal(back.weight, head.weight)
    assert np.array_equal(back.bias, head.bias)


def test_a_head_that_cannot_be_trusted_says_how_to_get_it_back(tmp_path: Path) -> None:
    head = make_head()
    path = tmp_path / "head"
    remedy = "run the same 'softlabel convert' again: it writes the head and keeps the shards"
    with pytest.raises(DataError, match="missing or damaged") as caught:
        read_head(path, head.digest(), "convert")
    assert str(caught.value).endswith(remedy)
    path.write_bytes(head.to_bytes()[:-1])
    with pytest.raises(DataError, match="missing or damaged"):
        read_head(path, head.digest(), "convert")
    path.write_bytes(make_head(seed=1).to_bytes())
    with pytest.raises(DataError, match="other SHA-256") as caught:
        read_head(path, head.digest(), "convert")
    assert str(caught.value).endswith(remedy)


def test_classes_in_another_order() -> None:
    head, order = make_head(classes=4), [2, 0, 3]
    features = features_of(5)
    assert np.array_equal(head.take(order).logits(features), head.logits(features)[:, order])


def test_the_logits_come_back_at_any_temperature() -> None:
    head = make_head(classes=300, width=64)
    codec, rows = encoded(head, 500)
    logits = head.logits(features_of(500, 64))
    decoded = codec.logits({**rows.columns, "top1": rows.top1}, 1.0)
    assert np.array_equal(decoded.argmax(axis=1), logits.argmax(axis=1))
    assert (decoded.max(axis=1) == 0).all()
    for total in kl_sums(logits, [decoded] * 4, TEMPERATURES):
        assert 0 < total / 500 < 1e-6
    assert rows.columns["features"].nbytes == 500 * 2 * 64


def test_top1_settles_a_tie_that_rounding_made() -> None:
    # In float16 both features are 2048; in float32 the second class is ahead.
    head = Head(np.eye(3, 2, dtype=np.float32), np.zeros(3, np.float32))
    features = np.asarray([[2048.0, 2048.4]], np.float32)
    codec = Factored(head, (1.0,))
    rows = encode_rows(codec, head.logits(features), features)
    decoded = codec.logits({**rows.columns, "top1": rows.top1}, 1.0)
    assert rows.top1.tolist() == [1]
    assert decoded[0, 1] == 0
    assert decoded[0, 0] < 0
    assert softmax(decoded, 1.0)[0, 0] == pytest.approx(0.5, abs=1e-3)


def test_a_class_that_the_bias_masks_has_probability_zero() -> None:
    head = make_head()
    head.bias[3] = -np.inf
    codec, rows = encoded(head)
    probs = softmax(codec.logits({**rows.columns, "top1": rows.top1}, 2.0), 2.0)
    assert (probs[:, 3] == 0).all()
    assert probs.sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("value", [65504.0, -65504.0])
def test_the_largest_float16_is_kept(value: float) -> None:
    features = features_of(3)
    features[1, 4] = value
    codec = Factored(make_head(), TEMPERATURES)
    rows = encode_rows(codec, codec.head.logits(features), features)
    assert rows.columns["features"][1, 4] == value


@pytest.mark.parametrize("value", [65505.0, -65519.0, np.inf, np.nan])
def test_a_feature_beyond_float16_is_refused_with_its_row(value: float) -> None:
    features = features_of(70)
    features[61, 0] = value
    codec = Factored(make_head(), TEMPERATURES)
    with pytest.raises(ValueError, match="features are beyond 65,504") as caught:
        encode_rows(codec, codec.head.logits(features_of(70)), features)
    assert caught.value.args[1] == 61


def test_a_mask_that_the_head_does_not_know_is_refused_with_its_row() -> None:
    head = make_head(3, 2)
    logits = np.array([[1, 2, 3], [1, -np.inf, 2]], np.float32)
    with pytest.raises(ValueError, match="-inf, which factored cannot store") as caught:
        encode_rows(Factored(head, TEMPERATURES), logits, features_of(2, 2))
    assert caught.value.args[1] == 1


def test_an_identity_does_not_store_features_twice() -> None:
    with pytest.raises(ValidationError, match="codec factored stores features already"):
        Identity(
            teacher_sha256=("0" * 64,),
            preprocess=Preprocess(height=2, width=3, channels=1, mean=(0.5,), std=(0.5,)),
            classes=("ant", "bee"),
            output="logits",
            output_kind="logits",
            source=(),
            temperatures=TEMPERATURES,
            codec="factored",
            features=8,
        )


def test_without_features_there_is_nothing_to_keep() -> None:
    codec = Factored(make_head(), TEMPERATURES)
    with pytest.raises(ValueError, match="needs the features"):
        encode_rows(codec, np.zeros((2, 30), np.float32))
    with pytest.raises(ValueError, match="needs a head"):
        make_codec("factored", 30, TEMPERATURES)


def test_the_slack_bounds_what_rounding_moved_and_not_much_more() -> None:
    head = make_head(classes=300, width=64)
    codec, rows = encoded(head, 500)
    logits = head.logits(features_of(500, 64))
    moved = np.abs(head.logits(rows.columns["features"]) - logits).max(axis=1)
    slack = codec.slack(rows.columns)
    assert (moved <= slack).all()
    assert (slack < 0.01 * np.abs(logits).max(axis=1)).all()
