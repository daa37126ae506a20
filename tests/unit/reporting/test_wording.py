"""Results in words: computed, and no bolder than their standard errors."""

from pathlib import Path

import pytest

from softlabel.pipeline.reporting import wording
from softlabel.schemas.reports import EvaluateReport
from softlabel.schemas.reports.figures import ClassifierFigures, Spread
from softlabel.schemas.reports.seeing import RunMetrics
from softlabel.schemas.reports.training import StudentCard


def spread(mean: float, error: float | None = None) -> Spread:
    return Spread(mean=mean, standard_error=error)


def card(loss: str, model: str = "cnn", smoothing: float = 0.0) -> StudentCard:
    soft = loss != "hard"
    return StudentCard(
        run="",
        seed=0,
        model=model,
        model_args={},
        weights="w",
        weights_sha256="0",
        classes=("a", "b"),
        height=8,
        width=8,
        channels=1,
        mean=(0.5,),
        std=(0.5,),
        parameters=10,
        loss=loss,
        temperature=4.0 if soft else None,
        soft_weight=0.9 if soft else None,
        label_smoothing=smoothing,
        labels_identity_sha256="id" if soft else None,
    )


def evaluation(source: str = "data/test", **accuracies: Spread) -> EvaluateReport:
    return EvaluateReport(
        output=Path("out"),
        source=Path(source),
        rows=500,
        classes=("a", "b"),
        students=(),
        runs=tuple(
            RunMetrics(
                run=run,
                seeds=(0, 1),
                **dict.fromkeys(ClassifierFigures.model_fields, spread(0.1)) | {"accuracy": value},
            )
            for run, value in accuracies.items()
        ),
    )


CARDS = {"hard": card("hard"), "kd": card("kd"), "kd2": card("kd")}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (spread(0.9794, 0.0012), "97.9 ± 0.1\u00a0%"),
        (spread(0.9794, 0.0004), "97.94 ± 0.04\u00a0%"),
        (spread(0.9794, 0.0), "97.9 ± 0.0\u00a0%"),
        (spread(0.9794), "97.9\u00a0%"),
        (spread(1.0, 0.000001), "100.0000 ± 0.0001\u00a0%"),
    ],
)
def test_percent(value: Spread, text: str) -> None:
    assert wording.percent(value) == text


def test_the_result_names_both_sides() -> None:
    reached, worth = wording.result(
        evaluation(hard=spread(0.965, 0.003), kd=spread(0.979, 0.001)), CARDS
    )
    assert reached == (
        "Students trained on stored soft labels reached 97.9 ± 0.1\u00a0% on 500 test samples; "
        "hard labels alone: 96.5 ± 0.3\u00a0%."
    )
    assert worth == (
        "Soft labels are 1.4 points ahead of hard labels alone, 4.4 times the standard error of "
        "the difference."
    )


def test_smoothing_is_a_baseline_of_its_own() -> None:
    cards = CARDS | {"smooth": card("hard", smoothing=0.1)}
    found = evaluation(hard=spread(0.95, 0.001), smooth=spread(0.98, 0.002), kd=spread(0.97, 0.001))
    reached, worth = wording.result(found, cards)
    assert reached.endswith(
        "; hard labels alone: 95.0 ± 0.1\u00a0%; label smoothing 0.1: 98.0 ± 0.2\u00a0%."
    )
    assert "2.0 points ahead of hard labels alone" in worth
    assert "1.0 points behind label smoothing 0.1" in worth


def test_the_best_of_several_is_called_so() -> None:
    reached, _ = wording.result(
        evaluation("data/letters", kd=spread(0.9, 0.01), kd2=spread(0.91, 0.01)), CARDS
    )
    assert "500 samples of “letters” (“kd2”, the best of 2 runs)." in reached


def test_another_model_is_no_baseline() -> None:
    cards = {"kd": card("kd"), "teacher": card("hard", model="big")}
    found = evaluation(teacher=spread(0.99, 0.001), kd=spread(0.9, 0.001))
    reached, worth = wording.result(found, cards)
    assert "hard" not in reached
    assert worth.startswith("No run of the same model with hard labels alone")


def test_without_soft_runs_the_best_run_speaks() -> None:
    reached, worth = wording.result(evaluation(hard=spread(0.9, 0.01)), CARDS)
    assert reached == "Run “hard” reached 90.0 ± 1.0\u00a0% on 500 test samples."
    assert worth.startswith("No run among them")


@pytest.mark.parametrize(
    ("soft", "hard", "said"),
    [
        (spread(0.970, 0.003), spread(0.969, 0.003), "do not tell the two apart"),
        (spread(0.960, 0.003), spread(0.963, 0.003), "do not tell the two apart"),
        (spread(0.975, 0.003), spread(0.969, 0.003), "a hint, no more"),
        (
            spread(0.950, 0.001),
            spread(0.969, 0.001),
            "1.9 points behind hard labels alone, more than 10 times",
        ),
        (spread(0.990), spread(0.969, 0.003), "may be chance"),
        (
            spread(0.990, 0.0),
            spread(0.969, 0.0),
            "2.1 points ahead of hard labels alone, more than 10 times",
        ),
        (spread(0.990, 0.0), spread(0.990, 0.0), "do not tell the two apart"),
    ],
)
def test_verdict_is_honest(soft: Spread, hard: Spread, said: str) -> None:
    assert said in wording.verdict(soft, hard, "hard labels alone")


def test_how_trained() -> None:
    assert wording.how_trained(card("hard")) == "hard labels alone"
    assert wording.how_trained(card("hard", smoothing=0.1)) == "label smoothing 0.1"
    assert wording.how_trained(card("kd")) == "soft labels (T = 4, weight 0.9)"


def test_sampling_error_is_the_binomial_one() -> None:
    assert wording.sampling_error(evaluation(kd=spread(0.9))) == pytest.approx(0.0134164)


@pytest.mark.parametrize(
    ("size", "text"), [(812, "812 bytes"), (25_400, "25.4 kB"), (1_300_000_000, "1.3 GB")]
)
def test_file_size(size: int, text: str) -> None:
    assert wording.file_size(size) == text


def test_count() -> None:
    assert [wording.count(n, "seed") for n in (1, 3, 1797)] == ["1 seed", "3 seeds", "1,797 seeds"]
