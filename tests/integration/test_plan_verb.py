"""plan: what it promises of a codec is what `infer` then writes."""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import pytest

from softlabel.pipeline.inference import batch_size
from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.schemas.params import InferParams, PlanParams
from softlabel.schemas.reports import CodecPlanReport
from softlabel.stages import infer, plan
from tests.conftest import Command, Project

MANY = tuple(f"class-{number}" for number in range(100))
TOPK = ["topk 10", "topk 10, prior", "topk 64", "topk 64, prior"]
DENSE = ["dense-f32", "dense-f16", "dense-u8"]


@pytest.fixture
def many(empty_project: Project) -> Project:
    """600 samples of 100 classes and a teacher whose last layer has 64 inputs, entered."""
    empty_project.source(shards=(400, 200), classes=MANY)
    empty_project.teacher(classes=MANY)
    return empty_project


def planned(**changes: Any) -> CodecPlanReport:
    return plan.run(PlanParams(**changes))


def figures(report: CodecPlanReport) -> dict[str, Any]:
    """All that does not depend on the clock."""
    timed = {"samples_per_second", "seconds"}
    return report.model_dump(
        exclude={"teacher_samples_per_second": True, "trials": {"__all__": timed}}
    )


def test_every_codec_is_tried(many: Project) -> None:
    report = planned()
    assert [trial.name for trial in report.trials] == [*DENSE, *TOPK, "factored"]
    assert (report.rows, report.sampled, report.classes) == (600, 600, 100)
    assert {trial.top1_agreement for trial in report.trials} == {1.0}
    for trial in report.trials:
        assert list(trial.kl) == list(trial.tv) == ["1.0", "2.0", "4.0", "8.0"]
        assert all(0 <= loss.mean <= loss.p99 for loss in trial.kl.values())
        assert all(0 <= loss.mean <= loss.p99 <= 1 for loss in trial.tv.values())


def test_the_set_has_the_size_and_the_fidelity_that_were_promised(many: Project) -> None:
    report = planned(batch_size=16, shard_rows=300)
    for trial in report.trials:
        given = {"k": trial.k, "tail": trial.tail} if trial.codec == "topk" else {}
        output = Path(f"labels-{trial.name}")
        written = infer.run(
            InferParams(codec=trial.codec, output=output, batch_size=16, shard_rows=300, **given)
        )
        head = output / "head.safetensors"
        size = written.bytes + (head.stat().st_size if head.exists() else 0)
        assert trial.bytes == pytest.approx(size, rel=0.01), trial.name
        for T, mean in written.kl_mean.items():
            assert trial.kl[T].mean == pytest.approx(mean, rel=1e-6, abs=1e-15), (trial.name, T)


def test_the_recommended_command_makes_the_set(many: Project, command: Command) -> None:
    report = planned(temperatures=(1.0, 3.0), batch_size=32)
    assert report.command is not None
    program, *arguments = shlex.split(report.command)
    assert program == "softlabel"
    assert command(*arguments).code == 0
    labels = open_labelset(Path("labels"))
    best = next(trial for trial in report.trials if trial.name == report.recommended)
    assert labels.manifest.identity.codec == best.codec
    assert labels.temperatures == (1.0, 3.0)
    assert all(item.kl_mean <= report.max_kl for item in labels.manifest.fidelity)


def test_features_are_counted_where_they_shall_be_stored(many: Project, command: Command) -> None:
    report = planned(features="auto", batch_size=16, shard_rows=300, temperatures=(1.0,))
    assert [trial.name for trial in report.trials] == [*DENSE, *TOPK]
    assert any("factored is left out: it stores features of its own" in n for n in report.notes)
    assert report.command is not None
    assert command(*shlex.split(report.command)[1:]).code == 0
    labels = open_labelset(Path("labels"))
    assert labels.manifest.identity.features is not None
    best = next(trial for trial in report.trials if trial.name == report.recommended)
    size = sum(shard.bytes for shard in labels.manifest.shards)
    assert best.bytes == pytest.approx(size, rel=0.01)
    shown = command("plan", "--features", "nothing")
    assert shown.code == 3
    assert "'nothing'" in shown.stderr


def test_an_automatic_batch_size_is_found_and_handed_on(
    many: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "fastest_batch_size", lambda *_: 32)
    report = planned(batch_size="auto", shard_rows=100)
    assert report.command is not None
    assert "--batch-size 32" in report.command
    assert figures(report) == figures(planned(batch_size=32, shard_rows=100))


def test_the_smallest_that_fits_is_recommended(many: Project) -> None:
    for limit in (1e-12, 1e-6, 1e-3, 10):
        report = planned(max_kl=limit)
        best = next(trial for trial in report.trials if trial.name == report.recommended)
        for trial in report.trials:
            fits = all(loss.mean <= limit for loss in trial.kl.values())
            assert trial.fits == fits
            assert not fits or trial.bytes >= best.bytes
        assert best.fits


