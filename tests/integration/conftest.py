"""A small finished project for the report's tests: source, label set, students and evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from softlabel.pipeline.codecs.codec import shift_rows
from softlabel.pipeline.codecs.numerics import kl_sums
from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.shards.block import LabelBlock
from softlabel.pipeline.shards.layouts import writing_shard
from softlabel.pipeline.shards.packing import make_packing
from softlabel.pipeline.sources.digits import read_digits
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.parquet import write_source_shard
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.labelset import (
    Fidelity,
    Identity,
    Manifest,
    ManifestShard,
    MeasuredFidelity,
    Receipt,
    Segment,
    Statistics,
    canonical_json,
)
from softlabel.schemas.model import Record, report_json
from softlabel.schemas.params import ReportParams
from softlabel.schemas.reports import CalibrateReport, EvaluateReport, TrainReport
from softlabel.schemas.reports.figures import (
    Bin,
    ClassifierFigures,
    ClassShares,
    Projection,
    Spread,
)
from softlabel.schemas.reports.seeing import RunMetrics, StudentMetrics
from softlabel.schemas.reports.training import EpochRecord, InformationBasis, StudentCard
from softlabel.schemas.sample import SampleBlock
from softlabel.schemas.teacher import Preprocess
from tests.unit.label_sets import numbered, write_set

if TYPE_CHECKING:
    from tests.conftest import Outcome, Project

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
ROWS = 400
TEACHER = (hashlib.sha256(b"teacher").hexdigest(),)


@dataclass(frozen=True)
class Recipe:
    """A run of the invented project: its accuracy per seed and how quickly it learns."""

    run: str
    loss: str
    accuracies: Sequence[float]
    overconfidence: float = 0.02
    label_bytes: float = 36.0


RECIPES = (
    Recipe("hard", "hard", (0.958, 0.966, 0.970, 0.962), 0.035),
    Recipe("kd", "kd", (0.978, 0.980, 0.976, 0.982), 0.012),
)

HOSTILE = (
    "<script>window.pwned=1</script>",
    "</script><img src=x onerror=window.pwned=1>",
    "two\nlines \u2028 and & \"quotes\" 'too'",
    "long" * 75,
    "\u202e\u05d9\u05de\u05d9\u05df \u05dc\u05e9\u05de\u05d0\u05dc",
)

World = Callable[..., ReportParams]


@pytest.fixture(scope="session")
def finished_demo(
    tmp_path_factory: pytest.TempPathFactory, unpack: Callable[[Path], Project]
) -> tuple[Project, Outcome]:
    """An unpacked archive in which `make demo`'s two commands have run, with short training.

    And what the second said. Minutes long: for slow tests, which leave it as it is.
    """
    project = unpack(tmp_path_factory.mktemp("archive") / "softlabel")
    project.set_params({"train_teacher.epochs": 4, "train_student.epochs": 2})
    settled = project.call("bash", "scripts/settle_scm.sh")
    assert settled.code == 0, settled.stderr
    outcome = project.call("dvc", "repro")
    assert outcome.code == 0, outcome.stdout + outcome.stderr
    return project, outcome


@pytest.fixture
def make_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Write a project into a fresh folder, enter it, and return the parameters of its report."""
    monkeypatch.chdir(tmp_path)

    def make(
        recipes: Sequence[Recipe] = RECIPES,
        classes: Sequence[str] = tuple("0123456789"),
        keys: Sequence[str] | None = None,
        epochs: int = 20,
        experiments: Sequence[str] = ("warmer", "colder"),
    ) -> ReportParams:
        source = write_source(Path("data/train"), classes, keys)
        identity = write_labels(Path("labels"), source)
        write_students(Path("models/students"), recipes, classes, identity, epochs)
        write_evaluation(Path("reports/evaluate"), recipes, classes)
        write_calibration(Path("reports/calibration.json"), identity)
        write_experiments(Path("experiments.json"), experiments)
        return ReportParams(
            calibration=Path("reports/calibration.json"), experiments=Path("experiments.json")
        )

    return make


@pytest.fixture(scope="session")
def hostile_names() -> tuple[str, ...]:
    """Names that break a page which takes them for anything but text."""
    return HOSTILE


