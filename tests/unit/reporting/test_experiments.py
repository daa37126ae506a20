"""Experiments of DVC: every kind of entry that its listing has, and the table made of them."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import JsonValue

from softlabel.pipeline.reporting import experiments_view as view
from softlabel.pipeline.reporting.experiments import read_experiments
from softlabel.pipeline.reporting.experiments_view import Cell, experiments_view
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.reports.experiments import Experiment


def state(rev: str, name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"rev": rev, "name": name, "data": None, "error": None, "experiments": None} | more


def files(**by_file: JsonValue) -> dict[str, JsonValue]:
    return {f"{name}.yaml": {"data": value} for name, value in by_file.items()}


def experiment(rev: str, baseline: str | None = None, **more: Any) -> Experiment:
    nothing: dict[str, Any] = {"name": None, "state": None, "error": None}
    empty: dict[str, Any] = {"params": {}, "metrics": {}, "unread": {}}
    return Experiment(rev=rev, baseline=baseline, **nothing | empty | more)


def read(tmp_path: Path, states: object) -> tuple[Experiment, ...]:
    path = tmp_path / "experiments.json"
    path.write_text(json.dumps(states))
    return read_experiments(path)


def test_revisions_stand_before_what_grew_from_them(tmp_path: Path) -> None:
    params, metrics = files(params={"a": {"b": 1, "c": [1, True]}}), files(told={"loss": 0.1})
    queued = {"revs": [state("q" * 40, "cold")], "executor": {"state": "queued", "name": "x"}}
    lost = {"msg": "Experiment run failed", "type": ""}
    failed = {
        "revs": [state("f" * 40, "bad", error=lost)],
        "executor": {"state": "failed"},
        "name": "bad",
    }
    done = {
        "revs": [state("d" * 40, "warm", data={"params": params, "metrics": metrics})],
        "executor": {"state": "success"},
    }
    gone = {"error": {"type": "FileNotFoundError", "msg": "no such file: 'told.yaml'"}}
    workspace = state("workspace", data={"params": params, "metrics": {"told.yaml": gone}})
    grown = state("r" * 40, "main", experiments=[queued, failed, done])
    found = read(tmp_path, [workspace, grown])
    read_params: dict[str, JsonValue] = {"params.yaml": {"a": {"b": 1, "c": [1, True]}}}
    main = "r" * 40
    assert found == (
        experiment(
            "workspace", params=read_params, unread={"told.yaml": "no such file: 'told.yaml'"}
        ),
        experiment(main, name="main"),
        experiment("q" * 40, main, name="cold", state="queued"),
        experiment("f" * 40, main, name="bad", state="failed", error="Experiment run failed"),
        experiment(
            "d" * 40, main, name="warm", params=read_params, metrics={"told.yaml": {"loss": 0.1}}
        ),
    )


def test_what_json_has_no_numbers_for_is_told_in_words(tmp_path: Path) -> None:
    told = files(told={"loss": float("nan"), "all": [float("inf"), -float("inf")]})
    (found,) = read(tmp_path, [state("workspace", data={"params": {}, "metrics": told})])
    assert found.metrics == {"told.yaml": {"loss": "NaN", "all": ["Infinity", "-Infinity"]}}


def test_standard_input_is_a_minus(monkeypatch: pytest.MonkeyPatch) -> None:
    given = SimpleNamespace(buffer=io.BytesIO(json.dumps([state("workspace")]).encode()))
    monkeypatch.setattr(sys, "stdin", given)
    assert read_experiments(Path("-")) == (experiment("workspace"),)


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"workspace": {"baseline": {}}}', "[3]", '[{"rev": "\\ud800"}]', "[" * 10_000],
)
def test_anything_else_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "experiments.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"json: is not what 'dvc exp show --json' of DVC 3 prin"):
        read_experiments(path)


def test_no_revision_and_no_file_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lists no revision; run 'dvc exp show --json' in a folder"):
        read(tmp_path, [])
    with pytest.raises(
        ParameterError, match="no such file; write it with 'dvc exp show --json > n"
    ):
        read_experiments(tmp_path / "nothing")
    with pytest.raises(ParameterError, match="no such file"):
        read_experiments(tmp_path)


def test_columns_are_what_differs() -> None:
    plain: dict[str, JsonValue] = {"T": 4.0, "same": "x", "list": [1, 2]}
    shown = experiments_view(
        [
            experiment("workspace", params={"p": plain}, unread={"m": "gone"}),
            experiment("r", params={"p": plain}, metrics={"m": {"a.b": 1, "a": {"b": 2}}}),
            experiment("e", "r", params={"p": plain | {"T": 4, "list": [1, 3]}}),
            experiment(
                "f",
                "r",
                params={"p": plain | {"T": 8, "more": None}},
                metrics={"m": {"a.b": 1, "a": {"b": 5}}},
            ),
        ]
    )
    assert [(c.kind, c.file, c.keys) for c in shown["columns"]] == [
        ("params", "p", ("T",)),
        ("params", "p", ("list",)),
        ("params", "p", ("more",)),
        ("metrics", "m", ("a", "b")),
    ]
    assert [(group["kind"], len(group["columns"])) for group in shown["groups"]] == [
        ("params", 3),
        ("metrics", 1),
    ]
    assert [row["cells"] for row in shown["rows"]] == [
        [Cell("4.0", 4.0), Cell("[1, 2]"), Cell("\u2013"), Cell("!")],
        [Cell("4.0", 4.0), Cell("[1, 2]"), Cell("\u2013"), Cell("2", 2, place=0)],
        [Cell("4", 4), Cell("[1, 3]", changed=True), Cell("\u2013"), Cell("\u2013")],
        [
            Cell("8", 8, changed=True),
            Cell("[1, 2]"),
            Cell("null", changed=True),
            Cell("5", 5, place=1),
        ],
    ]
    assert [(column.name, cell.text) for column, cell in shown["shared"]] == [
        ("same", "x"),
        ("a.b", "1"),
    ]


def test_places_are_between_the_lowest_and_the_highest() -> None:
    values: list[JsonValue] = [0.5, True, "x", 10**400, 1e308, None, 2.5, 1.0]
    told = [experiment(str(i), metrics={"m": value}) for i, value in enumerate(values)]
    cells = [row["cells"][0] for row in experiments_view(told)["rows"]]
    assert [cell.place for cell in cells] == [0, None, None, None, None, None, 1, 0.25]
    assert [cell.text for cell in cells[:3]] == ["0.5", "true", "x"]
    assert cells[3].text == f"1{'0' * 400}"


def test_much_is_cut_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROWS_SHOWN", "COLUMNS_SHOWN", "SHARED_SHOWN"):
        monkeypatch.setattr(view, name, 2)
    same: dict[str, JsonValue] = dict.fromkeys("abc", 0)
    told = [
        experiment(str(i), params={"p": same}, metrics={"m": dict.fromkeys("xyz", i)})
        for i in range(3)
    ]
    shown = experiments_view(told)
    assert [column.name for column in shown["columns"]] == ["x", "y"]
    assert (shown["of_columns"], shown["of_rows"], shown["of_shared"]) == (3, 3, 3)
    assert (len(shown["rows"]), len(shown["shared"])) == (2, 2)
    # Places are of what is shown alone.
    assert [row["cells"][0].place for row in shown["rows"]] == [0, 1]
