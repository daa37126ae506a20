"""report over a small finished project: what the page says, and what stops it."""

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import softlabel
from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.progress import Quiet
from softlabel.pipeline.reporting.wording import percent, plain
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.params import ConvertParams, ReportParams
from softlabel.schemas.reports import EvaluateReport
from softlabel.stages import convert
from softlabel.stages.report import run
from tests.integration.page import Page
from tests.unit.blocks import block_of, packing_of, write_set

World = Callable[..., ReportParams]
EVALUATION = Path("reports/evaluate/evaluate.json")


def test_the_numbers_are_those_of_the_evaluation(make_world: World) -> None:
    params = make_world()
    report = run(params)
    assert (report.students, report.samples) == (8, 12)
    assert report.bytes == params.output.stat().st_size
    page = Page(params.output)
    evaluation = EvaluateReport.model_validate_json(EVALUATION.read_bytes())
    values = [float(str(one["value"])) for one in page.all("data")]
    for run_ in evaluation.runs:
        for text in (percent(run_.accuracy), plain(run_.nll), percent(run_.ece, 2)):
            assert " ".join(text.split()) in page.text
        assert {run_.accuracy.mean, run_.nll.mean, run_.ece.mean} <= set(values)
    assert "Students trained on stored soft labels reached 97.9 ± 0.1 % on 500 test" in page.text
    assert "hard labels alone 96.4 ± 0.3 %" in page.text


def test_the_numbers_of_soft_targets_are_those_of_json(make_world: World) -> None:
    params = make_world()
    found = json.loads(run(params).model_dump_json())["soft_targets"]
    page = Page(params.output)
    values = {float(str(one["value"])) for one in page.all("data")}
    signs, similarity = found["signs"], found["similarity"]
    told = [one for one in found["temperatures"] if one["temperature"] in params.temperatures]
    assert {one[name] for one in told for name in ("entropy", "top1")} <= values
    assert {value for name, value in signs.items() if name != "rows"} <= values
    highest = max(
        share
        for row, shares in enumerate(similarity["shares"])
        for column, share in enumerate(shares)
        if row != column
    )
    assert highest in values
    drawn = page.data()["plots"]["similarity"]["data"]["values"]
    assert len(drawn) == 100
    assert {row["share"] for row in drawn} - {None} <= {
        share for shares in similarity["shares"] for share in shares
    }
    stops = page.data()["targets"]
    assert stops == [one for one in found["temperatures"] if one["temperature"] <= 20]
    calibration = json.loads(Path("reports/calibration.json").read_text())
    for part in ("before", "after"):
        assert {calibration[part]["nll"], calibration[part]["ece"]} <= values
        rows = page.data()["plots"][f"teacher-{part}-rows"]["data"]["values"]
        assert [row["rows"] for row in rows] == [one["rows"] for one in calibration[f"bins_{part}"]]


def test_the_numbers_by_class_are_those_of_the_evaluation(make_world: World) -> None:
    params = make_world()
    run(params)
    page = Page(params.output)
    evaluation = json.loads(EVALUATION.read_text())
    values = {float(str(one["value"])) for one in page.all("data")}
    for index, run_ in enumerate(evaluation["runs"]):
        assert set(run_["by_class"]["agreement"]) | {run_["projection"]["spread"]} <= values
        drawn = page.data()["plots"][f"projection-{index}"]["data"]["values"]
        assert [(row["label"], row["x"], row["y"]) for row in drawn] == list(
            zip(*(run_["projection"][name] for name in ("labels", "x", "y")), strict=True)
        )
    rows = page.data()["plots"]["by-class"]["data"]["values"]
    told = {
        (evaluation["classes"][index], run_["run"], share)
        for run_ in evaluation["runs"]
        for index, share in enumerate(run_["by_class"]["agreement"])
    }
    assert {(row["class"], row["run"], row["share"]) for row in rows} == told


def test_the_mutual_information_is_that_of_the_training(make_world: World) -> None:
    params = make_world()
    run(params)
    page = Page(params.output)
    values = {float(str(one["value"])) for one in page.all("data")}
    told: dict[tuple[str, int], list[float]] = {}
    for path in sorted(Path("models/students").rglob("train.json")):
        report = json.loads(path.read_text())
        for record in report["history"]:
            found = told.setdefault((report["run"], record["epoch"] + 1), [])
            found.append(record["mutual_information"])
    means = {place: sum(found) / len(found) for place, found in told.items()}
    drawn = page.data()["plots"]["information"]["data"]["values"]
    assert {(row["run"], row["epoch"]): row["mean"] for row in drawn} == means
    assert {means["hard", 1], means["hard", 20], means["kd", 20]} <= values
    assert "every picture told apart 5.30" in page.text


