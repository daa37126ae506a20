"""Teachers that speak of each position of a sequence, and what is stored of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

import softlabel
from softlabel.pipeline.inference import batch_size, runner
from softlabel.pipeline.shards import tally
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.teachers import session
from softlabel.pipeline.teachers.session import TeacherSession
from softlabel.schemas.sample import TeacherOutput
from softlabel.stages import verify

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome, Project

ROWS, TOKENS, CLASSES, LONGEST = 60, 40, 6, 12
TOLD = (*(f"--classes={name}" for name in "abcdef"), "--output-kind=logits")
INFER = ("infer", "--teacher=teacher.onnx", "--source=rows", "--batch-size=8", *TOLD)
VERIFY = ("verify", "--source=rows", "--teacher=teacher.onnx", "--labels=labels")
# What is said of a token is a row of TABLE, and what the sequence's tokens together add to it.
TABLE = np.random.default_rng(0).normal(size=(TOKENS, CLASSES)).astype(np.float32) * 4
WHOLE = np.linspace(-1, 1, CLASSES, dtype=np.float32)


def teacher(project: Project, *, masked: bool = True, length: int | str = "length") -> None:
    """Logits `[n, length, classes]`; what padding says counts as well where it is not `masked`."""
    axes = ["n", length]
    mask = ["attention_mask"] if masked else []
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["input_ids"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["numbers", "one"], ["heard"]),
        helper.make_node("Cast", mask or ["input_ids"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["heard", "weights"] if masked else ["heard", "one"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "axis"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "scale"], ["scaled"]),
        helper.make_node("Unsqueeze", ["scaled", "axis"], ["each"]),
        helper.make_node("Mul", ["each", "whole"], ["shared"]),
        helper.make_node("Add", ["tokens", "shared"], ["logits"]),
    ]
    constants = {
        "table": TABLE,
        "whole": WHOLE,
        "one": np.float32(1),
        "scale": np.float32(0.01),
        "axis": np.array([1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "sequences",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, axes)
            for name in ("input_ids", *mask)
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*axes, CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, project.root / "teacher.onnx")


def tokens(ragged: bool = True) -> list[list[int]]:
    random = np.random.default_rng(1)
    lengths = random.integers(0, LONGEST + 1, ROWS) if ragged else np.full(ROWS, LONGEST)
    return [random.integers(0, TOKENS, size).tolist() for size in lengths]


def expected(row: list[int]) -> npt.NDArray[np.float32]:
    ids = np.array(row, np.int64)
    said: npt.NDArray[np.float32] = TABLE[ids] + np.float32(0.01 * (ids + 1).sum()) * WHOLE
    return said


def hard(row: list[int]) -> list[int]:
    """The teacher's own answers, but for the first position, which has no label."""
    return [-100, *expected(row)[1:].argmax(axis=1).tolist()][: len(row)]


def written(project: Project, rows: list[list[int]], **columns: Any) -> None:
    """Two files; `columns` go beside keys and labels, or in their place."""
    plain: dict[str, Any] = {
        "id": [f"row-{row}" for row in range(len(rows))],
        "input_ids": pa.array(rows, pa.list_(pa.int32())),
        "labels": pa.array([hard(row) for row in rows], pa.list_(pa.int64())),
    }
    table = pa.table({name: kept for name, kept in (plain | columns).items() if kept is not None})
    (project.root / "rows").mkdir(exist_ok=True)
    pq.write_table(table.slice(0, 35), project.root / "rows/part-0.parquet", row_group_size=16)
    pq.write_table(table.slice(35), project.root / "rows/part-1.parquet")


def padded(rows: list[list[int]], *, left: bool) -> dict[str, Any]:
    """Lists of one length, the tokenizer's mask and labels likewise."""

    def filled(values: list[int], filler: int) -> list[int]:
        rest = [filler] * (LONGEST - len(values))
        return rest + values if left else values + rest

    return {
        "input_ids": pa.array([filled(row, 3) for row in rows], pa.list_(pa.int64(), LONGEST)),
        "attention_mask": [filled([1] * len(row), 0) for row in rows],
        "labels": [filled(hard(row), -100) for row in rows],
    }


def check_stored(rows: list[list[int]], atol: float = 1e-4) -> None:
    labels = softlabel.open("labels", check="full")
    assert labels.manifest.identity.positions
    keys = [f"row-{row}" for row in range(len(rows))]
    block = labels.lookup(keys)
    assert block.lengths is not None
    assert block.lengths.tolist() == [len(row) for row in rows]
    told = np.concatenate([expected(row) for row in rows])
    np.testing.assert_allclose(block.logits() + block.shift[:, None], told, atol=atol)
    assert block.labels.fill_null(-100).to_pylist() == [
        label for row in rows for label in hard(row)
    ]


def refused(outcome: Outcome, code: int, *words: str) -> None:
    assert outcome.code == code, outcome.stderr
    (line,) = [text for text in outcome.stderr.splitlines() if "error:" in text]
    assert [word for word in words if word not in line] == [], line


