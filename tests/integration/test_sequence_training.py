"""Students of sequences: every position meets its own label, and training follows the teacher."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.teachers.sequence_model import SequenceModel
from softlabel.pipeline.teachers.session import TeacherSession
from softlabel.pipeline.teachers.teacher import reopen_teacher
from softlabel.pipeline.training.agreement import check_hard_labels
from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.fabric import make_fabric
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.loop import train
from softlabel.schemas.errors import DataError
from softlabel.schemas.params import InferParams, TrainParams
from softlabel.schemas.sample import POSITIONS, Array
from softlabel.stages import infer

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

ROWS, LONGEST, TOKENS = 90, 9, 600
CLASSES = tuple(f"c{number}" for number in range(5))
MODELS = """
from torch import nn


class Tagger(nn.Module):
    def __init__(self, num_classes, tokens=600):
        super().__init__()
        self.embed = nn.Embedding(tokens, num_classes)

    def forward(self, input_ids, attention_mask=None):
        return self.embed(input_ids) * attention_mask[..., None]


class Hidden(Tagger):
    def forward(self, words):
        return self.embed(words)


class Short(Tagger):
    def forward(self, input_ids):
        return self.embed(input_ids)[:, :1]
"""


def sequences() -> list[list[int]]:
    """Every token stands at one position of one sequence, so it tells which one that is."""
    lengths = np.random.default_rng(0).integers(0, LONGEST + 1, ROWS)
    ends = np.cumsum(lengths)
    return [list(range(end - size, end)) for size, end in zip(lengths, ends, strict=True)]


def answers() -> Array:
    """Logits of each token `[TOKENS, classes]`: two classes spell its number out."""
    table = np.random.default_rng(1).normal(size=(TOKENS, len(CLASSES))).astype(np.float32)
    table[:, 0] = 3 + np.arange(TOKENS) / 64
    return table


def write_source(folder: Path, name: str = "rows", **changed: Any) -> Path:
    rows = sequences()
    columns: dict[str, Any] = {
        "id": [f"row-{row}" for row in range(len(rows))],
        "input_ids": rows,
        "labels": [[token % len(CLASSES) for token in row] for row in rows],
    }
    table = pa.table(columns | changed)
    (folder / name).mkdir()
    pq.write_table(table.slice(0, 50), folder / name / "part-0.parquet", row_group_size=20)
    pq.write_table(table.slice(50), folder / name / "part-1.parquet")
    return folder / name


def write_teacher(path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["logits"])],
        "tokens",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "l"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "l", len(CLASSES)])],
        [numpy_helper.from_array(answers(), "table")],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def label(folder: Path, **settings: Any) -> Path:
    infer.run(
        InferParams(
            **{"teacher": folder / "teacher.onnx", "source": folder / "rows"}
            | {"classes": CLASSES, "output_kind": "logits", "batch_size": 16}
            | {"output": folder / "labels", "codec": "dense-f32", "allow_bad_teacher": True}
            | settings
        )
    )
    return Path(settings.get("output", folder / "labels"))


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_source(tmp_path)
    write_teacher(tmp_path / "teacher.onnx")
    return tmp_path


def joined(world: Path, labels: Path, source: str = "rows", **how: Any) -> JoinedSamples:
    opened = open_labelset(labels)
    named = open_source(world / source).naming(CLASSES)
    return JoinedSamples(named.fed(opened.manifest.identity, "the student"), opened, **how)


def met(batch: TrainingBatch) -> Array:
    """The tokens of a batch's positions, which are what its labels are of."""
    inputs: Array = batch.pixels
    tokens = inputs["input_ids"][inputs[POSITIONS]]
    assert batch.lengths is not None
    keys = np.repeat(batch.keys.to_pylist(), batch.lengths)
    owners = {token: f"row-{row}" for row, those in enumerate(sequences()) for token in those}
    assert keys.tolist() == [owners[token] for token in tokens.tolist()]
    return np.asarray(tokens)


@pytest.mark.parametrize("sharded", [True, False])
def test_every_position_meets_its_own_label(world: Path, sharded: bool) -> None:
    labels = label(world) if sharded else label(world, shard_rows=7, batch_size=7)
    samples, seen = joined(world, labels), []
    for epoch, batch_size in ((0, 8), (1, 13)):
        for batch in samples.epoch(5, epoch, batch_size, shuffle_rows=40):
            swapped = batch.take(np.arange(len(batch.keys))[::-1])
            for part in (batch, swapped, *batch.parts(3)):
                tokens = met(part)
                told = answers()[tokens]
                np.testing.assert_allclose(
                    np.asarray(part.teacher), told - told.max(axis=1)[:, None], atol=1e-6
                )
                np.testing.assert_array_equal(part.labels, tokens % len(CLASSES))
            seen += met(batch).tolist()
    every = [token for row in sequences() for token in row]
    assert sorted(seen) == sorted(every * 2)


