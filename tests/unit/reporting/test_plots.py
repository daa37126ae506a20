"""The curves and the seeds as Vega-Lite specifications."""

import json
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from softlabel.pipeline.reporting import plots
from softlabel.schemas.reports import EvaluateReport, TrainReport
from softlabel.schemas.reports.figures import ClassifierFigures, Spread
from softlabel.schemas.reports.seeing import RunMetrics, StudentMetrics
from softlabel.schemas.reports.training import EpochRecord

HOSTILE = "</script>'\"\\] || datum.x\n\u2028"


def trained(run: str, seed: int, losses: list[float], nll: float | None = None) -> TrainReport:
    history = tuple(
        EpochRecord(
            epoch=epoch,
            learning_rate=0.1,
            loss=loss,
            hard=loss,
            train_accuracy=0.5,
            validation_nll=nll,
        )
        for epoch, loss in enumerate(losses)
    )
    return TrainReport(
        output=Path("models"),
        run=run,
        seed=seed,
        loss="hard",
        parameters=1,
        samples=1,
        steps=1,
        device="cpu",
        seconds=0.0,
        labels_identity_sha256=None,
        history=history,
    )


def evaluation(*runs: str) -> EvaluateReport:
    spread = Spread(mean=0.9, standard_error=0.01)
    return EvaluateReport(
        output=Path("out"),
        source=Path("data/test"),
        rows=10,
        classes=("a", "b"),
        students=tuple(
            StudentMetrics(
                name=f"student-{index}",
                run=run,
                seed=0,
                rows=10,
                parameters=5,
                bins=(),
                **dict.fromkeys(ClassifierFigures.model_fields, 0.1),
            )
            for index, run in enumerate(runs)
        ),
        runs=tuple(
            RunMetrics(run=run, seeds=(0,), **dict.fromkeys(ClassifierFigures.model_fields, spread))
            for run in runs
        ),
    )


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.items() for item in part for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_rows_are_mean_and_range_over_seeds() -> None:
    rows = plots.curve_rows([trained("a", 0, [4, 1]), trained("a", 1, [2, 2])], "loss")
    assert rows == [
        {"run": "a", "epoch": 1, "mean": 3.0, "low": 2.0, "high": 4.0, "seeds": 2},
        {"run": "a", "epoch": 2, "mean": 1.5, "low": 1.0, "high": 2.0, "seeds": 2},
    ]


def test_runs_without_the_metric_have_no_rows() -> None:
    students = [trained("a", 0, [4.0]), trained("b", 0, [2.0], nll=0.5)]
    assert [row["run"] for row in plots.curve_rows(students, "validation_nll")] == ["b"]


def test_colours_come_again_with_dashes() -> None:
    runs = [f"run-{index}" for index in range(8)]
    colours = plots.run_colours(runs)
    assert colours["run-6"] == colours["run-0"] != colours["run-1"]
    rows = plots.curve_rows([trained(run, 0, [1.0, 2.0]) for run in runs], "loss")
    line = plots.curve_spec(rows, colours, "loss", ".3f", "text")["layer"][1]
    dashes = line["encoding"]["strokeDash"]["scale"]["range"]
    assert dashes[6] != dashes[0] == dashes[5]


@pytest.mark.parametrize(
    ("losses", "kind"), [([2.0, 1.0], None), ([2.0, 0.01], "log"), ([2.0, 0.0], None)]
)
def test_a_wide_positive_range_is_logarithmic(losses: list[float], kind: str | None) -> None:
    rows = plots.curve_rows([trained("a", 0, losses)], "loss")
    spec = plots.curve_spec(rows, {"a": "#000"}, "loss", ".3f", "text")
    assert spec["layer"][1]["encoding"]["y"]["scale"].get("type") == kind


@pytest.mark.parametrize("run", ["kd", HOSTILE, "x" * 300])
def test_specs_compile_and_names_are_values_only(run: str) -> None:
    colours = plots.run_colours([run, "other"])
    rows = plots.curve_rows([trained(run, 0, [3, 1]), trained("other", 0, [3, 2])], "loss")
    curve = plots.curve_spec(rows, colours, "loss", ".3f", "text")
    seeds = plots.seeds_spec(evaluation(run, "other"), colours, "text")
    for spec in (curve, seeds):
        assert "svg" in vl_convert.vegalite_to_svg(spec)
        compiled = json.dumps(vl_convert.vegalite_to_vega(spec))
        assert "SyntaxError" not in compiled
        assert all(text == run for text in strings(spec) if run in text)


def test_seeds_show_every_student_and_every_mean() -> None:
    spec = plots.seeds_spec(evaluation("a", "b"), plots.run_colours(["a", "b"]), "text")
    assert [row["run"] for row in spec["data"]["values"]] == ["a", "b"]
    rule = spec["layer"][0]["data"]["values"][0]
    assert (rule["low"], rule["high"]) == pytest.approx((0.89, 0.91))