@pytest.fixture
def hostile_world(make_world: World) -> ReportParams:
    """A project whose runs, classes, first keys and title are hostile."""
    recipes = [Recipe(HOSTILE[index], "kd", (0.91, 0.92)) for index in (1, 2, 3, 4)]
    recipes.append(Recipe(HOSTILE[0], "hard", (0.9,)))
    params = make_world(recipes, (*HOSTILE, *"56789"), HOSTILE, experiments=HOSTILE)
    return params.model_copy(update={"title": HOSTILE[0]})


@pytest.fixture
def large_world(make_world: World) -> ReportParams:
    """A project of 1,000 classes, whose label set has 50,000 rows, and two sizes of labels."""
    params = make_world(
        recipes=(*RECIPES, Recipe("top", "kd", (0.97, 0.98), label_bytes=20.0)),
        classes=[f"class {index}, with a name of some length" for index in range(1000)],
    )
    identity = open_labelset(Path("labels")).manifest.identity
    packing = make_packing(identity)
    random = np.random.default_rng(0)
    rows = shift_rows(random.normal(0, 3, (1000, 1000)).astype(np.float32))
    keys, hard = pa.array([""] * 1000), pa.array(rows.top1.astype(np.int32))
    payload = packing.codec.encode(rows)
    block = LabelBlock(keys, hard, rows.top1, rows.shift, payload, packing.codec)
    write_set(Path("large"), packing, numbered([block] * 50))
    update = {"labels": Path("large"), "source": None, "calibration": None}
    return params.model_copy(update=update)


def write_source(folder: Path, classes: Sequence[str], keys: Sequence[str] | None = None) -> Source:
    block = read_digits().slice(0, ROWS)
    if keys is not None:
        names = [*keys, *block.keys.to_pylist()[len(keys) :]]
        block = SampleBlock(pa.array(names), block.inputs, block.labels)
    folder.mkdir(parents=True)
    half = ROWS // 2
    write_source_shard(folder / "part-00000.parquet", block.slice(0, half), classes)
    write_source_shard(folder / "part-00001.parquet", block.slice(half, ROWS - half), classes)
    return open_source(folder)


def write_labels(folder: Path, source: Source) -> str:
    """A complete label set in one shard; logits are distances to the classes' mean pictures."""
    segments = tuple(Segment(source=f.name, first=0, rows=f.rows) for f in source.files)
    block = source.read(segments)
    logits = _logits(block, len(source.classes))
    height, width, channels = source.shape
    plain = Preprocess(height=height, width=width, channels=channels, mean=(0.5,), std=(0.5,))
    identity = Identity(
        teacher_sha256=TEACHER,
        preprocess=plain,
        classes=source.classes,
        class_map=None,
        output="logits",
        output_kind="logits",
        source=source.files,
        temperatures=TEMPERATURES,
        codec="dense-f16",
    )
    packing, rows = make_packing(identity), shift_rows(logits)
    payload = packing.codec.encode(rows)
    labels = LabelBlock(block.keys, block.labels, rows.top1, rows.shift, payload, packing.codec)
    folder.mkdir()
    with writing_shard(folder, "part-00000", packing) as writer:
        writer.append(labels)
        size, digest = writer.finish()
    correct = int((block.hard_labels() == rows.top1).sum())
    statistics = Statistics(labelled=len(block), correct=correct)
    kl = kl_sums(logits, [labels.logits(T) for T in TEMPERATURES], TEMPERATURES)
    receipt = Receipt(
        shard="part-00000",
        identity_sha256=identity.digest(),
        rows=len(block),
        bytes=size,
        sha256=digest,
        source=tuple(source.digest(file.name) for file in source.files),
        statistics=statistics,
        fidelity=Fidelity(rows=len(block), kl_sum=kl),
    )
    write_record(folder / "part-00000.json", receipt)
    shard = ManifestShard(
        name="part-00000",
        rows=len(block),
        bytes=size,
        sha256=digest,
        receipt_sha256=file_sha256(folder / "part-00000.json"),
        segments=segments,
    )
    fidelity = tuple(
        MeasuredFidelity(temperature=T, kl_mean=total / len(block), rows=len(block))
        for T, total in zip(TEMPERATURES, kl, strict=True)
    )
    manifest = Manifest(
        identity_sha256=identity.digest(),
        identity=identity,
        rows=len(block),
        statistics=statistics,
        fidelity=fidelity,
        shards=(shard,),
    )
    write_record(folder / "labelset.json", manifest)
    return identity.digest()


