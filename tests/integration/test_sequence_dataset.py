"""Sequences in a training loop of one's own: padded, masked, each position with its own label."""

from __future__ import annotations

import importlib
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.data import DataLoader

import softlabel
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.losses import kd_loss
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.params import InferParams, TrainParams
from softlabel.schemas.sample import POSITIONS, Array
from softlabel.stages import infer, train_student
from softlabel.torch import DistillationDataset, DistillationLoss, SequenceBatch
from tests.unit.builders import write_source as write_pictures

ROWS, LONGEST, TOKENS, WIDTH, CLASSES = 40, 7, 200, 4, 9
BATCH, SEED, EPOCHS = 6, 3, 2
RANDOM = np.random.default_rng(0)
# Every token stands at one place of one sequence, so what is said of it tells which one that is.
EMBEDDED = RANDOM.normal(size=(TOKENS, WIDTH)).astype(np.float32)
WEIGHT = RANDOM.normal(size=(WIDTH, CLASSES)).astype(np.float32)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def sequences() -> list[list[int]]:
    lengths = np.random.default_rng(1).integers(1, LONGEST + 1, ROWS)
    ends = np.cumsum(lengths)
    return [list(range(end - size, end)) for size, end in zip(lengths, ends, strict=True)]


def write_rows(path: Path, **changed: Any) -> Path:
    """Padded on the left; every third token without a hard label."""
    rows = sequences()

    def filled(values: list[int], filler: int) -> list[int]:
        return [filler] * (LONGEST - len(values)) + values

    columns: dict[str, Any] = {
        "id": [f"row-{row}" for row in range(ROWS)],
        "input_ids": [filled(row, 0) for row in rows],
        "attention_mask": [filled([1] * len(row), 0) for row in rows],
        "labels": [filled([hard(token) for token in row], -100) for row in rows],
    }
    path.mkdir()
    pq.write_table(pa.table(columns | changed), path / "part-0.parquet")
    return path


def hard(token: int) -> int:
    return token % CLASSES if token % 3 else -100


