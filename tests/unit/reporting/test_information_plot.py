"""The plot of mutual information: only what was estimated on the same grounds, with its level."""

import math
from pathlib import Path

import vl_convert

from softlabel.pipeline.reporting.information_plot import information_section
from softlabel.schemas.reports import TrainReport
from softlabel.schemas.reports.training import EpochRecord, InformationBasis

BASIS = InformationBasis(classes=("4", "9"), samples=200, draws=20, shift=0.25)
COLOURS = {"hard": "#111111", "smooth": "#222222", "other": "#333333", "plain": "#444444"}


def trained(run: str, seed: int, told: list[float], basis: InformationBasis | None) -> TrainReport:
    history = tuple(
        EpochRecord(
            epoch=epoch,
            learning_rate=0.1,
            loss=1.0,
            hard=1.0,
            train_accuracy=0.5,
            mutual_information=None if basis is None else value,
        )
        for epoch, value in enumerate(told)
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
        information=basis,
        history=history,
    )


def test_runs_with_bands_and_the_level_of_the_class_alone() -> None:
    reports = [
        trained("plain", 0, [1.0], None),
        trained("hard", 0, [0.5, 2.0, 1.5], BASIS),
        trained("hard", 1, [1.0, 2.5, 2.5], BASIS),
        trained("smooth", 0, [0.5, 1.0, 0.75], BASIS),
        trained("other", 0, [3.0], BASIS.model_copy(update={"samples": 20})),
    ]
    specs, shown = information_section(reports, COLOURS)
    rows = specs["information"]["data"]["values"]
    assert [(row["run"], row["epoch"]) for row in rows] == [
        (run, epoch) for run in ("hard", "smooth") for epoch in (1, 2, 3)
    ]
    assert rows[2] == {
        "run": "hard", "epoch": 3, "mean": 2.0, "low": 1.5, "high": 2.5, "seeds": 2,
    }  # fmt: skip
    told = shown["information"]
    assert (told["most"], told["class_alone"]) == (math.log(200), math.log(2))
    assert told["others"] == ["other"]
    assert told["table"][0] == {
        "run": "hard", "first": 0.75, "highest": 2.25, "highest_epoch": 2, "last": 2.0, "seeds": 2,
    }  # fmt: skip
    drawn = vl_convert.vegalite_to_svg(specs["information"])
    assert "the class alone" in drawn


def test_nothing_is_shown_where_nothing_was_estimated() -> None:
    assert information_section([trained("plain", 0, [1.0], None)], COLOURS) == (
        {},
        {"information": None},
    )