def test_kept_classes_meet_their_position(world: Path) -> None:
    labels = label(world, codec="topk", k=2)
    for batch in joined(world, labels, sparse=True).epoch(0, 0, 8, 100):
        for part in batch.parts(2):
            assert part.sparse is not None
            best = np.argsort(-answers()[met(part)], axis=1, kind="stable")[:, :2]
            np.testing.assert_array_equal(part.sparse.ids, best)


def test_parts_weigh_as_many_positions_as_they_have(world: Path) -> None:
    samples = joined(world, label(world))
    for batch in samples.epoch(0, 0, 10, 100):
        parts = list(batch.parts(4))
        sizes = [len(part.labels) / len(batch.labels) for part in parts]
        assert [part.share for part in parts] == pytest.approx(sizes)


def curve(
    world: Path, samples: JoinedSamples, teach: Callable[[TrainingBatch], TrainingBatch], **how: Any
) -> Array:
    """The loss of each of 50 steps: an epoch of one batch a record."""
    settings = {"loss": "kd", "labels": world, "temperature": 2.0, "learning_rate": 0.05}
    params = TrainParams(model="its.own:model", epochs=50, batch_size=16, **settings | how)
    endless = itertools.chain.from_iterable(
        samples.epoch(seed=3, epoch=epoch, batch_size=16, shuffle_rows=60)
        for epoch in itertools.count()
    )
    steps = [teach(batch) for batch in itertools.islice(endless, params.epochs)]
    torch.manual_seed(0)
    model = SequenceModel(_Named(), ["input_ids"])

    def batches(epoch: int, start: int) -> Iterator[TrainingBatch]:
        return iter([steps[epoch]])

    records = train(params, make_fabric("cpu", "32-true"), model, batches, 1, None)
    return np.array([record.loss for record in records])


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, len(CLASSES))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed(input_ids)  # type: ignore[no-any-return]


def online(world: Path, labels: Path) -> Callable[[TrainingBatch], TrainingBatch]:
    identity = open_labelset(labels).manifest.identity
    session = TeacherSession(reopen_teacher(world / "teacher.onnx", identity), "cpu", 16)
    return lambda batch: replace(batch, teacher=session.run(batch.pixels).logits)


def test_stored_labels_follow_the_teacher_in_the_loop(world: Path) -> None:
    labels = label(world)
    samples = joined(world, labels)
    offline = curve(world, samples, lambda batch: batch)
    told = curve(world, samples, online(world, labels))
    np.testing.assert_allclose(offline, told, rtol=1e-5)
    assert offline[-1] < offline[0]


def test_parts_of_a_batch_make_its_means(world: Path) -> None:
    """Also where they have other shares of the positions with a hard label."""
    rows = sequences()
    some = [
        [0 if token % 7 < row % 3 else -100 for token in those] for row, those in enumerate(rows)
    ]
    written = write_source(world, "some", labels=some)
    samples = joined(world, label(world, source=written), source="some")
    whole = curve(world, samples, lambda batch: batch, soft_weight=0.3)
    parts = curve(world, samples, lambda batch: batch, soft_weight=0.3, accumulate=5)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_other_lengths_or_labels_than_were_labelled(world: Path) -> None:
    labels = open_labelset(label(world))
    keys = [f"row-{row}" for row in range(ROWS)]
    block = labels.lookup(keys)
    hard = [[token % len(CLASSES) for token in row] for row in sequences()]
    kind = pa.large_list(pa.int32())
    check_hard_labels(block.keys, pa.array(hard, kind), block, labels)
    hard[60] = [*hard[60], 0]
    with pytest.raises(
        DataError, match=r"'row-60' has \d+ positions, and \d+ when it was labelled"
    ):
        check_hard_labels(block.keys, pa.array(hard, kind), block, labels)
    hard[60] = [1 - label for label in hard[60][:-1]]
    with pytest.raises(DataError, match=r"'row-60' has other hard labels than when"):
        check_hard_labels(block.keys, pa.array(hard, kind), block, labels)


