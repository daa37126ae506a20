"""The codecs in torch against those in NumPy: the same payload bytes, the same soft targets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from softlabel.pipeline.codecs import in_torch as torch_codecs
from softlabel.pipeline.codecs.codec import Codec, encode_rows
from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.codecs.make import make_codec
from softlabel.schemas.labelset import CodecName

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
WIDTH, CLASSES = 5, 40
NAMES: tuple[CodecName, ...] = ("dense-f32", "dense-f16", "dense-u8", "topk", "factored")
SUMS = {"lse", "tail_lse"}
Floats = npt.NDArray[np.float32]


def head(classes: int = CLASSES) -> Head:
    random = np.random.default_rng(7)
    weight = random.normal(size=(classes, WIDTH)).astype(np.float32)
    return Head(weight, random.normal(size=classes).astype(np.float32))


def codec_of(name: CodecName, classes: int = CLASSES, prior: Floats | None = None) -> Codec:
    shape = None if prior is None else prior.tolist()
    return make_codec(name, classes, TEMPERATURES, k=3, prior=shape, head=head(classes))


def some_features(rows: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)


def logits_of(kind: str) -> Floats:
    random = np.random.default_rng(3)
    normal = random.normal(size=(50, CLASSES)).astype(np.float32)
    match kind:
        case "gentle":
            return 3 * normal
        case "wild":
            return (normal * 10.0 ** random.uniform(-8, 5, (50, 1))).astype(np.float32)
        case "ties":
            return np.round(normal)
        case "equal":
            return np.full((4, CLASSES), 4.5, np.float32)
        case "signs":
            return random.choice(np.asarray([1e4, -1e4, 0, -0.0, 1e-7], np.float32), (50, CLASSES))
        case "huge":
            return random.choice(np.asarray([3e38, -3e38, 0, 1e30], np.float32), (50, CLASSES))
        case _:
            # All but the kept ones masked, or none: the codecs that can hold it do.
            masked = np.full((50, CLASSES), -np.inf, np.float32)
            masked[:, 5:8] = normal[:, 5:8]
            return masked


KINDS = ("gentle", "wild", "ties", "equal", "signs", "huge", "masked")


# A byte has no place for a mask, and the head of these sets knows none.
UNMASKED = ("dense-u8", "factored")
CASES = [
    (name, kind) for name in NAMES for kind in KINDS if not (name in UNMASKED and kind == "masked")
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_payload_has_numpy_s_bytes(name: CodecName, kind: str) -> None:
    codec, logits = codec_of(name), logits_of(kind)
    features = some_features(len(logits))
    expected = encode_rows(codec, logits, features)
    got = torch_codecs.encode(codec, torch.from_numpy(logits), torch.from_numpy(features))
    torch_codecs.refuse(codec, got)
    stored = {"shift": expected.shift, "top1": expected.top1, **expected.columns}
    assert set(got) == set(stored)
    for column, values in stored.items():
        tensor = got[column].numpy()
        assert tensor.dtype == values.dtype, column
        assert tensor.shape == values.shape, column
        if column in SUMS:
            assert tensor == pytest.approx(values, abs=1e-6, rel=1e-6), column
        else:
            assert tensor.tobytes() == np.ascontiguousarray(values).tobytes(), column


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_decoded_rows_are_numpy_s(name: CodecName, kind: str) -> None:
    codec, logits = codec_of(name), logits_of(kind)
    assert_decodes_alike(codec, logits)


@pytest.mark.parametrize("spread", [0.1, 3.0, 1000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_s_tail_is_numpy_s(kind: str, spread: float) -> None:
    prior = np.random.default_rng(5).normal(0, spread, CLASSES).astype(np.float32)
    # What a row's last class gets may be the difference of two nearly equal masses.
    assert_decodes_alike(codec_of("topk", prior=prior), logits_of(kind), 2e-5)


def assert_decodes_alike(codec: Codec, logits: Floats, tolerance: float = 2e-6) -> None:
    rows = encode_rows(codec, logits, some_features(len(logits)))
    columns = {**rows.columns, "top1": rows.top1}
    tensors = {column: torch.tensor(values) for column, values in columns.items()}
    for T in (*TEMPERATURES, 3.0, 100.0):
        decoded = torch_codecs.decode(codec, tensors, T)
        assert decoded.dtype == torch.float32
        expected = codec.logits(columns, T)
        assert np.array_equal(decoded.argmax(dim=1).numpy(), expected.argmax(axis=1)), T
        assert decoded.numpy() == pytest.approx(expected, rel=tolerance, abs=2e-6), T


@pytest.mark.parametrize("classes", [2, 65536, 65537])
def test_ids_have_the_type_that_the_classes_ask_for(classes: int) -> None:
    logits = np.zeros((2, classes), np.float32)
    logits[1, classes - 1] = 1
    codec = make_codec("topk", classes, TEMPERATURES, k=1)
    got = torch_codecs.encode(codec, torch.from_numpy(logits))
    wanted = np.uint16 if classes <= 65536 else np.uint32
    assert got["ids"].numpy().dtype == got["top1"].numpy().dtype == wanted
    assert got["ids"].numpy().tolist() == [[0], [classes - 1]]
    decoded = torch_codecs.decode(codec, got, 1.0)
    assert decoded[1, classes - 1] == 0
    assert decoded.shape == (2, classes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [0, 1, 7, 10])
def test_chunks_change_nothing(name: CodecName, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = codec_of(name)
    logits, features = torch.from_numpy(logits_of("gentle")[:rows]), some_features(rows)
    whole = torch_codecs.encode(codec, logits, torch.from_numpy(features))
    decoded = torch_codecs.decode(codec, whole, 2.0)
    monkeypatch.setattr(torch_codecs, "CHUNK_VALUES", 3 * CLASSES + 1)
    pieces = torch_codecs.encode(codec, logits, torch.from_numpy(features))
    assert {column: values.shape[0] for column, values in pieces.items()} == dict.fromkeys(
        whole, rows
    )
    for column, values in whole.items():
        assert torch.equal(values.view(torch.uint8), pieces[column].view(torch.uint8)), column
    assert torch_codecs.decode(codec, pieces, 2.0) == pytest.approx(decoded, abs=1e-6)


def test_nothing_of_the_teacher_s_graph_is_kept() -> None:
    logits = torch.zeros(2, CLASSES, requires_grad=True, dtype=torch.float16)
    columns = torch_codecs.encode(codec_of("dense-f16"), logits)
    assert not any(values.requires_grad for values in columns.values())


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("dense-f16", NAN, "logits hold NaN"),
        ("topk", INF, r"logits hold \+inf"),
        ("dense-f32", -INF, "logits hold nothing but -inf"),
    ],
)
def test_a_row_without_soft_targets_is_refused_as_numpy_does(
    name: CodecName, value: float, said: str
) -> None:
    logits = logits_of("gentle")
    logits[4] = value
    assert_refused(name, logits, some_features(50), said, 4)


@pytest.mark.parametrize("name", ["dense-u8", "topk"])
def test_a_masked_class_that_cannot_be_stored_is_refused(name: CodecName) -> None:
    logits = logits_of("gentle")
    logits[6, logits[6].argmin()] = -INF
    assert_refused(name, logits, some_features(50), "logits hold -inf", 6)


@pytest.mark.parametrize("value", [65505.0, -65510.0, INF, NAN])
def test_features_beyond_float16_are_refused(value: float) -> None:
    features = some_features(50)
    features[9, 2] = value
    assert_refused("factored", logits_of("gentle"), features, "features are beyond 65,504", 9)


def assert_refused(name: CodecName, logits: Floats, features: Floats, said: str, row: int) -> None:
    codec = codec_of(name)
    columns = torch_codecs.encode(codec, torch.from_numpy(logits), torch.from_numpy(features))
    for refuse in (
        lambda: torch_codecs.refuse(codec, columns),
        lambda: encode_rows(codec, logits, features),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            refuse()
        assert caught.value.args[1] == row


def test_topk_below_its_temperatures_is_an_error() -> None:
    codec = codec_of("topk")
    columns = torch_codecs.encode(codec, torch.zeros(1, CLASSES))
    with pytest.raises(ValueError, match=r"temperature 0\.5 is below 1"):
        torch_codecs.decode(codec, columns, 0.5)


def test_factored_without_features_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs the features"):
        torch_codecs.encode(codec_of("factored"), torch.zeros(1, CLASSES))