def test_without_an_estimate_there_is_no_mutual_information(make_world: World) -> None:
    params = make_world()
    for path in Path("models/students").rglob("train.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"information": None}))
    run(params)
    assert "What the logits still tell" not in Page(params.output).text


def test_a_topk_set_has_histograms_from_its_lowest_temperature_on(make_world: World) -> None:
    params = make_world()
    convert.run(ConvertParams(labels=params.labels, output=Path("sparse"), codec="topk", k=4))
    run(params.model_copy(update={"labels": Path("sparse")}))
    page = Page(params.output)
    stops = page.data()["targets"]
    assert stops[0]["temperature"] == 1
    (slider,) = page.all("input")
    assert slider["max"] == str(len(stops) - 1)
    assert page.data()["samples"] == []
    assert not [one for one in page.all("td") if one.get("class") == "live"]


def test_labels_of_sequences_are_refused(make_world: World) -> None:
    params = make_world()
    packing = packing_of("dense-f16", positions=True)
    write_set(Path("sequences"), packing, [block_of(packing, 2, lengths=[2, 3])])
    with pytest.raises(DataError, match=r"sequences: holds labels of positions .*'labels: null'"):
        run(params.model_copy(update={"labels": Path("sequences")}))


def test_a_calibration_of_another_teacher_is_refused(make_world: World) -> None:
    params = make_world()
    path = Path("reports/calibration.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher_sha256": ["0" * 64]}))
    with pytest.raises(DataError, match=r"calibration\.json: is of another teacher than that of"):
        run(params)


def test_without_a_calibration_the_teacher_has_no_diagram(make_world: World) -> None:
    params = make_world().model_copy(update={"calibration": None})
    run(params)
    assert "temperature scaling" not in Page(params.output).text


def test_it_says_where_the_labels_come_from(make_world: World) -> None:
    params = make_world()
    run(params)
    text = Page(params.output).text
    labels = open_labelset("labels")
    identity = labels.manifest.identity
    assert labels.identity in text
    assert identity.teacher_sha256[0] in text
    assert "400 in 1 shard" in text
    assert all(f"{one.kl_mean:.2g}" in text for one in labels.manifest.fidelity)
    assert all(str(file.digest) in text for file in identity.source)
    assert "softlabel infer --source data/train --output labels --codec dense-f16" in text
    trained = "softlabel train-student --run kd --loss kd --model-args '{\"width\": 8}'"
    flags = "--source train --no-standardise --seed $seed; done"
    assert f"for seed in 0 1 2 3; do {trained} {flags}" in text.replace("\\ ", "")
    assert "softlabel calibrate --output reports/calibration.json" in text
    assert "softlabel evaluate --models models/students --source data/test" in text
    assert f"softlabel {softlabel.__version__}" in text


def test_a_derived_set_names_the_command_that_made_it(make_world: World) -> None:
    params = make_world()
    made = ConvertParams(labels=params.labels, output=Path("f32"), codec="dense-u8")
    convert.run(made)
    run(params.model_copy(update={"labels": Path("f32")}))
    text = Page(params.output).text
    assert open_labelset("f32").manifest.making.command in text
    assert "softlabel infer" not in text


def test_the_page_is_complete_and_asks_nobody(make_world: World) -> None:
    params = make_world()
    run(params)
    page = Page(params.output)
    assert [one.get("type") for one in page.all("script")] == ["application/json", None, None]
    assert not any("src" in one for one in page.all("script"))
    assert page.all("link") == []
    assert all(str(one["src"]).startswith("data:image/png;base64,") for one in page.all("img"))
    assert all(one["alt"] for one in page.all("img"))
    boxes = [one["data-plot"] for one in page.all("div") if "data-plot" in one]
    assert sorted(map(str, boxes)) == sorted(page.data()["plots"])
    assert all(one.get("aria-label") for one in page.all("div") if "data-plot" in one)
    ids = [one["id"] for _, one in page.tags if "id" in one]
    assert len(ids) == len(set(ids))
    assert {str(one["href"]).removeprefix("#") for one in page.all("a")} <= set(ids)
    assert len(page.data()["samples"]) == 12


