"""Views of JPEG pictures the whole way: what the teacher saw is what its students see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pytest
from PIL import Image
from torch.utils.data import DataLoader

import softlabel
from softlabel.pipeline.inference import batch_size
from softlabel.pipeline.reporting.gallery import choose_pairs, read_pictures
from softlabel.pipeline.sources import views
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.replaying import replayed
from softlabel.pipeline.sources.views import view_seed
from softlabel.pipeline.teachers.session import TeacherSession
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.schemas.labelset import Segment
from softlabel.schemas.sample import TeacherOutput
from softlabel.schemas.teacher import Framing
from softlabel.torch import DistillationDataset

if TYPE_CHECKING:
    from tests.conftest import Command, Project

CLASSES = ("ant", "bee", "cow")
ROWS, VIEWS = 40, 3
SHAPE = (24, 20, 3)
FRAMING = Framing(height=24, width=20, channels=3, interpolation="bicubic")
SPEC = [
    {"name": "random_resized_crop", "scale": [0.3, 1]},
    "horizontal_flip",
    {"name": "color_jitter", "brightness": 0.3, "hue": 0.1},
    "rand_augment",
    "random_erasing",
]
INFER = (
    "infer",
    "--source=pictures",
    f"--views={VIEWS}",
    f"--augment={json.dumps(SPEC)}",
    "--seed=5",
    "--batch-size=8",
    "--allow-bad-teacher",
)
TRAIN = (
    "train-student",
    "--model=softlabel.pipeline.small_models:conv_net",
    '--model-args={"width": 8, "depth": 2, "channels": 3}',
    "--source=pictures",
    "--epochs=1",
    "--logger=none",
    "--interpolation=bilinear",
)

SIZE = ("--height=24", "--width=20")


def ok(command: Command, *words: str) -> str:
    outcome = command(*words)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


@pytest.fixture
def pictures(empty_project: Project) -> Project:
    """Forty JPEG pictures of three classes, no two of one size, and a teacher of them."""
    random = np.random.default_rng(5)
    for row in range(ROWS):
        height, width = random.integers(30, 70, 2)
        small = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
        path = Path("pictures", CLASSES[row % 3], f"{row:03d}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((int(width), int(height))).save(path, quality=85)
    empty_project.teacher(classes=CLASSES, shape=SHAPE)
    return empty_project


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[npt.NDArray[np.uint8]]:
    """The batches of pictures that teachers are given from here on."""
    batches: list[npt.NDArray[np.uint8]] = []
    run = TeacherSession.run

    def watched(self: TeacherSession, pixels: npt.NDArray[np.uint8]) -> TeacherOutput:
        batches.append(pixels.copy())
        return run(self, pixels)

    monkeypatch.setattr(TeacherSession, "run", watched)
    return batches


def joined(workers: int) -> JoinedSamples:
    source = open_source(Path("pictures"), workers).framed(FRAMING, "the student")
    return JoinedSamples(source, softlabel.open("labels"))


def test_the_student_sees_what_the_teacher_saw_bit_for_bit(
    pictures: Project, command: Command, seen: list[npt.NDArray[np.uint8]]
) -> None:
    ok(command, *INFER, "--codec=dense-f32")
    # The first batch tries the teacher out on one sample.
    taught = np.concatenate(seen[1:]).reshape(ROWS, VIEWS, *SHAPE)
    assert max(map(len, seen)) == 6, "a batch of eight rows holds two samples of three views"
    whole = open_source(Path("pictures"))
    keys = [key for path in whole.files for key in sorted(_below(path.name))]
    labels = softlabel.open("labels")
    said = {
        (key, view): labels.lookup([key], view).logits()[0] for key in keys for view in range(VIEWS)
    }
    pairs = set()
    for workers in (0, 1, 2, 4):
        for epoch in range(4):
            for batch in joined(workers).epoch(1, epoch, 16, 64):
                assert batch.teacher is not None
                for key, pixels, logits in zip(
                    batch.keys.to_pylist(), batch.pixels, batch.teacher, strict=True
                ):
                    row = keys.index(key)
                    (view,) = [v for v in range(VIEWS) if np.array_equal(taught[row, v], pixels)]
                    assert np.array_equal(said[key, view], logits)
                    pairs.add((key, view))
    assert len(pairs) == ROWS * VIEWS


def _below(name: str) -> list[str]:
    return [f"{name}/{path.name}" for path in Path("pictures", name).iterdir()]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_a_loop_of_ones_own_sees_the_same_views(pictures: Project, command: Command) -> None:
    ok(command, *INFER)
    dataset = DistillationDataset(
        "pictures", "labels", batch_size=16, height=24, width=20, interpolation="bicubic"
    )
    for epoch, workers in ((0, 0), (1, 2)):
        dataset.set_epoch(epoch)
        wanted = joined(1).epoch(0, epoch, 16, 65536)
        for batch, other in zip(
            DataLoader(dataset, None, num_workers=workers), wanted, strict=True
        ):
            assert batch.keys.tolist() == other.keys.to_pylist()
            assert np.array_equal(batch.pixels.permute(0, 2, 3, 1).numpy(), other.pixels)


def test_bytes_are_the_same_for_any_workers_after_a_loss_and_in_shares(
    pictures: Project, command: Command
) -> None:
    for workers in (0, 4):
        ok(command, *INFER, "--shard-rows=10", f"--workers={workers}", f"--output=l{workers}")
    wanted = pictures.files("l0")
    assert sum(name.endswith(".parquet") for name in wanted) >= 4
    assert wanted == pictures.files("l4")
    for name in ("part-00001.parquet", "part-00002.json", "labelset.json"):
        Path("l4", name).unlink()
    ok(command, *INFER, "--shard-rows=10", "--output=l4")
    assert wanted == pictures.files("l4")
    for share in ("1/2", "0/2"):
        ok(command, *INFER, "--shard-rows=10", f"--partition={share}", "--output=shares")
    assert wanted == pictures.files("shares")


def test_the_identity_says_how_views_were_made(pictures: Project, command: Command) -> None:
    ok(command, *INFER)
    identity = json.loads(Path("labels/labelset.json").read_text())["identity"]
    assert (identity["views"], identity["seed"]) == (VIEWS, 5)
    assert identity["augment"]["transforms"][0] == {
        "name": "random_resized_crop",
        "scale": [0.3, 1.0],
        "ratio": [0.75, 1.3333333333333333],
        "interpolation": "bilinear",
    }
    assert set(identity["augment"]) == {"transforms", "pillow", "torch", "torchvision"}
    other = command(*INFER, "--seed=6")
    assert other.code == 3
    assert "different: seed" in other.stderr
    shown = ok(command, "inspect", "--labels=labels", "--rows=2")
    assert "120 rows (40 samples, 3 views each)" in shown
    assert "views    by seed 5: random_resized_crop(scale=(0.3, 1), ratio=(0.75, 1.333)" in shown
    assert "ant/000.jpg view 1: hard ant" in shown


def test_without_augmentation_nothing_changes(pictures: Project, command: Command) -> None:
    """A plain set's identity says nothing of views but what it always said."""
    plain = ("infer", "--source=data/train", "--teacher=plain.onnx", "--output=plain")
    pictures.source(shards=(30,))
    pictures.teacher("plain.onnx")
    ok(command, *plain, "--seed=7", "--limit=20")
    identity = json.loads(Path("plain/labelset.json").read_text())["identity"]
    assert "augment" not in identity
    assert (identity["views"], identity["seed"]) == (1, 0)


