"""Teachers of tables and tokens: named inputs of numbers, matched to columns by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

import softlabel

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome, Project

ROWS, CLASSES = 300, 3
TOLD = (*(f"--classes={name}" for name in ("low", "middle", "high")), "--output-kind=logits")
INFER = ("infer", "--teacher=teacher.onnx", "--batch-size=32", "--codec=dense-f32")
WEIGHTS = np.random.default_rng(0).normal(size=(7, CLASSES)).astype(np.float32)
# age [N, 1], sizes [N, 2] and tokens [N, 4], side by side, times the weights.
INPUTS = {
    "age": (TensorProto.FLOAT, ("n", 1)),
    "sizes": (TensorProto.FLOAT, ("n", 2)),
    "tokens": (TensorProto.INT64, ("n", 4)),
}


def teacher(folder: Path, inputs: dict[str, Any] = INPUTS) -> None:
    nodes = [
        helper.make_node("Cast", [name], [f"{name}_"], to=TensorProto.FLOAT) for name in inputs
    ]
    nodes.append(helper.make_node("Concat", [f"{name}_" for name in inputs], ["row"], axis=1))
    nodes.append(helper.make_node("MatMul", ["row", "weights"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "tabular",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(WEIGHTS, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "teacher.onnx")


def table(**changed: Any) -> pa.Table:
    random = np.random.default_rng(1)
    tokens = random.integers(0, 9, (ROWS, 4))
    columns = {
        "id": [f"row-{row}" for row in range(ROWS)],
        "age": random.integers(0, 90, ROWS),
        "sizes": pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=2 * ROWS)), 2),
        "tokens": pa.array(tokens.tolist(), pa.list_(pa.int64())),
        "remark": ["nothing to see"] * ROWS,
    }
    plain = pa.table(columns | changed)
    labels = expected(plain).argmax(axis=1) if not changed else np.zeros(ROWS, int)
    return plain.append_column("label", pa.array(labels, pa.int64()))


def expected(rows: pa.Table) -> npt.NDArray[np.float32]:
    parts = [
        np.array(rows[name].to_pylist(), np.float64).astype(np.float32).reshape(len(rows), -1)
        for name in INPUTS
    ]
    logits: npt.NDArray[np.float32] = np.concatenate(parts, axis=1) @ WEIGHTS
    return logits


def written(project: Project, **changed: Any) -> pa.Table:
    (project.root / "rows").mkdir(exist_ok=True)
    rows = table(**changed)
    pq.write_table(rows.slice(0, 200), project.root / "rows/part-0.parquet", row_group_size=70)
    pq.write_table(rows.slice(200), project.root / "rows/part-1.parquet")
    return rows


@pytest.fixture
def tabular(empty_project: Project) -> Project:
    teacher(empty_project.root)
    return empty_project


def refused(outcome: Outcome, code: int, *words: str) -> None:
    assert outcome.code == code, outcome.stderr
    (line,) = [text for text in outcome.stderr.splitlines() if "error:" in text]
    assert [word for word in words if word not in line] == [], line


def test_a_table_is_labelled_and_verified(tabular: Project, command: Command) -> None:
    rows = written(tabular)
    assert command(*INFER, *TOLD, "--source=rows").code == 0
    labels = softlabel.open("labels")
    block = labels.lookup(rows["id"].combine_chunks())
    np.testing.assert_allclose(
        block.logits() + block.shift[:, None], expected(rows), rtol=1e-5, atol=1e-4
    )
    assert labels.manifest.statistics.correct == ROWS
    checked = command("verify", "--source=rows", "--teacher=teacher.onnx", "--labels=labels")
    assert checked.code == 0, checked.stderr
    assert "negative control" in checked.stdout
    planned = command("plan", "--teacher=teacher.onnx", *TOLD, "--source=rows")
    assert planned.code == 0, planned.stderr


def saved_to_disk(project: Project) -> pa.Table:
    import datasets

    datasets.disable_progress_bars()
    rows = table()
    datasets.Dataset(rows).save_to_disk(str(project.root / "rows"), num_shards=2)
    return rows


def arrays(rows: pa.Table) -> dict[str, npt.NDArray[Any]]:
    return {
        "age": np.array(rows["age"]),
        # In Fortran order and with the other end first: what the file holds, not how.
        "sizes": np.asfortranarray(np.array(rows["sizes"].to_pylist(), ">f8")),
        "tokens": np.array(rows["tokens"].to_pylist(), np.int16),
        "y": np.array(rows["label"]),
        "id": np.array(rows["id"].to_pylist()),
        "remarks": np.array(rows["remark"].to_pylist(), object),
    }


def save(path: Path, held: dict[str, npt.NDArray[Any]], packed: bool = False) -> None:
    write: Callable[..., None] = np.savez_compressed if packed else np.savez
    write(path, **held)


def in_npz(project: Project) -> pa.Table:
    rows = table()
    (project.root / "rows").mkdir()
    save(project.root / "rows/part-0.npz", arrays(rows.slice(0, 200)), packed=False)
    save(project.root / "rows/part-1.npz", arrays(rows.slice(200)), packed=True)
    return rows


@pytest.mark.parametrize("write", [saved_to_disk, in_npz])
def test_other_files_of_the_same_numbers_get_the_same_labels(
    tabular: Project, command: Command, write: Callable[[Project], pa.Table]
) -> None:
    rows = write(tabular)
    assert command(*INFER, *TOLD, "--source=rows").code == 0
    labels = softlabel.open("labels")
    block = labels.lookup(rows["id"].combine_chunks())
    np.testing.assert_allclose(
        block.logits() + block.shift[:, None], expected(rows), rtol=1e-5, atol=1e-4
    )
    assert labels.manifest.statistics.correct == ROWS
    checked = command("verify", "--source=rows", "--teacher=teacher.onnx", "--labels=labels")
    assert checked.code == 0, checked.stderr
    assert "negative control" in checked.stdout


def test_arrays_without_keys_are_numbered(tabular: Project, command: Command) -> None:
    held = arrays(table())
    save(Path("rows.npz"), {name: held[name] for name in INPUTS})
    assert command(*INFER, *TOLD, "--source=rows.npz").code == 0
    assert next(softlabel.open("labels").batches(2)).keys.to_pylist()[1] == "rows-00000001"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tokens": np.zeros((9, 4), int)}, ["'age' has 300 rows, 'tokens' has 9; save one row"]),
        ({"y": np.zeros(ROWS)}, ["y: holds labels of float64"]),
        ({"labels": np.zeros(ROWS, int)}, ["the labels may be in 'labels' and 'y'"]),
        ({"age": np.full(ROWS, "old")}, ["has no column of numbers 'age'"]),
        ({"age": None}, ["no column of numbers 'age'", "it has 'sizes', 'tokens'"]),
        ({"age": np.full(ROWS, np.uint64(2**60 + 1))}, ["key 'row-0': column 'age' holds"]),
        ({"id": np.array(["", *"x" * (ROWS - 1)])}, ["row 0 has an empty key"]),
        ({"id": np.array(["row-0"] * ROWS)}, ["row-0", "twice"]),
    ],
)
def test_arrays_that_are_no_table(
    tabular: Project, command: Command, changed: dict[str, Any], words: list[str]
) -> None:
    held = arrays(table()) | changed
    save(Path("rows.npz"), {name: array for name, array in held.items() if array is not None})
    refused(command(*INFER, *TOLD, "--source=rows.npz"), 3, *words)


def test_numbers_beside_pictures(tabular: Project, command: Command) -> None:
    in_npz(tabular)
    np.savez("rows/c.npz", images=np.zeros((3, 8, 8), np.uint8))
    refused(
        command(*INFER, *TOLD, "--source=rows/{part-0,c}.npz"),
        3,
        "part-0.npz holds numbers and c.npz pictures; give them one by one",
    )


def test_what_its_last_layer_takes_is_stored_too(tabular: Project, command: Command) -> None:
    rows = written(tabular)
    assert command(*INFER, *TOLD, "--source=rows", "--features=auto").code == 0
    labels = softlabel.open("labels")
    features = labels.lookup(rows["id"].combine_chunks()).features
    assert features is not None
    assert (labels.manifest.identity.features_output, features.shape) == ("row", (ROWS, 7))
    np.testing.assert_allclose(features @ WEIGHTS, expected(rows), rtol=2e-3, atol=0.1)
    checked = command("verify", "--source=rows", "--teacher=teacher.onnx", "--labels=labels")
    assert checked.code == 0, checked.stdout


def test_a_changed_table_is_another_source(tabular: Project, command: Command) -> None:
    """The identity holds what the teacher was fed, so that a replay finds the change."""
    written(tabular)
    assert command(*INFER, *TOLD, "--source=rows").code == 0
    written(tabular, age=np.full(ROWS, 10))
    checked = command("verify", "--source=rows", "--teacher=teacher.onnx", "--labels=labels")
    assert checked.code == 1


def test_an_open_axis_takes_the_columns_length(tabular: Project, command: Command) -> None:
    teacher(tabular.root, INPUTS | {"sizes": (TensorProto.FLOAT, ("n", "m"))})
    written(tabular)
    assert command(*INFER, *TOLD, "--source=rows").code == 0


def ragged(**lengths: int) -> pa.Array:
    rows = [[1, 2, 3, 4]] * ROWS
    rows[lengths["row"]] = [1] * lengths["values"]
    return pa.array(rows, pa.list_(pa.int64()))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"age": ["old"] * ROWS}, ("no column of numbers 'age'", "'sizes', 'tokens'", "rename")),
        ({"age": [1.0] * 250 + [None] * 50}, ("'row-250'", "'age'", "holds no value")),
        ({"tokens": [0.5] * ROWS}, ("'tokens' holds [] a sample", "takes [4]")),
        ({"tokens": ragged(row=233, values=3)}, ("'row-233'", "'tokens'", "3 values, 4 are taken")),
        ({"tokens": ragged(row=7, values=5)}, ("'row-7'", "'tokens'", "5 values, 4 are taken")),
        ({"age": [2**24 + 1] * ROWS}, ("'row-0'", "'age' holds 16777217", "float32 cannot hold")),
        ({"age": [1.0] * 299 + [1e300]}, ("'row-299'", "'age' holds 1e+300", "cannot hold")),
        (
            {"sizes": pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 3 * ROWS), 3)},
            ("'sizes' holds [3] a sample", "takes [2]"),
        ),
    ],
    ids=["text", "null", "scalar", "short", "long", "integer", "overflow", "width"],
)
def test_a_column_that_does_not_fit(
    tabular: Project, command: Command, changed: dict[str, Any], words: tuple[str, ...]
) -> None:
    written(tabular, **changed)
    refused(command(*INFER, *TOLD, "--source=rows", "--allow-bad-teacher"), 3, "rows", *words)


def test_lengths_that_both_leave_open(tabular: Project, command: Command) -> None:
    teacher(tabular.root, INPUTS | {"tokens": (TensorProto.INT64, ("n", "m"))})
    written(tabular)
    refused(command(*INFER, *TOLD, "--source=rows"), 3, "'tokens'", "[any]", "fixed size")


def test_pictures_and_numbers_are_not_mixed_up(project: Project, command: Command) -> None:
    teacher(project.root)
    written(project)
    refused(command(*INFER, *TOLD, "--source=data/train"), 3, "has pictures", "age, sizes, tokens")
    refused(command("infer", "--source=rows"), 3, "rows: holds no pictures but numbers")
    refused(command(*INFER, *TOLD, "--source=rows", "--mean=0.5"), 2, "--mean", "age", "tokens")
    train = ("train-student", "--model=softlabel.pipeline.small_models:mlp", "--source=rows")
    refused(command(*train, "--logger=none"), 3, "rows: holds no pictures but numbers")


def test_files_of_other_columns_are_no_one_source(tabular: Project, command: Command) -> None:
    rows = written(tabular)
    pq.write_table(rows.drop_columns("age"), "rows/part-1.parquet")
    refused(command(*INFER, *TOLD, "--source=rows"), 3, "part-1", "differ in their numbers")


def test_what_the_file_does_not_say_is_asked_for(tabular: Project, command: Command) -> None:
    written(tabular)
    refused(command(*INFER, "--source=rows"), 2, "pass --classes, --output-kind (outputs")


def test_strings_are_no_input(tabular: Project, command: Command) -> None:
    teacher(tabular.root, {"age": (TensorProto.STRING, ("n", 1))})
    written(tabular)
    refused(command(*INFER, *TOLD, "--source=rows"), 3, "'age' is no batch of numbers")