def test_one_temperature_is_easier_than_four(many: Project) -> None:
    """A limit that top-k keeps at T = 1 and breaks at others."""
    kl = {trial.name: trial.kl for trial in planned().trials}["topk 10"]
    limit = kl["1.0"].mean * 1.01
    assert max(loss.mean for loss in kl.values()) > limit
    alone = {trial.name: trial.fits for trial in planned(max_kl=limit, temperatures=(1.0,)).trials}
    together = {trial.name: trial.fits for trial in planned(max_kl=limit).trials}
    assert alone["topk 10"]
    assert not together["topk 10"]


def test_where_none_fits_it_says_so(project: Project, command: Command) -> None:
    report = planned(max_kl=1e-30)
    assert (report.recommended, report.command) == (None, None)
    shown = command("plan", "--max-kl", "1e-30")
    assert shown.code == 0
    assert "no codec keeps the mean KL within 1e-30 at every temperature" in shown.stdout
    assert "recommended" not in shown.stdout


def test_the_same_sample_gives_the_same_figures(many: Project) -> None:
    first, second = planned(rows=100), planned(rows=100)
    assert figures(first) == figures(second)
    assert first.sampled == 100


def test_the_sample_is_spread_over_the_source(project: Project, command: Command) -> None:
    """The last shard's poison is seen by a sample of a tenth."""
    project.source("data/poisoned", shards=(300, 200), poisoned=range(400, 500))
    project.teacher(poisoned=True)
    failed = command("plan", "--source", "data/poisoned", "--rows", "50")
    assert failed.code == 3
    assert "NaN for key 'sample-0004" in failed.stderr


def test_nothing_is_written_into_the_project(many: Project, command: Command) -> None:
    before = many.files(".")
    assert command("plan", "--rows", "100").code == 0
    assert many.files(".") == before


def test_few_classes_have_no_top_k(project: Project) -> None:
    report = planned()
    assert [trial.name for trial in report.trials] == DENSE
    (note,) = report.notes
    assert note.startswith("factored is left out: ")
    assert "64 inputs for 10 classes" in note


def test_json_holds_all_of_the_report(many: Project, command: Command) -> None:
    shown = command("plan", "--json", "--rows", "100")
    assert shown.code == 0
    assert shown.stderr == ""
    document = json.loads(shown.stdout)
    assert document == json.loads(CodecPlanReport.model_validate(document).model_dump_json())
    assert len(document["trials"]) == 8
    assert figures(CodecPlanReport.model_validate(document)) == figures(planned(rows=100))
    assert all(trial["seconds"] > 0 for trial in document["trials"])


def test_the_tables_fit_a_hundred_columns(many: Project, command: Command) -> None:
    flags = [word for T in (1, 2, 4, 8, 16) for word in ("--temperatures", str(T))]
    shown = command("plan", "--rows", "100", *flags)
    *lines, last = shown.stdout.splitlines()
    assert last.startswith("  softlabel infer ")
    assert max(map(len, lines)) <= 100
    marked = [line for line in lines if line.endswith("  recommended")]
    assert len(marked) == 1
    assert "top-k is a format for T near 1" in shown.stdout
    for name in [*DENSE, *TOPK, "factored"]:
        # A line in the first table; two of each loss, for five temperatures take two.
        assert sum(line.startswith(f"{name}  ") for line in lines) == 5, name


def test_no_room_for_temporary_files(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(project.root / "gone"))
    failed = command("plan")
    assert failed.code == 4
    assert "gone" in failed.stderr
    assert "set TMPDIR to another folder" in failed.stderr


def test_a_foreign_teacher_is_told_of_and_the_command_repeats_it(project: Project) -> None:
    project.teacher(metadata=False)
    told: dict[str, Any] = {
        "classes": tuple("0123456789"),
        "output_kind": "logits",
        "input_layout": "NHWC",
    }
    report = planned(**told)
    assert report.command is not None
    assert "--output-kind logits --input-layout NHWC" in report.command
    assert report.command.count("--classes") == 10


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--teacher", "nowhere.onnx"], 2, "nowhere.onnx: no such teacher file"),
        (["--source", "nowhere"], 2, "nowhere: no such source"),
        (["--source", "models"], 3, "the source is empty"),
        (["--rows", "0"], 2, "--rows: input should be"),
        (["--max-kl", "0"], 2, "--max-kl: input should be greater than 0"),
        (["--temperatures", "-1"], 2, "--temperatures"),
        (["--batch-size", "0"], 2, "--batch-size: input should be"),
    ],
)
def test_bad_input(
    project: Project, command: Command, flags: list[str], code: int, said: str
) -> None:
    failed = command("plan", *flags)
    assert failed.code == code
    assert said in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert failed.stdout == ""
