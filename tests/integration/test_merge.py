"""merge: the mean of what several teachers said of the same samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import softlabel
from softlabel.pipeline.codecs.codec import encode_rows
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.packing import make_packing
from softlabel.schemas.labelset import CodecName, Derivation, Layout
from tests.unit.blocks import CLASSES, HEAD, packing_of
from tests.unit.label_sets import all_rows, write_set

if TYPE_CHECKING:
    from tests.conftest import Command, Project

Floats = npt.NDArray[np.float32]
INFER = ("infer", "--batch-size", "8", "--shard-rows", "80")
ROWS = 8


@pytest.fixture
def merge(command: Command) -> Callable[..., dict[str, Any]]:
    """Run merge, see it succeed, and return its report."""

    def run(*arguments: str) -> dict[str, Any]:
        outcome = command(*merged(*arguments), "--json")
        assert outcome.code == 0, outcome.stderr
        report: dict[str, Any] = json.loads(outcome.stdout)
        return report

    return run


Merge = Callable[..., dict[str, Any]]


def merged(*arguments: str) -> list[str]:
    """The command line: folders first, then flags; the output is `mean`."""
    first_flag = next((i for i, word in enumerate(arguments) if word[:2] == "--"), len(arguments))
    folders = [word for name in arguments[:first_flag] for word in ("--labels", name)]
    return ["merge", *folders, "--output", "mean", *arguments[first_flag:]]


def raw_logits(seed: int, rows: int = ROWS) -> Floats:
    return np.random.default_rng(seed).normal(0, 3, (rows, len(CLASSES))).astype(np.float32)


def write_logits(
    name: str,
    logits: Floats,
    codec: CodecName = "dense-f32",
    *,
    layout: Layout = "packed",
    keys: list[str] | None = None,
    classes: tuple[str, ...] = CLASSES,
    teacher: str = "0",
    **shape: Any,
) -> LabelSet:
    """A set of two shards that says these raw logits; a row is a sample where nothing else."""
    packing = packing_of(codec, layout, **shape)
    changes = {"classes": classes, "teacher_sha256": (teacher * 64,)}
    identity = packing.identity.model_copy(update=changes)
    packing = make_packing(identity, layout, head=HEAD if codec == "factored" else None)
    features = np.zeros((len(logits), 3), np.float32) if codec == "factored" else None
    rows = encode_rows(packing.codec, logits, features)
    views, positions = shape.get("views", 1), shape.get("positions", False)
    count = len(logits) // 2 if positions else len(logits)
    block = LabelBlock(
        keys=pa.array(keys or [f"key-{row // views}" for row in range(count)]),
        labels=pa.array(np.arange(len(logits), dtype=np.int32) % len(CLASSES)),
        top1=rows.top1,
        shift=rows.shift,
        payload=rows.columns,
        codec=packing.codec,
        views=(np.arange(count) % views).astype(np.uint16) if views > 1 else None,
        lengths=np.full(count, 2, np.uint32) if positions else None,
        features=np.zeros((len(logits), 2), np.float16) if shape.get("features") else None,
    )
    half = count // 2
    return write_set(Path(name), packing, [block.slice(0, half), block.slice(half, count - half)])


def stored_logits(labels: LabelSet) -> Floats:
    block = all_rows(labels)
    return np.asarray(block.logits() + block.shift[:, None], np.float32)


def softmax(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    weights = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def derivation(labels: LabelSet) -> Derivation:
    assert labels.manifest.identity.derived is not None
    return labels.manifest.identity.derived


@pytest.mark.parametrize("shape", [{}, {"views": 2}, {"positions": True}, {"features": True}])
@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
def test_the_mean_of_logits(
    empty_project: Project, merge: Merge, shape: dict[str, Any], weights: tuple[float, ...]
) -> None:
    one, two = raw_logits(1), raw_logits(2)
    a = write_logits("a", one, teacher="a", **shape)
    b = write_logits("b", two, teacher="b", **shape)
    flags = [word for weight in weights for word in ("--weights", str(weight))]
    report = merge("a", "b", "--codec", "dense-f32", *flags)
    mean = softlabel.open("mean")
    share = 0.75 if weights else 0.5
    np.testing.assert_allclose(
        stored_logits(mean), share * one + (1 - share) * two, rtol=1e-5, atol=1e-5
    )
    assert report["weights"] == [share, 1 - share]
    assert mean.manifest.identity.teacher_sha256 == ("a" * 64, "b" * 64)
    assert derivation(mean) == Derivation(
        verb="merge",
        parents=(a.identity, b.identity),
        codecs=(),
        weights=(share, 1 - share),
        mean="logits",
    )
    assert mean.manifest.reference == "float32 logits"
    old, new = all_rows(a), all_rows(mean)
    assert new.keys.equals(old.keys)
    assert new.labels.equals(old.labels)
    assert [shard.segments for shard in mean.manifest.shards] == [
        shard.segments for shard in a.manifest.shards
    ]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_mean_of_probabilities(
    empty_project: Project, merge: Merge, temperature: float
) -> None:
    one, two = raw_logits(1), raw_logits(2)
    one[3, 2] = -np.inf
    write_logits("a", one)
    write_logits("b", two)
    flags = ("--mean", "probs", "--temperature", str(temperature), "--codec", "dense-f32")
    merge("a", "b", *flags, "--weights", "1", "--weights", "3")
    mean = softlabel.open("mean")
    expected = 0.25 * softmax(one / temperature) + 0.75 * softmax(two / temperature)
    block = all_rows(mean)
    np.testing.assert_allclose(block.probs(temperature), expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        block.shift, temperature * np.log(expected.max(axis=1)), rtol=1e-4, atol=1e-6
    )
    assert derivation(mean).mean == "probs"
    assert derivation(mean).temperature == temperature


def test_a_class_masked_in_one_member(
    empty_project: Project, merge: Merge, command: Command
) -> None:
    one, two = raw_logits(1), raw_logits(2)
    one[3, 2] = -np.inf
    one[5, :3] = -np.inf
    write_logits("a", one)
    write_logits("b", two)
    merge("a", "b", "--codec", "dense-f32")
    masked = np.isneginf(stored_logits(softlabel.open("mean")))
    np.testing.assert_array_equal(masked, np.isneginf(one))
    two[5, 3:] = -np.inf
    write_logits("c", two)
    outcome = command(*merged("a", "c", "--overwrite"))
    assert outcome.code == 3
    assert "nothing but -inf for key 'key-5'" in outcome.stderr
    merge("a", "c", "--mean", "probs", "--temperature", "1", "--if-different", "replace")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_equal_members_merge_to_themselves(
    empty_project: Project, merge: Merge, count: int
) -> None:
    logits = raw_logits(1, 4000)
    logits[7] *= 1e6
    logits[9, 2:] = -np.inf
    labels = write_logits("a", logits)
    merge(*["a"] * count, "--codec", "dense-f32")
    old, new = all_rows(labels), all_rows(softlabel.open("mean"))
    for name, values in old.payload.items():
        np.testing.assert_array_equal(new.payload[name], values)
    np.testing.assert_array_equal(new.shift, old.shift)
    np.testing.assert_array_equal(new.top1, old.top1)


def test_equal_members_of_probabilities(empty_project: Project, merge: Merge) -> None:
    labels = write_logits("a", raw_logits(1))
    merge("a", "a", "--mean", "probs", "--temperature", "2", "--codec", "dense-f32")
    mean = all_rows(softlabel.open("mean"))
    np.testing.assert_allclose(mean.logits(), all_rows(labels).logits(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["packed", "sidecar"])
def test_members_in_other_orders(empty_project: Project, merge: Merge, layout: Layout) -> None:
    """Rows are matched by key and classes by name."""
    one, two = raw_logits(1), raw_logits(2)
    write_logits("a", one)
    rows, columns = np.random.default_rng(3).permutation(ROWS), [3, 1, 0, 5, 4, 2]
    write_logits(
        "b",
        two[rows][:, columns],
        keys=[f"key-{row}" for row in rows],
        classes=tuple(CLASSES[column] for column in columns),
        layout=layout,
    )
    merge("a", "b", "--codec", "dense-f32")
    mean = softlabel.open("mean")
    assert mean.classes == CLASSES
    np.testing.assert_allclose(stored_logits(mean), (one + two) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("codec", ["dense-f16", "dense-u8", "factored"])
def test_lossy_members(empty_project: Project, merge: Merge, codec: CodecName) -> None:
    one = raw_logits(1)
    a, b = write_logits("a", one), write_logits("b", raw_logits(2), codec)
    report = merge("a", "b", "--codec", "topk", "--k", "3")
    mean = softlabel.open("mean")
    expected = (stored_logits(a).astype(np.float64) + stored_logits(b)) / 2
    kept = np.argsort(-expected, axis=1)[:, :3]
    np.testing.assert_array_equal(all_rows(mean).payload["ids"], kept)
    assert derivation(mean).codecs == (codec,)
    assert mean.manifest.reference == codec
    assert 0 < max(report["kl_mean"].values()) < 1


def test_the_codec_is_float16_by_default(empty_project: Project, merge: Merge) -> None:
    write_logits("a", raw_logits(1))
    write_logits("b", raw_logits(2))
    assert merge("a", "b")["codec"] == "dense-f16"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"codec": "topk"}, "b: topk kept 3 of 6 classes"),
        ({"classes": tuple("abcdeg")}, "lacks classes of label set a: 'f'"),
        ({"views": 2}, "differs from a in source, views"),
        ({"positions": True}, "differs from a in source, positions"),
        ({"rows": 10}, "differs from a in source"),
        ({"keys": [f"other-{row}" for row in range(ROWS)]}, "'key-0'"),
    ],
)
def test_sets_that_do_not_belong_together(
    empty_project: Project, command: Command, other: dict[str, Any], said: str
) -> None:
    write_logits("a", raw_logits(1))
    more = dict(other)
    write_logits("b", raw_logits(2, more.pop("rows", ROWS)), **more)
    outcome = command(*merged("a", "b"))
    assert outcome.code == 3, outcome.stderr
    assert said in outcome.stderr
    assert not Path("mean/labelset.json").exists()


def test_a_subset_and_a_whole_set(empty_project: Project, command: Command, merge: Merge) -> None:
    write_logits("a", raw_logits(1))
    write_logits("b", raw_logits(2))
    Path("keys").write_text("key-6\nkey-2\n")
    for name in ("a", "b"):
        flags = ("--labels", name, "--output", f"{name}-part", "--keys", "keys")
        assert command("convert", *flags).code == 0
    outcome = command(*merged("a-part", "b"))
    assert outcome.code == 3
    assert "b: has 8 rows, a-part has 2" in outcome.stderr
    merge("a-part", "b-part", "--codec", "dense-f32")
    mean = softlabel.open("mean")
    expected = (raw_logits(1) + raw_logits(2))[[2, 6]] / 2
    np.testing.assert_allclose(stored_logits(mean), expected, rtol=1e-5, atol=1e-5)
    assert derivation(mean).keys_sha256 is not None
    assert not mean.manifest.aligned


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--mean", "probs"), "mean 'probs' needs the temperature"),
        (("--temperature", "2"), "temperature is of mean 'probs'"),
        (("--weights", "1"), "weights are 1 for 2 label sets"),
        (("--weights", "1", "--weights", "0"), "--weights"),
        (("--codec", "topk"), "64 of 6 classes"),
        (("--codec", "factored"), "--codec"),
    ],
)
def test_bad_flags(
    empty_project: Project, command: Command, flags: tuple[str, ...], said: str
) -> None:
    write_logits("a", raw_logits(1))
    outcome = command(*merged("a", "a", *flags))
    assert outcome.code == 2, outcome.stderr
    assert said in outcome.stderr
    assert not Path("mean").exists()


def test_one_set_is_no_ensemble(empty_project: Project, command: Command) -> None:
    write_logits("a", raw_logits(1))
    assert command(*merged("a")).code == 2
    outcome = command("merge", "--labels", "a", "--labels", "b", "--output", "a")
    assert outcome.code == 2
    assert "choose another --output" in outcome.stderr


def test_exactly_the_broken_shard_is_redone(
    project: Project, merge: Merge, command: Command
) -> None:
    project.teacher("models/other.onnx", sharpness=40)
    assert command(*INFER, "--codec", "dense-f32", "--output", "a").code == 0
    other = (*INFER, "--teacher", "models/other.onnx", "--shard-rows", "160", "--output", "b")
    assert command(*other).code == 0
    merge("a", "b")
    before = project.files("mean")
    Path("mean/part-00002.json").unlink()
    Path("mean/labelset.json").unlink()
    report = merge("a", "b")
    assert (report["rows_written"], report["shards_kept"]) == (80, 6)
    assert project.files("mean") == before
    outcome = command(*merged("a", "b", "--weights", "1", "--weights", "2"))
    assert outcome.code == 3
    assert "derived" in outcome.stderr
    outcome = command(*INFER, "--output", "mean")
    assert outcome.code == 3
    assert "softlabel merge --labels LABELS --labels LABELS" in outcome.stderr
    outcome = command(*merged("a", "b"))
    assert "the mean of 2 sets with weights 0.5, 0.5" not in outcome.stderr
    assert "nothing to do" in outcome.stdout


def test_a_row_is_the_mean_of_its_own_rows(
    project: Project, merge: Merge, command: Command
) -> None:
    """Two real teachers, cut into other shards, against the mean taken here."""
    project.teacher("models/other.onnx", sharpness=40)
    assert command(*INFER, "--codec", "dense-f32", "--output", "a").code == 0
    other = ("--teacher", "models/other.onnx", "--shard-rows", "160", "--output", "b")
    assert command(*INFER, "--codec", "dense-f32", *other).code == 0
    merge("a", "b", "--codec", "dense-f32")
    a, b, mean = (stored_logits(softlabel.open(name)) for name in ("a", "b", "mean"))
    assert np.abs(a - b).max() > 1
    np.testing.assert_allclose(mean, (a + b) / 2, rtol=1e-4, atol=1e-4)


def test_what_is_made_of_a_mean_stays_one(
    empty_project: Project, merge: Merge, command: Command
) -> None:
    write_logits("a", raw_logits(1))
    merge("a", "a")
    flags = ("--labels", "mean", "--output", "bytes", "--codec", "dense-u8")
    assert command("convert", *flags).code == 0
    made = derivation(softlabel.open("bytes"))
    assert (made.verb, made.mean, made.weights) == ("convert", "logits", (0.5, 0.5))
    assert made.codecs == ("dense-f16",)