def test_what_a_run_would_do_is_counted_in_label_rows(pictures: Project, command: Command) -> None:
    said = ok(command, *INFER, "--limit=10", "--dry-run")
    assert "labels would hold 30 rows (10 samples, 3 views each), a partial set" in said
    done = json.loads(ok(command, *INFER, "--limit=10", "--json"))
    assert (done["rows"], done["rows_written"], done["views"]) == (30, 30, 3)
    planned = ("plan", *INFER[1:-1], "--rows=60", "--max-kl=1e-3")
    said = ok(command, *planned)
    assert "tried on 60 of 120 views of pictures (3 a sample)" in said
    (again,) = [line for line in said.splitlines() if line.startswith("  softlabel infer ")]
    assert '--views 3 --augment \'[{"name": "random_resized_crop", "scale": [0.3, 1.0]' in again
    report = json.loads(ok(command, *planned, "--json"))
    best = next(trial for trial in report["trials"] if trial["name"] == "dense-f32")
    assert report["rows"] == 120
    assert 110 * best["bytes_per_sample"] < best["bytes"]


def test_an_automatic_batch_holds_the_views_of_a_sample(
    pictures: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "LARGEST", 2)
    ok(command, *INFER, "--limit=5", "--batch-size=auto")
    plan = json.loads(Path("labels/plan.json").read_text())
    assert plan["execution"]["batch_size"] == VIEWS


def test_too_many_views_for_a_batch_are_told_of(pictures: Project, command: Command) -> None:
    outcome = command(*INFER, "--views=9")
    assert outcome.code == 2
    assert "the 9 views of a sample do not fit into a batch of 8; pass --batch-size 9" in (
        outcome.stderr
    )


VERIFY = ("verify", "--labels=labels", "--source=pictures", "--teacher=models/teacher.onnx")


