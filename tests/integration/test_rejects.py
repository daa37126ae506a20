"""Pictures that cannot be used are left out, and nobody else gets their labels."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import softlabel
from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.shards.block import LabelBlock, concat_blocks
from softlabel.pipeline.sources import pictures as decoding
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.schemas.labelset import Segment, sha256_of

if TYPE_CHECKING:
    from tests.conftest import Command, Project

CLASSES = ("ant", "bee", "cow")
SHAPE = (8, 8, 3)
INFER = ("infer", "--teacher=teacher.onnx", "--source=pictures", "--batch-size=4", "--shard-rows=8")
SKIP = (*INFER, "--on-bad-sample=skip")
VERIFY = ("verify", "--source=pictures", "--teacher=teacher.onnx")
TRAIN = (
    "train-student",
    "--model=softlabel.pipeline.small_models:conv_net",
    '--model-args={"width": 8, "depth": 2, "channels": 3}',
    "--epochs=2",
    "--batch-size=16",
    "--logger=none",
    "--loss=kd",
    "--source=pictures",
)


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
# By class and place in it. The first of all, and a whole label shard, rows 8 to 16 of ant.
BAD = {
    ("ant", 0): (b"", "the picture is empty"),
    ("ant", 3): (png(NOISE)[:-40], "cannot be decoded"),
    **{("ant", place): (b"", "the picture is empty") for place in range(8, 16)},
    ("bee", 1): (png(NOISE[:, :, 0].astype(np.uint16)), "more than eight bits"),
    ("bee", 4): (png(NOISE[:7]), "is 7x8, 8x8 is wanted"),
    ("cow", 2): (png(np.zeros((9000, 9000), bool)), "megapixels are not decoded"),
    ("cow", 19): (b"no picture", "no picture of a kind"),
}


@pytest.fixture(scope="module")
def worlds(make_project: Callable[[], Project]) -> Path:
    """`good` with 75 pictures and their labels, and `bad` where some of these cannot be used."""
    project = make_project()
    good = type(project)(project.root / "good")
    source = open_source(good.source("stored", (75,), CLASSES, SHAPE))
    block = source.read([Segment(source=file.name, first=0, rows=75) for file in source.files])
    for row, (pixels, label) in enumerate(zip(block.inputs, block.labels.to_pylist(), strict=True)):
        path = good.root / f"pictures/{CLASSES[label]}/{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    shutil.rmtree(good.root / "stored")
    good.teacher("teacher.onnx", CLASSES, SHAPE)
    bad = good.copy(project.root / "bad")
    for (name, place), (data, _) in BAD.items():
        sorted((bad.root / "pictures" / name).iterdir())[place].write_bytes(data)
    assert good.run(*INFER).code == 0
    assert bad.run(*SKIP).code == 0
    return project.root


@pytest.fixture
def world(worlds: Path, empty_project: Project) -> Project:
    """A copy of `bad`, entered, its labels made."""
    shutil.copytree(worlds / "bad", empty_project.root, dirs_exist_ok=True)
    return empty_project


def bad_keys(folder: str = ".") -> list[str]:
    names = {name: sorted((Path(folder) / "pictures" / name).iterdir()) for name in CLASSES}
    return [f"{name}/{names[name][place].name}" for name, place in BAD]


def rejected(folder: str = "labels") -> list[str]:
    lines = Path(folder, "rejects.jsonl").read_text().splitlines()
    return [json.loads(line)["key"] for line in lines]


def every_row(folder: Path | str) -> LabelBlock:
    return concat_blocks(list(softlabel.open(folder).batches(1000)))


def ok(command: Command, *words: str) -> str:
    outcome = command(*words)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def test_they_are_listed_and_every_other_label_is_its_own(worlds: Path, world: Project) -> None:
    keys = bad_keys()
    listed = [json.loads(line) for line in Path("labels/rejects.jsonl").read_text().splitlines()]
    assert [item["key"] for item in listed] == keys
    for item, ((name, place), (_, reason)) in zip(listed, BAD.items(), strict=True):
        assert (item["source"], item["row"]) == (name, place)
        assert reason in item["reason"]
    whole, left = every_row(worlds / "good/labels"), every_row("labels")
    kept = np.flatnonzero([key not in keys for key in whole.keys.to_pylist()])
    expected = whole.take(kept)
    assert left.keys.equals(expected.keys)
    assert left.labels.equals(expected.labels)
    assert np.array_equal(left.shift, expected.shift)
    for name, values in expected.payload.items():
        assert np.array_equal(left.payload[name], values)
    receipts = [json.loads(path.read_text()) for path in sorted(Path("labels").glob("part-*.json"))]
    assert [item for receipt in receipts for item in receipt.get("rejects", [])] == listed
    assert 0 in [receipt["rows"] for receipt in receipts]
    labels = softlabel.open("labels", check="full")
    assert labels.manifest.aligned
    assert labels.manifest.rejects is not None
    assert labels.manifest.rejects.samples == len(labels.rejects) == len(keys)
    assert len(labels) == 75 - len(keys)


@pytest.mark.parametrize("workers", ["0", "3"])
def test_neither_workers_nor_interruptions_change_a_byte(
    world: Project, command: Command, workers: str
) -> None:
    expected = world.files()
    for name in ("labelset.json", "rejects.jsonl", "part-00000.json", "part-00002.parquet"):
        Path("labels", name).unlink()
    outcome = ok(command, *SKIP, "--workers", workers)
    assert f"left out: {len(BAD)} samples that could not be used" in outcome
    assert world.files() == expected
    ok(command, *SKIP, "--workers", workers, "--output=other")
    assert world.files("other") == expected
    report = json.loads(ok(command, *SKIP, "--json"))
    assert (report["rows"], report["rows_written"], report["rejects"]) == (75 - len(BAD), 0, 14)


def test_a_run_that_stops_at_bad_samples(world: Project, command: Command) -> None:
    """It says which one; it is finished by skipping; and a finished one is not taken for whole."""
    expected = world.files()
    outcome = command(*INFER)
    assert outcome.code == 3
    assert "14 samples were left out of finished shards already" in outcome.stderr
    assert "--on-bad-sample skip" in outcome.stderr
    assert world.files() == expected
    shutil.rmtree("labels")
    outcome = command(*INFER, "--allow-bad-teacher")
    assert outcome.code == 3
    assert f"key {bad_keys()[0]!r}: the picture is empty" in outcome.stderr
    ok(command, *SKIP, "--allow-bad-teacher")
    assert world.files() == expected


def test_skipping_where_all_is_well_changes_nothing(
    worlds: Path, world: Project, command: Command
) -> None:
    shutil.rmtree("pictures")
    shutil.copytree(worlds / "good/pictures", "pictures")
    assert "left out" not in ok(command, *SKIP, "--output=other")
    assert world.files("other") == type(world)(worlds / "good").files()


def test_a_picture_that_was_mended_is_no_longer_left_out(world: Project, command: Command) -> None:
    """Its bytes are as many, so that the source looks the same."""
    (path,) = [Path("pictures", key) for key in bad_keys() if "cow" in key][1:]
    path.write_bytes(png(NOISE))
    ok(command, *SKIP, "--output=one", "--overwrite")
    assert str(path.relative_to("pictures")) not in rejected("one")
    only = Path("single/ant")
    only.mkdir(parents=True)
    for name, data in (("a.png", bytes(len(png(NOISE)))), ("b.png", png(NOISE))):
        (only / name).write_bytes(data)
    single = ("infer", "--teacher=teacher.onnx", "--source=single", "--allow-bad-teacher")
    Path("names").write_text("ant\nbee\ncow\n")
    for word in CLASSES[1:]:
        Path("single", word).mkdir()
    ok(command, *single, "--on-bad-sample=skip", "--output=two")
    assert rejected("two") == ["ant/a.png"]
    (only / "a.png").write_bytes(png(NOISE))
    Path("two/part-00000.json").unlink()
    ok(command, *single, "--output=two")
    assert not Path("two/rejects.jsonl").exists()
    assert len(softlabel.open("two")) == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "the picture is empty"), (png(NOISE)[:-40], "none of 75 samples from the whole of it")],
    ids=["empty", "cut"],
)
def test_a_source_of_which_nothing_can_be_used(
    world: Project, command: Command, data: bytes, said: str
) -> None:
    for path in Path("pictures").rglob("*.png"):
        path.write_bytes(data)
    for flags in ((), ("--allow-bad-teacher",)):
        outcome = command(*SKIP, *flags, "--output=none")
        assert outcome.code == 3
        assert said in outcome.stderr
        assert repr(bad_keys()[0]) in outcome.stderr
        assert not Path("none").exists()


def test_a_key_that_stands_twice_is_found_among_those_left_out(
    world: Project, command: Command
) -> None:
    def tar(name: str, members: dict[str, bytes]) -> None:
        with tarfile.open(name, "w") as file:
            for key, data in members.items():
                info = tarfile.TarInfo(f"{key}.png")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))

    Path("tars").mkdir()
    tar("tars/part-0.tar", {"one": png(NOISE), "two": b""})
    tar("tars/part-1.tar", {"two": png(NOISE), "three": png(NOISE)})
    words = ("--source=tars", "--shard-rows=2", "--batch-size=2", "--output=twice")
    outcome = command(*SKIP[:2], *words, "--on-bad-sample=skip")
    assert outcome.code == 3
    assert "key 'two' appears twice: " in outcome.stderr
    assert "part-0.tar row 1" in outcome.stderr
    assert "part-1.tar row 0" in outcome.stderr


def test_verify_and_inspect_leave_out_exactly_these(world: Project, command: Command) -> None:
    said = ok(command, *VERIFY, "--labels=labels")
    assert "61 rows" in said
    assert "left out: 14 samples" in said
    assert "replay of 61 samples" in said
    assert "left out: 14 samples" in ok(command, "inspect", "--labels=labels")


def drop_a_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def change_the_row(path: Path) -> None:
    path.write_text(path.read_text().replace('"row": 3', '"row": 5'))


@pytest.mark.parametrize("harm", [drop_a_line, change_the_row, Path.unlink])
def test_a_list_that_was_changed_is_found_and_written_anew(
    world: Project, command: Command, harm: Callable[[Path], Any]
) -> None:
    expected = world.files()
    harm(Path("labels/rejects.jsonl"))
    outcome = command(*VERIFY, "--labels=labels")
    assert outcome.code == 1
    assert "rejects.jsonl: is missing or not the one in the manifest" in outcome.stdout
    outcome = command(*TRAIN, "--labels=labels", "--output=student")
    assert outcome.code == 3
    assert "'softlabel infer' again" in outcome.stderr
    ok(command, *SKIP)
    assert world.files() == expected


def test_a_manifest_that_hides_a_lost_label_is_found(world: Project, command: Command) -> None:
    """Its list has the digest that it states, and the receipts know nothing of it."""
    path, manifest = Path("labels/rejects.jsonl"), Path("labels/labelset.json")
    document = json.loads(manifest.read_text())
    lines = path.read_text().splitlines(keepends=True)
    kept = every_row("labels").keys[0].as_py()
    lines[0] = json.dumps(json.loads(lines[0]) | {"key": kept, "row": 1}, sort_keys=True) + "\n"
    path.write_text("".join(lines))
    document["rejects"]["sha256"] = sha256_of(path.read_bytes())
    manifest.write_text(json.dumps(document))
    outcome = command(*VERIFY, "--labels=labels")
    assert outcome.code == 1
    assert "rejects.jsonl lists other samples than the receipts" in outcome.stdout
    assert "rows of ant are labelled and listed in rejects.jsonl" in outcome.stdout
    assert f"labels {kept!r}, listed as left out" in outcome.stdout


def watch_decoding(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    seen: list[bytes] = []
    decode = decoding.decode

    def watched(data: bytes, framing: Any) -> Any:
        seen.append(data)
        return decode(data, framing)

    monkeypatch.setattr(decoding, "decode", watched)
    return seen


def test_training_reads_none_of_them(
    world: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_decoding(monkeypatch)
    report = json.loads(ok(command, *TRAIN, "--labels=labels", "--output=student", "--json"))
    assert (report["samples"], report["rejects"]) == (61, 14)
    assert report["steps"] == 2 * 4
    assert len(seen) == 2 * 61
    assert not set(seen) & {data for data, _ in BAD.values()}
    assert "left out: 14 samples" in ok(command, *TRAIN, "--labels=labels", "--output=again")
    ok(command, *SKIP, "--output=other", "--codec=dense-f32")
    both = ok(command, *TRAIN, "--labels=labels", "--labels=other", "--output=both", "--json")
    assert (json.loads(both)["samples"], json.loads(both)["rejects"]) == (61, 14)
    hard = ok(command, *TRAIN, "--loss=hard", "--labels=labels", "--output=beside", "--json")
    assert (json.loads(hard)["samples"], json.loads(hard)["rejects"]) == (61, 14)
    bare = command(*TRAIN, "--loss=hard", "--output=hard")
    assert bare.code == 3
    assert any(repr(key) in bare.stderr for key in bad_keys())


def test_hard_labels_beside_a_set_of_another_source(
    worlds: Path, world: Project, command: Command
) -> None:
    other = Path(shutil.copytree(worlds / "good/pictures", "other"))
    next((other / "ant").iterdir()).unlink()
    refused = command(*TRAIN, "--loss=hard", "--labels=labels", "--source=other", "--output=s")
    assert refused.code == 3
    assert "does not hold the labels of other/ant as it is now" in refused.stderr


def test_students_are_measured_on_the_others(world: Project, command: Command) -> None:
    ok(command, *TRAIN, "--labels=labels", "--output=student")
    evaluate = ("evaluate", "--models=student", "--source=pictures", "--batch-size=7")
    shown = ok(command, *evaluate, "--labels=labels")
    assert "61 samples of pictures" in shown
    assert "left out: 14 samples that could not be used (rejects.jsonl)" in shown
    report = json.loads(Path("reports/evaluate/evaluate.json").read_bytes())
    assert (report["rejects"], report["students"][0]["rows"]) == (14, 61)
    assert report["students"][0]["against_labels"] is not None
    bare = command(*evaluate)
    assert bare.code == 3
    assert any(repr(key) in bare.stderr for key in bad_keys())


def epochs(labels: str, source: str = "pictures") -> list[tuple[Any, ...]]:
    opened = open_source(Path(source)).naming(CLASSES)
    samples = JoinedSamples(opened, open_labelset(Path(labels)))
    batches = [batch for epoch in (0, 1) for batch in samples.epoch(5, epoch, 16, 30)]
    return [(batch.keys.to_pylist(), batch.teacher.tolist()) for batch in batches]  # type: ignore[union-attr]


def test_an_epoch_has_the_others_once_in_an_order_that_stays(world: Project) -> None:
    first = epochs("labels")
    assert first == epochs("labels")
    stored = every_row("labels")
    seen = [pair for keys, rows in first for pair in zip(keys, rows, strict=True)]
    assert sorted(key for key, _ in seen) == sorted(2 * stored.keys.to_pylist())
    own = dict(zip(stored.keys.to_pylist(), stored.logits(1.0).tolist(), strict=True))
    assert all(own[key] == row for key, row in seen)


CONVERSIONS = {
    "lists": ("--layout=lists",),
    "sidecar": ("--layout=sidecar",),
    "resharded": ("--shard-rows=10",),
    "one shard": ("--shard-rows=1000",),
    "another codec": ("--codec=topk", "--k=2"),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_what_is_converted_leaves_out_the_same(world: Project, command: Command, name: str) -> None:
    ok(command, "convert", "--labels=labels", "--output=made", *CONVERSIONS[name])
    assert softlabel.open("made").manifest.aligned
    assert world.files("made")["rejects.jsonl"] == world.files()["rejects.jsonl"]
    ok(command, *VERIFY, "--labels=made")
    assert [keys for keys, _ in epochs("made")] == [keys for keys, _ in epochs("labels")]
    ok(command, *TRAIN, "--labels=made", "--output=student")
    # Everything stands: the same command takes it for whole.
    again = ok(command, "convert", "--labels=labels", "--output=made", *CONVERSIONS[name], "--json")
    assert json.loads(again)["rows_written"] == 0


def test_there_and_back_is_byte_equal(world: Project, command: Command) -> None:
    ok(command, "convert", "--labels=labels", "--output=lists", "--layout=lists")
    ok(command, "convert", "--labels=lists", "--output=back", "--layout=packed")
    before, after = world.files(), world.files("back")
    assert before.keys() == after.keys()
    for name in before:
        assert name.endswith(".json") or before[name] == after[name], name


def test_a_subset_by_key_speaks_of_its_keys_alone(world: Project, command: Command) -> None:
    keys = every_row("labels").keys.to_pylist()[:20]
    Path("keys.txt").write_text("".join(f"{key}\n" for key in keys))
    ok(command, "convert", "--labels=labels", "--output=some", "--keys=keys.txt")
    assert softlabel.open("some").rejects == ()
    ok(command, *VERIFY, "--labels=some")
    Path("keys.txt").write_text(f"{bad_keys()[0]}\n")
    outcome = command("convert", "--labels=labels", "--output=none", "--keys=keys.txt")
    assert outcome.code == 3
    assert f"key {bad_keys()[0]!r} is not in labels" in outcome.stderr


def test_merging(world: Project, command: Command) -> None:
    ok(command, *SKIP, "--output=other", "--codec=dense-f32")
    merge = ("merge", "--labels=labels", "--labels=other", "--output=mean")
    ok(command, *merge)
    assert rejected("mean") == bad_keys()
    ok(command, "verify", "--labels=mean", "--source=pictures")
    assert epochs("mean") == epochs("labels")
    # A teacher of another size could use other ones.
    Path("other/labelset.json").unlink()
    for receipt in Path("other").glob("part-*.json"):
        receipt.write_text(receipt.read_text().replace(bad_keys()[-1], "cow/999.png"))
    ok(command, *SKIP, "--output=other", "--codec=dense-f32")
    outcome = command(*merge[:-1], "--output=none")
    assert outcome.code == 3
    assert "leaves out other samples than labels" in outcome.stderr
    assert "'cow/999.png'" in outcome.stderr


def test_a_tar_merged_with_its_labels_has_the_labelled_samples(
    world: Project, command: Command
) -> None:
    Path("tars").mkdir()
    for index, name in enumerate(CLASSES):
        with tarfile.open(f"tars/part-{index}.tar", "w") as file:
            for path in sorted(Path("pictures", name).iterdir()):
                file.add(path, path.name)
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = 1
                file.addfile(label, io.BytesIO(str(index).encode()))
    tars = ("--source=tars", "--output=from-tars")
    ok(command, *(word for word in SKIP if "source" not in word), *tars)
    words = ("--labels=from-tars", "--source=tars", "--layout=merged", "--output=merged")
    ok(command, "convert", *words)
    gone = [Path(key).stem for key in bad_keys()]
    assert rejected("merged") == gone
    names = []
    for path in sorted(Path("merged").glob("*.tar")):
        with tarfile.open(path) as file:
            names += [name for name in file.getnames() if name.endswith(".png")]
    assert len(names) == 61
    assert not {Path(name).stem for name in names} & set(gone)
    ok(command, "verify", "--labels=merged", "--source=tars", "--teacher=teacher.onnx")
    # Found by key they stand in the same order as beside their source.
    assert not softlabel.open("merged").manifest.aligned
    assert epochs("merged", "tars") == epochs("from-tars", "tars")


def test_a_table_whose_first_row_has_no_picture(world: Project, command: Command) -> None:
    data = [None, *(path.read_bytes() for path in sorted(Path("pictures/cow").iterdir())[3:9])]
    names = [f"row {row}" for row in range(7)]
    table = pa.table({"image": pa.array(data, pa.binary()), "key": names})
    pq.write_table(table, "table.parquet")
    words = ("infer", "--teacher=teacher.onnx", "--source=table.parquet", "--output=table")
    outcome = command(*words)
    assert outcome.code == 3
    assert "key 'row 0': there is no picture" in outcome.stderr
    ok(command, *words, "--on-bad-sample=skip")
    assert rejected("table") == ["row 0"]
    assert every_row("table").keys.to_pylist() == names[1:]


def test_plan_leaves_them_out_as_the_run_will(world: Project, command: Command) -> None:
    words = ("plan", "--teacher=teacher.onnx", "--source=pictures", "--batch-size=4")
    outcome = command(*words)
    assert outcome.code == 3
    assert f"key {bad_keys()[0]!r}: the picture is empty" in outcome.stderr
    report = json.loads(ok(command, *words, "--on-bad-sample=skip", "--json"))
    assert (report["rows"], report["sampled"]) == (75, 61)
    assert "--on-bad-sample skip" in report["command"]
    for path in Path("pictures").rglob("*.png"):
        path.write_bytes(png(NOISE)[:-40])
    outcome = command(*words, "--on-bad-sample=skip")
    assert outcome.code == 3
    assert "none of 75 samples from the whole of it can be used" in outcome.stderr