def test_equal_inputs_give_equal_bytes_without_this_machine(
    make_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        params = make_world()
        run(params)
        pages.append(params.output.read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    page = Page(params.output)
    said = page.text + json.dumps(page.data())
    assert str(tmp_path) not in pages[0]
    assert socket.gethostname() not in said
    assert not re.search(r"20\d\d-\d\d-\d\d", said)


def test_absolute_paths_stay_off_the_page(make_world: World, tmp_path: Path) -> None:
    params = make_world()
    absolute = {
        name: tmp_path / getattr(params, name)
        for name in ("evaluation", "labels", "source", "output")
    }
    run(params.model_copy(update={**absolute, "models": (tmp_path / "models/students",)}))
    assert str(tmp_path) not in params.output.read_text(encoding="utf-8")


def test_without_labels_there_is_no_gallery(make_world: World) -> None:
    params = make_world().model_copy(update={"labels": None})
    assert run(params).samples == 0
    page = Page(params.output)
    assert "Results" in page.text
    assert "What the teacher sees" not in page.text
    assert page.all("img") == []


def test_without_the_source_there_are_bars_and_no_pictures(make_world: World) -> None:
    params = make_world().model_copy(update={"source": None})
    assert run(params).samples == 12
    page = Page(params.output)
    assert page.all("img") == []
    assert "What the teacher sees" in page.text


class Said(Quiet):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def alone(make_world: World) -> Said:
    """Enter a project in which no student ever was."""
    make_world()
    shutil.rmtree("models")
    shutil.rmtree("reports")
    return Said()


def test_a_label_set_alone(make_world: World) -> None:
    said = alone(make_world)
    report = run(ReportParams(), said)
    assert said.lines == ["no reports/evaluate/evaluate.json: the page has no students"]
    assert (report.students, report.samples) == (0, 12)
    page = Page(report.output)
    manifest = open_labelset("labels").manifest
    size = f"{manifest.shards[0].bytes / 400:.0f} bytes each (dense-f16)"
    assert page.text.startswith("What the soft labels say ")
    assert re.search(rf"400 soft labels of 10 classes in \d+\.\d kB: {re.escape(size)}", page.text)
    assert report.soft_targets is not None
    (at,) = (one for one in report.soft_targets.temperatures if one.temperature == 4)
    assert f"soft targets have {at.entropy:.2f} of at most 2.30 nats" in page.text
    right = 100 * manifest.statistics.correct / manifest.statistics.labelled
    assert f"the hard label for {right:.1f} % of 400 rows" in page.text
    assert "student" not in page.text
    verbs = re.findall("softlabel (infer|train-student|evaluate|calibrate|report --)", page.text)
    assert verbs == ["infer", "report --"]
    ids = {one["id"] for _, one in page.tags if "id" in one}
    assert {str(one["href"]).removeprefix("#") for one in page.all("a")} <= ids
    boxes = [one["data-plot"] for one in page.all("div") if "data-plot" in one]
    assert sorted(map(str, boxes)) == sorted(page.data()["plots"])


def test_a_factored_set_alone_shows_its_teacher_s_last_layer(make_world: World) -> None:
    alone(make_world)
    packing = packing_of("factored")
    write_set(Path("factored"), packing, [block_of(packing, 60)])
    report = run(ReportParams(labels=Path("factored"), source=None))
    page = Page(report.output)
    assert report.projection is not None
    drawn = page.data()["plots"]["projection-0"]["data"]["values"]
    assert [row["x"] for row in drawn] == list(report.projection.x)
    assert "two that the teacher takes for neighbours" in page.text
    assert "student" not in page.text
    assert "seed" not in page.text


def test_a_label_set_with_its_calibration_alone(make_world: World) -> None:
    params = make_world().model_copy(update={"evaluation": None})
    run(params)
    page = Page(params.output)
    assert "before and after temperature scaling" in page.text
    assert "seeds" not in page.text
    assert {"teacher-before", "teacher-after"} <= set(page.data()["plots"])


def test_what_is_not_there_by_default_is_left_out_and_said(make_world: World) -> None:
    make_world()
    shutil.rmtree("labels")
    shutil.rmtree("data")
    said = Said()
    report = run(ReportParams(), said)
    assert said.lines == [
        "no labels: the page has no soft labels",
        "no data/train: the page has no pictures",
    ]
    assert (report.students, report.samples) == (8, 0)


@pytest.mark.parametrize("name", ["evaluation", "models", "labels", "source"])
def test_what_is_given_must_be_there(make_world: World, name: str) -> None:
    alone(make_world)
    path = Path("elsewhere")
    params = ReportParams.model_validate({name: (path,) if name == "models" else path})
    with pytest.raises(ParameterError, match=r"elsewhere|softlabel evaluate' first"):
        run(params)


def test_nothing_at_all_is_refused(make_world: World) -> None:
    alone(make_world)
    shutil.rmtree("labels")
    with pytest.raises(ParameterError, match="neither an evaluation nor a label set is there; run"):
        run(ReportParams())


def test_hostile_names_are_text(hostile_world: ReportParams, hostile_names: list[str]) -> None:
    run(hostile_world)
    page = Page(hostile_world.output)
    assert len(page.all("script")) == 3
    assert not any(name.startswith("on") for _, one in page.tags for name in one)
    for name in hostile_names:
        assert " ".join(name.split()) in page.text
    alts = " ".join(str(one["alt"]) for one in page.all("img"))
    assert hostile_names[1] in alts
    assert page.data()["runs"][0] in hostile_names


def test_runs_without_a_name_get_one(make_world: World) -> None:
    params = make_world()
    for path in [*Path("models").rglob("*.json"), EVALUATION]:
        path.write_text(path.read_text().replace('"run": "kd"', '"run": ""'))
    run(params)
    text = Page(params.output).text
    assert "unnamed" in text
    assert "do softlabel train-student --loss kd" in text


def test_students_of_other_labels_are_pointed_out(make_world: World) -> None:
    params = make_world()
    path = Path("models/students/run1-0/student.json")
    card = json.loads(path.read_text()) | {"labels_identity_sha256": "f" * 64}
    path.write_text(json.dumps(card))
    run(params)
    assert "learned from another label set" in Page(params.output).text


def test_a_missing_evaluation_says_what_to_run(make_world: World) -> None:
    params = make_world()
    EVALUATION.unlink()
    with pytest.raises(ParameterError, match=r"evaluate.json: .*run 'softlabel evaluate' first"):
        run(params)


@pytest.mark.parametrize(
    "name", ["reports/evaluate/evaluate.json", "models/students/run0-0/train.json"]
)
@pytest.mark.parametrize("text", ["", "{", '{"output": 3}', "null", '{"rows": NaN}'])
def test_damaged_json_is_one_clear_line(make_world: World, name: str, text: str) -> None:
    params = make_world()
    Path(name).write_text(text)
    with pytest.raises(DataError, match=rf"^{name}: is damaged \(.*; run 'softlabel ") as caught:
        run(params)
    assert "\n" not in str(caught.value)
    assert not params.output.exists()


def test_missing_curves_say_what_to_run(make_world: World) -> None:
    params = make_world()
    Path("models/students/run0-0/train.json").unlink()
    with pytest.raises(ParameterError, match=r"train.json: .*'softlabel train-student' first"):
        run(params)


def test_no_students_is_a_parameter_error(make_world: World) -> None:
    params = make_world().model_copy(update={"models": (Path("data"),)})
    with pytest.raises(ParameterError, match=r"data: no student\.json"):
        run(params)


def test_an_empty_evaluation_is_refused(make_world: World) -> None:
    params = make_world()
    path = EVALUATION
    path.write_text(json.dumps(json.loads(path.read_text()) | {"students": [], "runs": []}))
    with pytest.raises(DataError, match="measured no student"):
        run(params)


def test_another_source_is_refused_by_key(
    make_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    make_world(keys=[f"stranger-{index}" for index in range(400)])
    monkeypatch.chdir(tmp_path)
    params = make_world().model_copy(update={"source": other / "data/train"})
    with pytest.raises(DataError, match=r"it lacks key 'digit-\d+', which the label set has"):
        run(params)


def test_a_shorter_source_is_refused_by_key(make_world: World) -> None:
    params = make_world()
    Path("data/train/part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"it lacks key 'digit-\d+', which the label set has"):
        run(params)