@pytest.mark.parametrize("flags", [(), ("--limit=30",), ("--views=1",)])
def test_verify_replays_views(
    pictures: Project, command: Command, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(command, *INFER, *flags)
    report = json.loads(ok(command, *VERIFY, "--replay=40", "--json"))
    assert report["checks"][-2:] == ["replay", "negative control"]
    assert report["replay"]["kl_mean"] < 1e-5
    monkeypatch.setattr(views, "view_seed", lambda seed, key, view: view_seed(seed + 1, key, view))
    outcome = command(*VERIFY, "--replay=40")
    assert outcome.code == 1
    assert "the teacher says otherwise" in outcome.stdout


def test_sets_made_of_views_are_still_of_these(pictures: Project, command: Command) -> None:
    ok(command, *INFER)
    layout = ("--layout=sidecar", "--codec=dense-u8", "--shard-rows=7")
    ok(command, "convert", "--labels=labels", "--output=tars", *layout)
    said = ok(command, *VERIFY, "--labels=tars")
    assert "negative control" in said
    ok(command, *INFER, '--augment=["random_resized_crop"]', "--output=cropped")
    merge = ("merge", "--labels=labels", "--labels=cropped", "--output=mean")
    outcome = command(*merge)
    assert outcome.code == 3
    assert "augment" in outcome.stderr


def test_a_bad_picture_is_left_out_with_all_its_views(pictures: Project, command: Command) -> None:
    ok(command, *INFER, "--codec=dense-f32", "--output=whole")
    Path("pictures/bee/004.jpg").write_bytes(b"no picture")
    ok(command, *INFER, "--codec=dense-f32", "--on-bad-sample=skip")
    (line,) = Path("labels/rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "bee/004.jpg"
    labels, whole = softlabel.open("labels"), softlabel.open("whole")
    assert len(labels) == (ROWS - 1) * VIEWS
    for block in labels.batches(7):
        assert block.views is not None
        wanted = whole.lookup(block.keys, block.views)
        assert np.array_equal(block.logits(), wanted.logits())
    assert "negative control" in ok(command, *VERIFY)
    keys = [key for batch in joined(1).epoch(0, 0, 16, 64) for key in batch.keys.to_pylist()]
    assert len(keys) == len(set(keys) - {"bee/004.jpg"}) == ROWS - 1


def test_the_report_shows_the_view_that_was_labelled(pictures: Project, command: Command) -> None:
    ok(command, *INFER)
    labels = softlabel.open("labels")
    source = open_source(Path("pictures")).framed(FRAMING, "the test")
    candidates = [member for pair in choose_pairs(labels, 12) for member in pair.members]
    shown = read_pictures(labels, source, candidates)
    assert {candidate.view for candidate in candidates} == {0, 1, 2}
    for candidate in candidates:
        block = labels.lookup([candidate.key], candidate.view or 0)
        assert np.array_equal(candidate.logits, block.logits()[0].astype(np.float16))
        views = replayed(source, labels.manifest.identity, labels.folder)
        every = views.read([Segment(source=candidate.key[:3], first=0, rows=ROWS // 3)])
        (row,) = np.flatnonzero(
            pc.equal(every.keys, candidate.key).to_numpy(zero_copy_only=False)
            & (every.views == candidate.view)
        )
        assert np.array_equal(shown[candidate.position], every.inputs[row])


def test_students_are_trained_and_shown_on_views(pictures: Project, command: Command) -> None:
    ok(command, *INFER)
    soft = ("--loss=kd", "--labels=labels")
    ok(command, *TRAIN, *SIZE, *soft, "--output=models/kd")
    other = command(*TRAIN, "--height=12", "--width=10", *soft, "--output=other")
    assert other.code == 2
    assert "24x20 with 3 channels, and random_erasing draws otherwise at another" in other.stderr
    evaluate = ("evaluate", "--models=models", "--source=pictures", "--labels=labels")
    ok(command, *evaluate, "--output=reports")
    measured = json.loads(Path("reports/evaluate.json").read_text())
    counts = softlabel.open("labels").manifest.statistics
    assert measured["rows"] == ROWS
    assert measured["label_set"]["rows"] == counts.labelled == ROWS * VIEWS
    assert measured["label_set"]["accuracy"] == counts.correct / counts.labelled
    report = ("report", "--labels=labels", "--source=pictures", "--evaluation=reports")
    ok(command, *report, "--models=models", "--output=page.html")
    assert ".jpg view " in Path("page.html").read_text()


def test_a_student_is_compared_on_the_pictures_that_were_labelled(
    pictures: Project, command: Command
) -> None:
    """One that is its own teacher says what its labels say."""
    ok(command, *TRAIN, *SIZE, "--output=own")
    ok(command, "export", "--model=own/student.json", "--output=own.onnx")
    ok(command, *INFER, "--teacher=own.onnx", "--codec=dense-f32")
    evaluate = ("evaluate", "--models=own", "--source=pictures", "--labels=labels")
    ok(command, *evaluate, "--output=reports")
    measured = json.loads(Path("reports/evaluate.json").read_text())
    assert measured["students"][0]["against_labels"]["kl"] < 1e-9


def test_stored_arrays_are_calibrated_by_sample(project: Project, command: Command) -> None:
    """All views of a sample fall on one side, those T is fitted on or those it is measured on."""
    flags = ("--views=4", '--augment=[{"name": "rotation", "degrees": 5}]')
    ok(command, "infer", *flags)
    calibrate = ("calibrate", "--labels=labels", "--output=calibration.json")
    fitted = json.loads(ok(command, *calibrate, "--json"))
    assert fitted["fitted_rows"] + fitted["measured_rows"] == 2000
    assert (fitted["fitted_rows"] % 4, fitted["measured_rows"] % 4) == (0, 0)
