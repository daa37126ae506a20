"""evaluate beside stored labels: the label set's figures, agreement with it, churn over seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.sources.opening import open_source
from softlabel.schemas.errors import DataError
from softlabel.schemas.params import EvaluateParams, TrainParams
from softlabel.stages import evaluate, train_student
from tests.unit.builders import write_labels, write_source

ROWS = 60


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A source, its labels, two seeds of one run, and one of another."""
    source = write_source(tmp_path / "data", (40, 20))
    write_labels(tmp_path / "labels", source)
    for run, seed in (("soft", 0), ("soft", 1), ("hard", 0)):
        train_student.run(
            TrainParams(
                model="softlabel.pipeline.small_models:mlp",
                model_args={"inputs": 6},
                loss="kd" if run == "soft" else "hard",
                labels=tmp_path / "labels",
                source=source.path,
                output=tmp_path / "students",
                run=run,
                runs={run: {}},
                seed=seed,
                epochs=2,
                logger="none",
            )
        )
    return tmp_path


def params(world: Path, **settings: object) -> EvaluateParams:
    return EvaluateParams.model_validate(
        {
            "models": (world / "students",),
            "source": world / "data",
            "output": world / "out",
            "batch_size": 7,
            **settings,
        }
    )


def test_the_label_set_is_measured_too(world: Path) -> None:
    report = evaluate.run(params(world, labels=world / "labels"))
    stored = next(open_labelset(world / "labels").batches(ROWS))
    hard = stored.labels.to_numpy(zero_copy_only=False)
    logs = log_softmax(stored.logits().astype(np.float64), axis=1)
    found = report.label_set
    assert found is not None
    assert (found.rows, found.outside_kept) == (ROWS, 0)
    assert found.accuracy == (stored.top1 == hard).mean()
    assert found.nll == pytest.approx(-logs[np.arange(ROWS), hard].mean(), rel=1e-6)
    metrics = json.loads((world / "out/metrics.json").read_text())
    assert metrics["label set"]["nll"] == found.nll
    assert set(metrics) == {"label set", "soft", "hard"}


def test_students_are_compared_with_their_labels_and_their_seeds(world: Path) -> None:
    report = evaluate.run(params(world, labels=world / "labels"))
    apart = {(one.run, one.seed): one.against_labels for one in report.students}
    assert all(pair is not None and pair.kl > 0 for pair in apart.values())
    churn = {run.run: run.churn for run in report.runs}
    assert churn["hard"] is None
    assert churn["soft"] is not None
    assert 0 < churn["soft"].total_variation < 1


def test_agreement_and_accuracy_by_class(world: Path) -> None:
    report = evaluate.run(params(world, labels=world / "labels"))
    for run in report.runs:
        members = [one for one in report.students if one.run == run.run]
        assert run.by_class is not None
        assert run.by_class.agreement is not None
        rows = np.array(run.by_class.rows)
        assert rows.tolist() == [ROWS / 4 * len(members)] * 4
        accuracy = np.average(np.array(run.by_class.accuracy, float), weights=rows)
        assert accuracy == pytest.approx(run.accuracy.mean)
        agreement = np.average(np.array(run.by_class.agreement, float), weights=rows)
        pairs = [one.against_labels.agreement for one in members if one.against_labels]
        assert agreement == pytest.approx(np.mean(pairs))
    drawn = json.loads((world / "out/plots/classes.json").read_text())
    assert len(drawn) == 2 * 4
    last = report.runs[-1].by_class
    assert last is not None
    assert last.agreement is not None
    assert (drawn[-1]["class"], drawn[-1]["agreement"]) == ("dog", last.agreement[3])
    bins = json.loads((world / "out/plots/reliability.json").read_text())
    assert sum(row["rows"] for row in bins) == 3 * ROWS


def test_all_runs_are_projected_by_the_same_three_classes(world: Path) -> None:
    found = [run.projection for run in evaluate.run(params(world)).runs]
    assert None not in found
    assert len({one.classes for one in found if one is not None}) == 1
    assert all(one is not None and len(one.x) == 45 for one in found)
    assert found[0] != found[1]


def test_without_a_label_set_nothing_is_compared_with_it(world: Path) -> None:
    report = evaluate.run(params(world))
    assert report.label_set is None
    assert {student.against_labels for student in report.students} == {None}
    assert all(run.by_class and run.by_class.agreement is None for run in report.runs)


def test_labels_outside_the_kept_classes_are_counted(world: Path) -> None:
    source = open_source(world / "data")
    sparse = write_labels(world / "sparse", source, codec="topk", k=1)
    found = evaluate.run(params(world, labels=sparse)).label_set
    assert found is not None
    stored = next(open_labelset(world / "labels").batches(ROWS))
    wanted = (stored.top1 != stored.labels.to_numpy(zero_copy_only=False)).mean()
    assert found.outside_kept == pytest.approx(wanted)
    assert found.outside_kept == pytest.approx(1 - found.accuracy)


def test_labels_of_another_source_are_refused(world: Path) -> None:
    write_labels(world / "other", write_source(world / "more", (60,), first=100))
    with pytest.raises(DataError, match="does not hold the labels of"):
        evaluate.run(params(world, labels=world / "other"))