def test_lists_of_any_length_are_labelled_and_verified(
    empty_project: Project, command: Command
) -> None:
    teacher(empty_project)
    written(empty_project, tokens())
    labelled = command(*INFER, "--codec=dense-f32")
    assert labelled.code == 0, labelled.stderr
    assert "positions" in labelled.stderr
    check_stored(tokens())
    checked = command(*VERIFY)
    assert checked.code == 0, checked.stdout
    assert "negative control" in checked.stdout
    planned = command("plan", "--teacher=teacher.onnx", "--source=rows", "--json", *TOLD)
    assert planned.code == 0, planned.stderr
    report = json.loads(planned.stdout)
    assert {trial["name"]: trial["top1_agreement"] for trial in report["trials"]}["dense-f32"] == 1
    (note,) = (note for note in report["notes"] if "factored is left out" in note)
    assert "an Add of two computed tensors" in note


@pytest.mark.parametrize("left", [False, True])
def test_padding_of_the_tokenizer_is_not_stored(
    empty_project: Project, command: Command, left: bool
) -> None:
    teacher(empty_project)
    written(empty_project, tokens(), **padded(tokens(), left=left))
    assert command(*INFER, "--codec=dense-f32").code == 0
    check_stored(tokens())


def test_sequences_in_an_npz_and_in_a_saved_dataset(
    empty_project: Project, command: Command
) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = tokens()
    columns = {"id": [f"row-{row}" for row in range(len(rows))], **padded(rows, left=True)}
    datasets.Dataset(pa.table(columns)).save_to_disk(str(empty_project.root / "saved"))
    arrays = {name: np.array(pa.array(values).to_pylist()) for name, values in columns.items()}
    np.savez(empty_project.root / "rows.npz", allow_pickle=False, **arrays)
    teacher(empty_project)
    for source in ("saved", "rows.npz"):
        flags = (f"--source={source}", "--codec=dense-f32", "--if-different=replace")
        ended = command(*INFER, *flags)
        assert ended.code == 0, ended.stderr
        check_stored(rows)
        assert open_source(empty_project.root / source).listed


def test_a_length_column_says_where_padding_begins(
    empty_project: Project, command: Command
) -> None:
    teacher(empty_project, length=LONGEST)
    columns = padded(tokens(), left=False) | {
        "attention_mask": None,
        "length": [len(row) for row in tokens()],
    }
    written(empty_project, tokens(), **columns)
    assert command(*INFER, "--codec=dense-f32").code == 0
    check_stored(tokens())


def test_short_lists_fill_up_the_length_that_the_graph_insists_on(
    empty_project: Project, command: Command
) -> None:
    teacher(empty_project, length=LONGEST + 3)
    written(empty_project, tokens())
    assert command(*INFER, "--codec=dense-f32").code == 0
    check_stored(tokens())


@pytest.mark.parametrize(
    "flags",
    [
        ("--codec=dense-u8", "--layout=lists"),
        ("--codec=topk", "--k=2", "--tail=prior"),
        ("--codec=topk", "--k=2", "--layout=sidecar"),
    ],
)
def test_codecs_and_layouts(
    empty_project: Project, command: Command, flags: tuple[str, ...]
) -> None:
    teacher(empty_project)
    written(empty_project, tokens())
    assert command(*INFER, *flags).code == 0
    top = softlabel.open("labels").lookup(["row-0", "row-9"])
    told = np.concatenate([expected(tokens()[0]), expected(tokens()[9])])
    np.testing.assert_array_equal(top.top1, told.argmax(axis=1))
    checked = command(*VERIFY)
    assert checked.code == 0, checked.stdout


