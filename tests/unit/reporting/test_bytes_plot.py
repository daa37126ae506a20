"""Accuracy against bytes: which runs have a place there, and that two sizes are needed."""

from pathlib import Path

from softlabel.pipeline.reporting.bytes_plot import bytes_rows, bytes_spec
from softlabel.schemas.reports.figures import ClassifierFigures, Spread
from softlabel.schemas.reports.seeing import RunMetrics
from softlabel.schemas.reports.training import StudentCard


def card(run: str, label_bytes: float | None, seed: int = 0) -> StudentCard:
    return StudentCard(
        run=run,
        seed=seed,
        model="m",
        model_args={},
        weights=str(Path("w")),
        weights_sha256="0" * 64,
        classes=("a", "b"),
        height=1,
        width=1,
        channels=1,
        mean=(0.5,),
        std=(0.5,),
        parameters=1,
        loss="kd",
        temperature=4.0,
        soft_weight=0.5,
        label_smoothing=0.0,
        labels_identity_sha256=None,
        label_bytes=label_bytes,
    )


def metrics(run: str, accuracy: float) -> RunMetrics:
    spread = Spread(mean=accuracy, standard_error=0.01)
    return RunMetrics(run=run, seeds=(0,), **dict.fromkeys(ClassifierFigures.model_fields, spread))


RUNS = [metrics("dense", 0.9), metrics("top", 0.8), metrics("hard", 0.7), metrics("mixed", 0.6)]
CARDS = [card("dense", 2000.0), card("dense", 2000.0, 1), card("top", 56.5), card("hard", None)]


def test_runs_of_one_size_each_have_a_place() -> None:
    rows = bytes_rows(RUNS, [*CARDS, card("mixed", 1.0), card("mixed", 2.0, 1)])
    assert [(row["run"], row["bytes"], row["accuracy"]) for row in rows] == [
        ("dense", 2000.0, 0.9),
        ("top", 56.5, 0.8),
    ]
    colours = {"dense": "#000", "top": "#111"}
    assert bytes_spec(rows, colours, "told")["data"]["values"] == rows


def test_one_size_makes_no_plot() -> None:
    assert bytes_rows(RUNS, [*CARDS[:2], card("top", 2000.0)]) == []