def write_students(
    folder: Path, recipes: Sequence[Recipe], classes: Sequence[str], identity: str, epochs: int
) -> None:
    for number, recipe in enumerate(recipes):
        soft = recipe.loss == "kd"
        for seed, accuracy in enumerate(recipe.accuracies):
            student = folder / f"run{number}-{seed}"
            card = StudentCard(
                run=recipe.run,
                seed=seed,
                model="softlabel.pipeline.small_models:cnn",
                model_args={"width": 8},
                weights="student.safetensors",
                weights_sha256="0" * 64,
                classes=tuple(classes),
                height=8,
                width=8,
                channels=1,
                mean=(0.5,),
                std=(0.5,),
                parameters=4210,
                loss=recipe.loss,
                temperature=4.0 if soft else None,
                soft_weight=0.9 if soft else None,
                label_smoothing=0.0,
                labels_identity_sha256=identity if soft else None,
                label_bytes=recipe.label_bytes if soft else None,
            )
            write_record(student / "student.json", card)
            report = TrainReport(
                output=student,
                run=recipe.run,
                seed=seed,
                loss=recipe.loss,
                parameters=4210,
                samples=ROWS,
                steps=epochs * 4,
                device="cpu",
                seconds=1.5,
                labels_identity_sha256=card.labels_identity_sha256,
                settings={
                    "loss": recipe.loss,
                    "source": str(Path.cwd() / "data/train"),
                    "model_args": {"width": 8},
                    "standardise": False,
                    "seed": seed,
                },
                information=InformationBasis(
                    classes=(classes[0], classes[1]), samples=200, draws=20, shift=0.25
                ),
                history=_history(accuracy, soft, seed, epochs),
            )
            write_record(student / "train.json", report)


def write_evaluation(folder: Path, recipes: Sequence[Recipe], classes: Sequence[str]) -> None:
    students = [
        StudentMetrics(
            name=f"run{number}-{seed}",
            run=recipe.run,
            seed=seed,
            rows=500,
            parameters=4210,
            bins=_bins(accuracy, recipe.overconfidence, seed),
            **dict.fromkeys(ClassifierFigures.model_fields, 0.1)
            | {
                "accuracy": accuracy,
                "nll": 4 * (1 - accuracy) + 0.004 * seed,
                "ece": recipe.overconfidence + 0.001 * seed,
            },
        )
        for number, recipe in enumerate(recipes)
        for seed, accuracy in enumerate(recipe.accuracies)
    ]
    runs: list[RunMetrics] = []
    for recipe in recipes:
        members = [student for student in students if student.run == recipe.run]
        spreads = {
            name: _spread([getattr(student, name) for student in members])
            for name in ClassifierFigures.model_fields
        }
        seeds = tuple(range(len(members)))
        shares = tuple(round(0.99 - 0.01 * index, 2) for index in range(len(classes)))
        by_class = ClassShares(rows=(50,) * len(classes), accuracy=shares, agreement=shares[::-1])
        projection = _projection(classes, len(runs))
        runs.append(
            RunMetrics(
                run=recipe.run, seeds=seeds, by_class=by_class, projection=projection, **spreads
            )
        )
    report = EvaluateReport(
        output=folder,
        source=Path("data/test"),
        rows=500,
        classes=tuple(classes),
        students=tuple(students),
        runs=tuple(runs),
    )
    write_record(folder / "evaluate.json", report)


def _projection(classes: Sequence[str], seed: int) -> Projection:
    random = np.random.default_rng(seed)
    labels = np.arange(90) % 3
    centres = np.array([[0, 0], [8, 0], [4, 6]])
    x, y = (centres[labels] + random.normal(size=(90, 2))).round(3).T.tolist()
    one, two, three = classes[:3]
    points = {"labels": tuple(labels.tolist()), "x": tuple(x), "y": tuple(y)}
    return Projection(classes=(one, two, three), spread=0.125, **points)


def write_calibration(path: Path, identity: str) -> None:
    figures = ClassifierFigures(**dict.fromkeys(ClassifierFigures.model_fields, 0.1))
    report = CalibrateReport(
        output=path,
        labels_identity_sha256=identity,
        teacher_sha256=TEACHER,
        temperature=1.5,
        fitted_rows=200,
        measured_rows=300,
        outside_kept=0.0,
        before=figures.model_copy(update={"nll": 0.1234, "ece": 0.0567}),
        after=figures.model_copy(update={"nll": 0.1, "ece": 0.0123}),
        bins_before=_bins(0.97, 0.05, 0),
        bins_after=_bins(0.97, 0.0, 0),
    )
    write_record(path, report)