def write_teacher(path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["h"]),
            helper.make_node("MatMul", ["h", "w"], ["logits"]),
        ],
        "tokens",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "l"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "l", CLASSES])],
        [numpy_helper.from_array(EMBEDDED, "table"), numpy_helper.from_array(WEIGHT, "w")],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source `rows`, and a label set of each kind of codec by its name."""
    root = tmp_path_factory.mktemp("sequences")
    write_rows(root / "rows")
    write_teacher(root / "teacher.onnx")
    for codec in ("dense-f32", "topk", "factored"):
        infer.run(
            InferParams.model_validate(
                {
                    "teacher": root / "teacher.onnx",
                    "source": root / "rows",
                    "output": root / codec,
                    "codec": codec,
                    "k": 3,
                    "classes": [f"c{number}" for number in range(CLASSES)],
                    "output_kind": "logits",
                    "batch_size": 8,
                    "device": "cpu",
                    "allow_bad_teacher": True,
                }
            )
        )
    return root


def dataset(root: Path, codec: str = "dense-f32", **settings: Any) -> DistillationDataset:
    wanted = {"batch_size": BATCH, "seed": SEED, "shuffle_rows": 16, "temperature": 1.0} | settings
    return DistillationDataset(root / "rows", root / codec, **wanted)


def student(batch: SequenceBatch) -> torch.Tensor:
    """Logits `[N, L, C]` that differ at every position."""
    ids = batch.inputs["input_ids"]
    places = torch.arange(ids.shape[1])[None, :, None]
    return torch.sin(ids[..., None] * torch.arange(1.0, CLASSES + 1) + places)


def aligned(batch: SequenceBatch) -> list[int]:
    """The tokens of a batch, position by position; all its parts must tell of the same ones."""
    tokens = batch.inputs["input_ids"][batch.mask]
    rows = [sequences()[int(key.removeprefix("row-"))] for key in batch.keys]
    assert tokens.tolist() == list(itertools.chain.from_iterable(rows))
    assert torch.equal(batch.inputs["attention_mask"], batch.mask.long())
    assert batch.mask.sum(dim=1).tolist() == [len(row) for row in rows]
    assert batch.hard_labels.tolist() == [hard(token) for token in tokens.tolist()]
    assert isinstance(batch.targets, torch.Tensor)
    said = torch.from_numpy(EMBEDDED[tokens] @ WEIGHT)
    shifted = said - said.amax(dim=1, keepdim=True)
    torch.testing.assert_close(batch.targets, shifted, atol=1e-5, rtol=1e-5)
    return [int(key.removeprefix("row-")) for key in batch.keys]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_position_meets_its_own_label(root: Path, workers: int) -> None:
    samples = pickle.loads(pickle.dumps(dataset(root)))
    context = "fork" if workers else None
    loader = DataLoader(
        samples, batch_size=None, num_workers=workers, multiprocessing_context=context
    )
    seen = []
    for epoch in range(EPOCHS):
        samples.set_epoch(epoch)
        seen.append([row for batch in loader for row in aligned(batch)])
        assert sorted(seen[epoch]) == list(range(ROWS))
    assert seen[0] != seen[1]


@pytest.mark.parametrize("codec", ["dense-f32", "topk", "factored"])
def test_losses_are_those_of_train_student(root: Path, codec: str) -> None:
    """The mean over positions, the hard one over those that have a label."""
    samples = dataset(root, codec, tail="spread")
    criterion = DistillationLoss(0.7, 1.0, labels=softlabel.open(root / codec))
    joined = JoinedSamples(samples._source.reopen(), softlabel.open(root / codec), 1.0)
    pairs = zip(samples, joined.epoch(SEED, 0, BATCH, 16), strict=True)
    for batch, told in pairs:
        there = batch.mask.numpy()
        inputs: Array = told.pixels
        np.testing.assert_array_equal(there, inputs[POSITIONS])
        logits = student(batch)[batch.mask]
        loss = criterion(logits, batch.targets, batch.hard_labels)
        assert told.teacher is not None
        teacher = torch.from_numpy(told.teacher).float()
        wanted = kd_loss(logits, teacher, torch.from_numpy(told.labels), 0.7, 1.0)
        torch.testing.assert_close(loss, wanted.total, rtol=1e-5, atol=1e-6)


def test_the_example_learns_as_train_student_does(
    root: Path, repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(repo_root / "examples")
    example = importlib.import_module("language_model")
    params = TrainParams(
        model="language_model:Student",
        model_args={"tokens": TOKENS},
        source=root / "rows",
        labels=root / "factored",
        loss="kd",
        temperature=1.0,
        epochs=EPOCHS,
        batch_size=BATCH,
        logger="none",
        device="cpu",
        output=tmp_path / "student",
    )
    wanted = [record.loss for record in train_student.run(params).history]
    torch.manual_seed(0)
    model = example.Student(CLASSES, tokens=TOKENS)
    places = (root / "rows", root / "factored")
    losses = example.train(model, *places, epochs=EPOCHS, batch_size=BATCH)
    assert losses == pytest.approx(wanted, rel=1e-5)


def test_it_goes_on_within_an_epoch(root: Path) -> None:
    samples = dataset(root)
    batches = list(samples)
    state = samples.state_dict(batches[1].seen)
    other = dataset(root, batch_size=4)
    other.load_state_dict(state)
    rest = [key for batch in other for key in batch.keys]
    assert rest == [key for batch in batches[2:] for key in batch.keys]


def test_only_what_the_student_takes(root: Path) -> None:
    batch = next(iter(dataset(root, inputs=["input_ids"])))
    assert set(batch.inputs) == {"input_ids"}
    with pytest.raises(ParameterError, match=r"rows: has no lists of numbers 'words'; it has 'inp"):
        dataset(root, inputs=["words"])


def test_what_is_of_the_other_kind_is_refused(root: Path, tmp_path: Path) -> None:
    of_pictures: dict[str, Any] = {"transform": torch.flip, "height": 8}
    with pytest.raises(ParameterError, match=r"transform, height are of pictures, and .*rows has"):
        dataset(root, **of_pictures)
    write_pictures(tmp_path / "data", (3,))
    with pytest.raises(ParameterError, match=r"inputs are of sequences, and .*data has none"):
        DistillationDataset(tmp_path / "data", None, inputs=["input_ids"])


def test_a_batch_of_padding_alone_names_its_keys(root: Path, tmp_path: Path) -> None:
    empty = [[0] * LONGEST] * ROWS
    source = write_rows(tmp_path / "rows", attention_mask=empty, labels=empty)
    classes = [f"c{number}" for number in range(CLASSES)]
    flags = {"teacher": root / "teacher.onnx", "source": source, "output": tmp_path / "labels"}
    told = {"classes": classes, "output_kind": "logits", "batch_size": 8, "device": "cpu"}
    infer.run(InferParams.model_validate(flags | told | {"allow_bad_teacher": True}))
    with pytest.raises(DataError, match=r"of 'row-.* every position is padding; leave such rows"):
        next(iter(DistillationDataset(source, tmp_path / "labels", batch_size=2)))