def test_positions_packed_beside_the_teacher(
    empty_project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device, where all rows but the first, which are measured, are packed by torch."""
    monkeypatch.setattr(session, "packing_device", lambda provider, options: "cpu")
    monkeypatch.setattr(runner, "measured_rows", lambda shards, grid: 8)
    teacher(empty_project)
    written(empty_project, tokens())
    labelled = command(*INFER, "--codec=dense-f32")
    assert labelled.code == 0, labelled.stderr
    check_stored(tokens())


def test_fewer_are_replayed_than_their_logits_would_fill_the_memory(
    empty_project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher(empty_project)
    written(empty_project, FULL)
    assert command(*INFER, "--codec=dense-f32").code == 0
    monkeypatch.setattr(verify, "REPLAY_LOGITS", 5 * LONGEST * CLASSES)
    checked = command(*VERIFY, "--json")
    assert checked.code == 0, checked.stdout
    assert json.loads(checked.stdout)["replay"]["rows"] == 5 * LONGEST


@pytest.mark.parametrize("packs", [False, True])
def test_fidelity_is_of_so_many_positions(
    empty_project: Project, command: Command, monkeypatch: pytest.MonkeyPatch, packs: bool
) -> None:
    """Of whole rows that begin within so many, whether the host packs the others or not."""
    monkeypatch.setattr(tally, "FIDELITY_ROWS", 97)
    if packs:
        monkeypatch.setattr(session, "packing_device", lambda provider, options: "cpu")
    teacher(empty_project)
    written(empty_project, tokens())
    assert command(*INFER, "--codec=topk", "--k=2").code == 0
    manifest = softlabel.open("labels").manifest
    assert len(manifest.shards) == 1
    lengths = np.array([len(row) for row in tokens()])
    wanted = int(lengths[np.cumsum(lengths) - lengths < 97].sum())
    assert [one.rows for one in manifest.fidelity] == [wanted] * len(manifest.fidelity)
    assert 97 < wanted < lengths.sum() / 2


def test_labels_shifted_by_one_position_do_not_pass(
    empty_project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher(empty_project)
    written(empty_project, tokens())
    run = TeacherSession.run
    with monkeypatch.context() as patched:
        patched.setattr(
            TeacherSession,
            "run",
            lambda self, rows: TeacherOutput(np.roll(run(self, rows).logits, 1, axis=0)),
        )
        assert command(*INFER, "--allow-bad-teacher").code == 0
    checked = command(*VERIFY)
    assert checked.code == 1
    assert "the teacher says otherwise" in checked.stdout


def test_a_teacher_that_hears_padding(empty_project: Project, command: Command) -> None:
    teacher(empty_project, masked=False)
    written(empty_project, tokens())
    refused(command(*INFER), 3, "teacher.onnx", "padding", "'attention_mask'")
    written(empty_project, FULL)
    assert command(*INFER).code == 0
    check_stored(FULL, atol=1e-2)


FULL = tokens(ragged=False)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"labels": [0] * ROWS}, ("'labels' has one label a sample", "write lists")),
        ({"labels": [hard(row)[1:] for row in FULL]}, ("'row-0'", "11 values", "12")),
        (
            {"attention_mask": [[1] * 12] * (ROWS - 1) + [[1]]},
            ("'row-59'", "'attention_mask'", "1 values", "12"),
        ),
        ({"length": [LONGEST] * 40 + [LONGEST + 1] * 20}, ("'row-40'", "holds 13, of 12")),
        ({"input_ids": [[0.5] * 3] * ROWS, "labels": None}, ("'row-0'", "0.5", "int64")),
        ({"input_ids": [[1, None]] * ROWS, "labels": None}, ("'row-0'", "no value at a position")),
        ({"input_ids": None, "labels": None}, ("no column of lists",)),
        (
            {"labels": [[0] * LONGEST] * 9 + [[0] * 11 + [CLASSES]] * (ROWS - 9)},
            ("'row-9' has label 6", "outside"),
        ),
    ],
    ids=["one", "labels", "mask", "length", "float", "null", "none", "class"],
)
def test_columns_that_are_no_sequences(
    empty_project: Project, command: Command, columns: dict[str, Any], words: tuple[str, ...]
) -> None:
    teacher(empty_project)
    written(empty_project, FULL, **columns, weight=[1.0] * ROWS)
    refused(command(*INFER, "--allow-bad-teacher"), 3, "rows", *words)


def test_a_position_without_a_number_names_its_sequence(
    empty_project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = np.where(np.arange(TOKENS)[:, None] == TOKENS - 1, np.nan, TABLE).astype(np.float32)
    monkeypatch.setattr(f"{__name__}.TABLE", poison)
    teacher(empty_project)
    rows = [[token % (TOKENS - 1) for token in row] for row in tokens()]
    rows[44] = [*rows[44], TOKENS - 1]
    written(empty_project, rows, labels=None)
    refused(command(*INFER), 3, "logits hold NaN for key 'row-44'")


def test_a_list_that_is_too_long(empty_project: Project, command: Command) -> None:
    teacher(empty_project, length=LONGEST - 1)
    written(empty_project, FULL)
    refused(command(*INFER), 3, "'row-0'", "holds 12 values, at most 11 are taken")


def test_a_batch_size_is_found_on_the_longest(
    empty_project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[list[int]]] = []

    def noted(at_size: Any, samples: Any, rows: int, progress: Any) -> int:
        tried.append(samples(3)["input_ids"].tolist())
        assert rows == 5
        at_size(4)(samples(4))
        return 4

    teacher(empty_project)
    rows = [row[: LONGEST - 1] for row in tokens()]
    rows[50] = list(range(LONGEST))
    written(empty_project, rows)
    auto = (*INFER, "--batch-size=auto", "--codec=dense-f32")
    measured = command(*auto)
    assert measured.code == 0, measured.stderr
    assert "tried on sequences of 12 positions" in measured.stderr
    check_stored(rows)
    monkeypatch.setattr(batch_size, "fastest_batch_size", noted)
    monkeypatch.setattr(batch_size, "READ_ROWS", 8)
    monkeypatch.setattr(batch_size, "free_memory", lambda: 5 * 2 * 12 * 4.0 * LONGEST * CLASSES)
    assert command(*auto, "--overwrite").code == 0
    assert tried == [[rows[50]] * 3]
    check_stored(rows)