def write_experiments(path: Path, names: Sequence[str]) -> None:
    """What `dvc exp show --json` prints of a revision and an experiment of each name.

    Each has one setting and one metric of its own, called and told by its name.
    """
    plain: dict[str, Any] = {"epochs": 20, "runs": {"kd": {"temperature": 4.0}}}
    told = {"kd": {"accuracy": 0.97, "nll": 0.125}, "rows": 500}
    states = [_state("workspace", None, plain, told), _state("5a" * 20, "main", plain, told)]
    states[1]["experiments"] = [
        {
            "revs": [
                _state(
                    f"{index:x}b" * 20,
                    name,
                    plain | {"note": name, "runs": {"kd": {"temperature": 8 + index}}},
                    {"kd": {"accuracy": 0.5**index, "nll": 0.125}, "rows": 500, name: "told"},
                )
            ],
            "executor": None,
            "name": name,
        }
        for index, name in enumerate(names)
    ]
    path.write_text(json.dumps(states))


def _state(
    rev: str, name: str | None, params: dict[str, Any], metrics: dict[str, Any]
) -> dict[str, Any]:
    data = {
        "rev": rev,
        "timestamp": None,
        "params": {"params.yaml": {"data": {"train_student": params}}},
        "metrics": {"reports/evaluate/metrics.json": {"data": metrics}},
        "deps": {},
        "outs": {},
        "meta": {},
    }
    return {"rev": rev, "name": name, "data": data, "error": None, "experiments": None}


def write_record(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    of_label_set = type(record).__module__ == Receipt.__module__
    path.write_bytes(canonical_json(record) if of_label_set else report_json(record))


def _logits(block: SampleBlock, classes: int) -> npt.NDArray[np.float32]:
    labels = block.hard_labels()
    pixels = block.inputs.reshape(len(block), -1).astype(np.float32) / 255
    means = np.stack([pixels[labels == label].mean(axis=0) for label in range(10)])
    distances = ((pixels[:, None, :] - means[None]) ** 2).sum(axis=2)
    logits = -3.0 * distances
    logits[np.arange(len(block)), labels] += 3
    others = np.full((len(block), classes - 10), logits.min() - 1)
    return np.concatenate([logits, others], axis=1).astype(np.float32)


def _history(accuracy: float, soft: bool, seed: int, epochs: int) -> tuple[EpochRecord, ...]:
    rng = np.random.default_rng(seed + 100 * soft)
    records = []
    for epoch in range(epochs):
        left = float(np.exp(-0.35 * epoch)) * (1 + 0.1 * float(rng.normal()))
        hard = 0.03 + 2.2 * abs(left)
        records.append(
            EpochRecord(
                epoch=epoch,
                learning_rate=1e-3,
                loss=2 * hard + 1 if soft else hard,
                hard=hard,
                soft=hard if soft else None,
                soft_kl=hard / 3 if soft else None,
                train_accuracy=min(1.0, accuracy + 0.01),
                validation_accuracy=max(0.1, accuracy - 0.75 * abs(left)),
                validation_nll=0.08 + 2 * abs(left) + (0 if soft else 0.004 * epoch),
                mutual_information=0.3 + (1.5 if soft else 0.9) * (1 - abs(left) / 2),
            )
        )
    return tuple(records)


def _bins(accuracy: float, gap: float, seed: int) -> tuple[Bin, ...]:
    rng = np.random.default_rng(seed)
    rows = np.asarray([0, 0, 0, 1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 38, 389])
    bins = []
    for index, count in enumerate(rows.tolist()):
        low, high = index / 15, (index + 1) / 15
        if count == 0:
            bins.append(Bin(low=low, high=high, rows=0, confidence=None, accuracy=None))
            continue
        confidence = (low + high) / 2
        hit = float(np.clip(confidence - 2 * gap + 0.06 * rng.normal(), 0, 1))
        bins.append(Bin(low=low, high=high, rows=count, confidence=confidence, accuracy=hit))
    return tuple(bins)


def _spread(values: Sequence[float]) -> Spread:
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None
    return Spread(mean=float(np.mean(values)), standard_error=error)
