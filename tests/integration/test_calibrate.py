"""calibrate from the command's side: what it writes, refuses, and what training makes of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from softlabel.pipeline.shards import block
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.sources.opening import open_source
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import CodecName
from softlabel.schemas.params import CalibrateParams, TrainParams
from softlabel.schemas.sample import TeacherOutput
from softlabel.stages import calibrate, train_student
from tests.unit import builders
from tests.unit.blocks import block_of, packing_of, write_set
from tests.unit.builders import write_labels, write_source

ONE_HOT = np.eye(4, dtype=np.float32)


def teach_at(odds: float) -> Callable[[np.ndarray], TeacherOutput]:
    """A teacher that is right for two of three samples and says so at odds of e^`odds`."""

    def teach(pixels: np.ndarray) -> TeacherOutput:
        numbers = builders.numbers_of_pixels(pixels)
        return TeacherOutput(ONE_HOT[(numbers + (numbers % 3 == 0)) % 4] * np.float32(odds))

    return teach


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    source = write_source(tmp_path / "data", (300, 300))
    return write_labels(tmp_path / "labels", source, teach=teach_at(6))


def test_overconfidence_is_cooled(labels: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in labels.iterdir()}
    output = tmp_path / "out/calibration.json"
    report = calibrate.run(CalibrateParams(labels=labels, output=output, fit_share=1.0))
    # p = e^{6/T} / (e^{6/T} + 3) is 2/3 where e^{6/T} is 6.
    assert report.temperature == pytest.approx(6 / np.log(6), rel=1e-6)
    assert report.fitted_rows == report.measured_rows == 600
    assert report.before.ece == pytest.approx(1 / (1 + 3 * np.exp(-6)) - 2 / 3, abs=1e-3)
    assert report.after.ece < 1e-6
    assert report.after.nll < report.before.nll
    assert report.after.accuracy == report.before.accuracy == pytest.approx(2 / 3)
    assert json.loads(output.read_text())["temperature"] == report.temperature
    metrics = json.loads((tmp_path / "out/calibration-metrics.json").read_text())
    assert metrics["temperature"] == report.temperature
    assert metrics["after"] == report.after.model_dump()
    rows = json.loads((tmp_path / "out/calibration-plot.json").read_text())
    assert [(row["part"], row["rows"]) for row in rows] == [("before", 600), ("after", 600)]
    assert {path.name: path.read_bytes() for path in labels.iterdir()} == before


def test_rows_are_split_by_key(labels: Path, tmp_path: Path) -> None:
    settings = {"labels": labels, "output": tmp_path / "c.json"}
    report = calibrate.run(CalibrateParams(**settings, fit_share=0.3))
    assert report.fitted_rows + report.measured_rows == 600
    assert 130 < report.fitted_rows < 230
    again = calibrate.run(CalibrateParams(**settings, fit_share=0.3))
    other = calibrate.run(CalibrateParams(**settings, fit_share=0.3, seed=1))
    assert again == report
    assert other.temperature != report.temperature


def test_as_many_rows_are_decoded_at_a_time_as_their_classes_allow(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = CalibrateParams(labels=labels, output=tmp_path / "c.json")
    whole = calibrate.run(params)
    sizes = []
    logits = LabelBlock.logits

    def count(stored: LabelBlock, T: float = 1.0) -> npt.NDArray[np.float32]:
        sizes.append(len(stored))
        return logits(stored, T)

    monkeypatch.setattr(block, "PIECE_VALUES", 100)
    monkeypatch.setattr(LabelBlock, "logits", count)
    report = calibrate.run(params)
    assert max(sizes) <= 100 // len(builders.CLASSES)
    assert report.temperature == pytest.approx(whole.temperature, rel=1e-9)
    assert report.measured_rows == whole.measured_rows


def sequences(codec: CodecName, lengths: Sequence[int]) -> LabelBlock:
    """Positions whose hard labels are drawn from their soft targets at T = 2, or are unknown."""
    found = block_of(packing_of(codec, positions=True), len(lengths), lengths=lengths)
    random = np.random.default_rng(5)
    drawn = [random.choice(6, p=row / row.sum()) for row in found.probs(2.0).astype(np.float64)]
    unknown = np.arange(len(drawn)) % 5 == 0
    return replace(found, labels=pa.array(drawn, pa.int32(), mask=unknown))


@pytest.mark.parametrize("codec", ["dense-f16", "factored"])
def test_positions_are_rows(
    codec: CodecName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sequences(codec, [7, 0, 40, 1, 12] * 3)
    keys = pa.array([f"p{index}" for index in range(180)])
    flat = replace(found, keys=keys, lengths=None)
    write_set(tmp_path / "sequences", packing_of(codec, positions=True), [found])
    write_set(tmp_path / "flat", packing_of(codec), [flat])
    wanted, told = (
        calibrate.run(
            CalibrateParams(labels=tmp_path / name, output=tmp_path / "c.json", fit_share=1)
        )
        for name in ("flat", "sequences")
    )
    assert told.measured_rows == told.fitted_rows == wanted.fitted_rows == 144
    assert told.temperature == pytest.approx(wanted.temperature, rel=1e-9)
    for part in ("before", "after"):
        figures = getattr(told, part).model_dump()
        assert figures == pytest.approx(getattr(wanted, part).model_dump(), rel=1e-9)

    sizes: list[int] = []
    logits = LabelBlock.logits

    def count(stored: LabelBlock, T: float = 1.0) -> npt.NDArray[np.float32]:
        sizes.append(len(stored.top1))
        return logits(stored, T)

    monkeypatch.setattr(block, "PIECE_VALUES", 60)
    monkeypatch.setattr(LabelBlock, "logits", count)
    params = CalibrateParams(labels=tmp_path / "sequences", output=tmp_path / "c.json", fit_share=1)
    assert calibrate.run(params).temperature == pytest.approx(wanted.temperature, rel=1e-9)
    assert max(sizes) == 10


def test_a_sequence_is_fitted_on_or_measured_as_a_whole(tmp_path: Path) -> None:
    found = sequences("dense-f16", [10] * 40)
    write_set(tmp_path / "labels", packing_of("dense-f16", positions=True), [found])
    params = CalibrateParams(labels=tmp_path / "labels", output=tmp_path / "c.json")
    report = calibrate.run(params)
    # Of each sequence 8 positions have a hard label.
    assert report.fitted_rows % 8 == report.measured_rows % 8 == 0
    assert report.fitted_rows + report.measured_rows == 320
    assert 0 < report.fitted_rows < 320


def test_too_many_labels_outside_the_kept_are_refused(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = write_labels(
        tmp_path / "sparse", write_source(tmp_path / "more", (90,)), codec="topk", k=1
    )
    params = CalibrateParams(labels=sparse, output=tmp_path / "c.json")
    with pytest.raises(DataError, match=r"% of the hard labels are outside .* larger --k"):
        calibrate.run(params)
    assert not (tmp_path / "c.json").exists()


def test_the_output_stays_out_of_the_label_set(labels: Path) -> None:
    with pytest.raises(ParameterError, match="lies in the label set"):
        calibrate.run(CalibrateParams(labels=labels, output=labels / "calibration.json"))


def train(tmp_path: Path, labels: Path, temperature: float, calibration: Path | None) -> float:
    report = train_student.run(
        TrainParams(
            model="softlabel.pipeline.small_models:mlp",
            model_args={"inputs": 6},
            loss="kd",
            source=tmp_path / "data",
            labels=labels,
            soft_weight=1.0,
            temperature=temperature,
            calibration=calibration,
            output=tmp_path / "student",
            batch_size=100,
            epochs=1,
            logger="none",
        )
    )
    divergence = report.history[-1].soft_kl
    assert divergence is not None
    return divergence


def test_training_divides_the_teachers_logits_alone(labels: Path, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    fitted = calibrate.run(CalibrateParams(labels=labels, output=file, fit_share=1.0)).temperature
    source = open_source(tmp_path / "data")
    cooler = write_labels(tmp_path / "cooler", source, teach=teach_at(6 / fitted))
    wanted = train(tmp_path, cooler, 2.0, None)
    assert train(tmp_path, labels, 2.0, file) == pytest.approx(wanted, rel=1e-3)
    assert train(tmp_path, labels, 2.0, None) != pytest.approx(wanted, rel=1e-3)


def test_a_calibration_of_another_teacher_is_refused(labels: Path, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    calibrate.run(CalibrateParams(labels=labels, output=file))
    other = write_labels(
        tmp_path / "other", write_source(tmp_path / "o", (64,)), teacher_sha256=("1" * 64,)
    )
    with pytest.raises(DataError, match="was fitted to another teacher"):
        train(tmp_path, other, 2.0, file)
    file.write_text("{}")
    with pytest.raises(DataError, match=r"is no calibration\.json"):
        train(tmp_path, labels, 2.0, file)
    with pytest.raises(ParameterError, match="no such calibration"):
        train(tmp_path, labels, 2.0, tmp_path / "absent.json")