def test_the_mean_of_two_teachers(
    world: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    (world / "taggers.py").write_text(MODELS)
    label(world)
    label(world, output=world / "again", codec="dense-f16", shard_rows=7, batch_size=7)
    given = ("--model=taggers:Tagger", "--source=rows", "--loss=kd", "--epochs=2", "--logger=none")
    losses = []
    for labels in (("--labels=labels",), ("--labels=labels", "--labels=again")):
        done = command("train-student", *given, *labels, "--overwrite", "--json")
        assert done.code == 0, done.stderr
        losses.append(json.loads(done.stdout)["history"][-1]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_train_and_measure(world: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    (world / "taggers.py").write_text(MODELS)
    label(world)
    flags = ("--model=taggers:Tagger", "--source=rows", "--validation=rows", "--logger=none")
    kd = ("--loss=kd", "--labels=labels", "--epochs=3", "--batch-size=16", "--learning-rate=0.1")
    done = command("train-student", *flags, *kd, "--json")
    assert done.code == 0, done.stderr
    history = json.loads(done.stdout)["history"]
    assert history[-1]["loss"] < history[0]["loss"]
    card = json.loads((world / "models/students/student.json").read_text())
    assert [one["name"] for one in card["inputs"]] == ["input_ids", "attention_mask"]
    assert "height" not in {name for name, value in card.items() if value is not None}
    measured = command("evaluate", "--models=models/students", "--source=rows", "--labels=labels")
    assert measured.code == 0, measured.stderr


@pytest.mark.slow
def test_two_ranks_train_on_what_one_process_does(
    world: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    (world / "taggers.py").write_text(MODELS)
    some = [[0 if token % 3 else -100 for token in row] for row in sequences()]
    label(world, source=write_source(world, "some", labels=some))
    given = ("--model=taggers:Tagger", "--source=some", "--loss=kd", "--labels=labels")
    train = ("train-student", *given, "--epochs=2", "--batch-size=16", "--logger=none")
    one = command(*train, "--output=one")
    assert one.code == 0, one.stderr
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    two = subprocess.run(
        [*launcher, "--nproc-per-node=2", "-m", "--", "softlabel", *train, "--output=two"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert two.returncode == 0, two.stderr
    histories = [
        json.loads((world / name / "train.json").read_text())["history"] for name in ("one", "two")
    ]
    for alone, together in zip(*histories, strict=True):
        told = {name: value for name, value in alone.items() if value is not None}
        assert {name: together[name] for name in told} == pytest.approx(told, rel=1e-5)


def refused(outcome: Outcome, code: int, *words: str) -> None:
    assert outcome.code == code, outcome.stderr
    (line,) = [text for text in outcome.stderr.splitlines() if "error:" in text]
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--model=taggers:Hidden",), 2, ("taggers:Hidden", "'words'", "'input_ids'")),
        (("--model=taggers:Short",), 2, ("makes [16, 1, 5]", "must make [16, 9, 5]")),
        (("--height=8", "--mixup=0.2"), 2, ("height, mixup", "are of pictures")),
        (("--targets=self",), 2, ("'self'", "sequences")),
        (("--information-samples=8",), 2, ("information_samples", "are of pictures")),
    ],
)
def test_what_no_sequence_is_trained_with(
    world: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(world)
    (world / "taggers.py").write_text(MODELS)
    label(world)
    given = ("--model=taggers:Tagger", "--source=rows", "--loss=kd", "--labels=labels")
    refused(command("train-student", *given, "--logger=none", *flags), code, *words)


def test_what_takes_pictures_alone_says_so(
    world: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    export = ("export", "--model=taggers:Tagger", "--samples=rows")
    refused(command(*export), 2, "--weights, --classes")
    told = ("--weights=w.safetensors", "--classes=a", "--classes=b")
    refused(command(*export, *told, "--height=8"), 2, "height are of pictures")


def test_positions_without_a_hard_label(
    world: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    (world / "taggers.py").write_text(MODELS)
    write_source(world, "bare", labels=[[-100] * len(row) for row in sequences()])
    label(world, source=world / "bare")
    flags = ("--model=taggers:Tagger", "--source=bare", "--logger=none", "--epochs=2")
    train = ("train-student", *flags, "--labels=labels")
    done = command(*train, "--loss=kd", "--json")
    assert done.code == 0, done.stderr
    assert [epoch["hard"] for epoch in json.loads(done.stdout)["history"]] == [0, 0]
    refused(command(*train, "--loss=dkd", "--overwrite"), 3, "'dkd' needs one everywhere")
