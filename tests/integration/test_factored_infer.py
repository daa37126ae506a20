"""Factored label sets end to end, and sets of topk with a class prior."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

import softlabel
from softlabel.pipeline.checking.detectors import check_values
from softlabel.pipeline.shards.layouts import open_shard, writing_shard
from softlabel.pipeline.shards.packing import folder_packing
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.teachers.session import TeacherSession
from softlabel.pipeline.teachers.teacher import open_teacher
from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import Manifest, Plan, Segment, sha256_of
from softlabel.schemas.params import InferParams

if TYPE_CHECKING:
    from tests.conftest import Command, Project

CLASSES = tuple(f"class-{number:03d}" for number in range(100))
TEACHER = Path("models/teacher.onnx")
LABELS = Path("labels")
HEAD = LABELS / "head.safetensors"
INFER = ("infer", "--batch-size", "32", "--shard-rows", "160", "--codec", "factored")
TOPK = ("infer", "--batch-size", "16", "--shard-rows", "160", "--codec", "topk", "--k", "5")
PRIOR = (*TOPK, "--tail", "prior")


@pytest.fixture
def wide(empty_project: Project) -> Project:
    """A teacher of 100 classes over 64 features that float16 must round."""
    empty_project.source(classes=CLASSES)
    empty_project.teacher(classes=CLASSES)
    edit(lambda graph: squash(graph))
    return empty_project


def edit(change: Any, path: Path = TEACHER) -> None:
    model = onnx.load(path)
    change(model.graph)
    path.write_bytes(model.SerializeToString())


def squash(graph: onnx.GraphProto, factor: float = 1 / 255) -> None:
    """Pictures as numbers in 0..1, so that they are no whole numbers any more."""
    (gemm,) = (node for node in graph.node if node.op_type == "Gemm")
    name = f"times-{len(graph.node)}"
    graph.initializer.append(numpy_helper.from_array(np.asarray(factor, np.float32), name))
    for tensor in graph.initializer:
        if tensor.name == "filters":
            weight = numpy_helper.to_array(tensor) / np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(weight, "filters"))
    scale = helper.make_node("Mul", [gemm.input[0], name], [f"{name}-features"])
    gemm.input[0] = scale.output[0]
    graph.node.insert(list(graph.node).index(gemm), scale)


def bend(graph: onnx.GraphProto) -> None:
    graph.node[-1].op_type = "Softplus"


def manifest() -> Manifest:
    return Manifest.model_validate_json((LABELS / "labelset.json").read_bytes())


def plan() -> Plan:
    return Plan.model_validate_json((LABELS / "plan.json").read_bytes())


def teacher_logits() -> np.ndarray:
    source = open_source(Path("data/train"))
    teacher = open_teacher(TEACHER, InferParams(), source.shape)
    session = TeacherSession(teacher, "cpu", source.rows)
    whole = [Segment(source=file.name, first=0, rows=file.rows) for file in source.files]
    return session.run(source.read(whole).inputs).logits


def stored() -> Any:
    (block,) = softlabel.open("labels").batches(500)
    return block


def test_a_factored_set_says_what_its_teacher_says(wide: Project, command: Command) -> None:
    before = TEACHER.read_bytes()
    outcome = command(*INFER, "--json")
    assert outcome.code == 0, outcome.stderr
    assert TEACHER.read_bytes() == before
    identity = manifest().identity
    assert identity.codec == "factored"
    assert identity.teacher_sha256 == (sha256_of(before),)
    assert identity.head_sha256 == sha256_of(HEAD.read_bytes())
    assert load_file(HEAD)["weight"].shape == (100, 64)
    block, logits = stored(), teacher_logits()
    assert block.payload["features"].shape == (500, 64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    assert block.logits(1.0) == pytest.approx(shifted, abs=5e-2)
    assert np.array_equal(block.top1, logits.argmax(axis=1))
    assert block.shift == pytest.approx(logits.max(axis=1), rel=1e-4)
    for measured in manifest().fidelity:
        assert 0 < measured.kl_mean < 3e-6
    assert json.loads(outcome.stdout)["rows"] == 500


def test_two_runs_give_the_same_bytes_and_a_second_does_nothing(
    wide: Project, command: Command
) -> None:
    assert command(*INFER).code == 0
    once = wide.files()
    assert sorted(name for name in once if "part" not in name) == [
        "head.safetensors",
        "labelset.json",
        "plan.json",
    ]
    assert "nothing to do" in command(*INFER).stdout
    assert wide.files() == once
    shutil.rmtree(LABELS)
    assert command(*INFER).code == 0
    assert wide.files() == once


@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_a_lost_head_comes_back_and_the_shards_stay(
    wide: Project, command: Command, damage: str
) -> None:
    assert command(*INFER).code == 0
    once = wide.files()
    if damage == "missing":
        HEAD.unlink()
    else:
        data = HEAD.read_bytes()
        HEAD.write_bytes(data[:-4] if damage == "cut" else data[:-4] + b"\0\0\0\1")
    with pytest.raises(DataError, match="head"):
        softlabel.open("labels")
    found = command("verify", "--labels", "labels", "--source", "data/train", "--repair")
    assert found.code == 1
    assert "1 problems" in found.stdout
    assert "run the same 'softlabel infer' again: it writes the head" in found.stdout
    assert set(once) - set(wide.files()) <= {"head.safetensors"}
    shards = {path.name: path.stat().st_ino for path in LABELS.glob("*.parquet")}
    assert command(*INFER).code == 0
    assert wide.files() == once
    assert {path.name: path.stat().st_ino for path in LABELS.glob("*.parquet")} == shards


def test_a_run_that_ended_before_its_head_goes_on(wide: Project, command: Command) -> None:
    assert command(*INFER).code == 0
    once = wide.files()
    for name in once:
        if name != "plan.json":
            (LABELS / name).unlink()
    assert command(*INFER).code == 0
    assert wide.files() == once


def test_another_head_is_another_identity(wide: Project, command: Command) -> None:
    assert command(*INFER).code == 0
    edit(lambda graph: squash(graph, 0.5))
    refused = command(*INFER)
    assert refused.code == 3
    assert "different: teacher, head" in refused.stderr
    assert command(*INFER, "--if-different", "replace").code == 0
    assert manifest().identity.head_sha256 == sha256_of(HEAD.read_bytes())
    assert command("verify", "--labels", "labels", "--source", "data/train").code == 0


def test_verify_replays_it_and_inspect_shows_it(wide: Project, command: Command) -> None:
    assert command(*INFER).code == 0
    check = ("verify", "--labels", "labels", "--source", "data/train")
    passed = command(*check, "--teacher", str(TEACHER), "--replay", "64")
    assert passed.code == 0, passed.stdout
    assert "negative control" in passed.stdout
    assert "factored" in command("inspect", "--labels", "labels", "--rows", "2").stdout


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("features", "the shift is not the head's largest logit"),
        ("shift", "the shift is not the head's largest logit"),
        ("top1", "top1 is not the head's arg-max"),
        ("lse", "the log-sums are not those of the logits"),
    ],
)
def test_verify_finds_values_of_other_rows(
    wide: Project, command: Command, part: str, said: str
) -> None:
    assert command(*INFER).code == 0
    packing, shard = folder_packing(LABELS, manifest()), manifest().shards[0]
    assert not list(check_values(LABELS, packing, shard))
    (block,) = open_shard(LABELS, shard.name, packing).read(0, shard.rows)
    if part in ("top1", "shift"):
        wrong = replace(block, **{part: np.roll(getattr(block, part), 1)})
    else:
        moved = {part: np.roll(block.payload[part], 1, axis=0)}
        wrong = replace(block, payload={**block.payload, **moved})
    with writing_shard(LABELS, shard.name, packing) as writer:
        writer.append(wrong)
        writer.finish()
    assert said in " ".join(problem.message for problem in check_values(LABELS, packing, shard))


def test_classes_in_another_order(empty_project: Project, command: Command) -> None:
    empty_project.source(classes=CLASSES)
    empty_project.teacher(classes=CLASSES)
    assert command(*INFER).code == 0
    straight = stored()
    shutil.rmtree(LABELS)
    turned = CLASSES[::-1]

    def turn(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name in ("filters", "offsets"):
                value = np.ascontiguousarray(numpy_helper.to_array(tensor)[..., ::-1])
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    model = onnx.load(TEACHER)
    turn(model.graph)
    (entry,) = model.metadata_props
    spec = json.loads(entry.value) | {"classes": turned}
    entry.value = json.dumps(spec)
    TEACHER.write_bytes(model.SerializeToString())
    assert command(*INFER).code == 0
    assert manifest().identity.class_map == tuple(range(99, -1, -1))
    assert manifest().identity.classes == CLASSES
    assert np.array_equal(stored().top1, straight.top1)
    assert stored().logits(1.0) == pytest.approx(straight.logits(1.0), abs=1e-4)


def test_a_tail_that_is_not_linear_is_refused_before_anything_is_written(
    wide: Project, command: Command
) -> None:
    edit(bend)
    refused = command(*INFER)
    assert refused.code == 3
    assert "its logits are made by Softplus; pass --codec dense-f16" in refused.stderr
    assert not LABELS.exists()
    assert command(*INFER[:-1], "dense-f16", "--allow-bad-teacher").code == 0


def test_a_narrow_teacher_has_nothing_to_gain(project: Project, command: Command) -> None:
    refused = command("infer", "--codec", "factored")
    assert refused.code == 3
    assert "64 inputs for 10 classes" in refused.stderr


def test_something_between_the_layer_and_the_logits_is_found_on_the_first_batch(
    wide: Project, command: Command
) -> None:
    """A cast to bfloat16 is a cast like any other until one looks at the numbers."""

    def coarsen(graph: onnx.GraphProto) -> None:
        last = graph.node.pop()
        for start, end, kind in (
            (last.input[0], "coarse", TensorProto.BFLOAT16),
            ("coarse", "logits", TensorProto.FLOAT),
        ):
            graph.node.append(helper.make_node("Cast", [start], [end], to=kind))

    edit(coarsen)
    refused = command(*INFER)
    assert refused.code == 3
    assert "its last linear layer over its inputs differs from its logits by 0." in refused.stderr
    assert not list(LABELS.glob("*"))


def test_a_feature_beyond_float16_names_its_key(wide: Project, command: Command) -> None:
    edit(lambda graph: squash(graph, 1e5))
    refused = command(*INFER)
    assert refused.code == 3
    assert (
        "features are beyond 65,504, the end of float16 for key 'sample-000000'" in refused.stderr
    )


def test_a_student_learns_from_it_and_the_report_shows_it(wide: Project, command: Command) -> None:
    assert command(*INFER).code == 0
    once = wide.files()
    model = "softlabel.pipeline.small_models:mlp"
    train = ("train-student", "--model", model, "--loss", "kd", "--labels", "labels")
    trained = command(*train, "--epochs", "1", "--source", "data/train", "--output", "students/kd")
    assert trained.code == 0, trained.stderr
    assert command("evaluate", "--models", "students", "--source", "data/train").code == 0
    shown = command("report", "--models", "students", "--labels", "labels")
    assert shown.code == 0, shown.stderr
    page = Path("reports/report.html").read_text()
    assert "--codec factored" in page
    assert 'id="temperature"' in page
    assert wide.files() == once
    # The slider has the logits of the head over the features, whatever the temperature.
    (data,) = re.findall(r'<script[^>]*id="page-data"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert len(json.loads(data)["samples"]) == 12


def test_the_report_of_a_prior_s_tail_says_so_and_moves_no_bars(
    wide: Project, command: Command
) -> None:
    assert command(*PRIOR).code == 0
    model = "softlabel.pipeline.small_models:mlp"
    train = ("train-student", "--model", model, "--loss", "kd", "--labels", "labels")
    assert command(*train, "--epochs", "1", "--output", "students/kd").code == 0
    assert command("evaluate", "--models", "students", "--source", "data/train").code == 0
    assert command("report", "--models", "students", "--labels", "labels").code == 0
    page = " ".join(Path("reports/report.html").read_text().split())
    assert "the mass is spread as the teacher does on the whole here" in page
    assert "--codec topk --k 5 --tail prior" in page
    # The histograms follow the temperature; samples' tails are exact at the recorded ones alone.
    (data,) = re.findall(r'<script[^>]*id="page-data"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert json.loads(data)["samples"] == []
    assert "Move it, and the histograms move along" in page
    assert "all below moves along" not in page


@pytest.mark.parametrize(
    ("change", "codec"), [(None, "factored"), (bend, "topk")], ids=["linear", "bent"]
)
def test_auto_beyond_the_dense_codecs(
    empty_project: Project, command: Command, change: Any, codec: str
) -> None:
    many = tuple(f"{number:04d}" for number in range(4097))
    empty_project.source(shards=(40,), classes=many)
    empty_project.teacher(classes=many)
    if change:
        edit(change)
    done = command("infer", "--batch-size", "8", "--allow-bad-teacher")
    assert done.code == 0, done.stderr
    assert manifest().identity.codec == codec
    assert f"codec {codec}" in done.stderr


def test_a_prior_is_settled_once_and_kept(wide: Project, command: Command) -> None:
    assert command(*PRIOR).code == 0
    once = wide.files()
    prior = plan().prior
    assert prior is not None
    assert manifest().prior == prior
    assert manifest().identity.tail == "prior"
    assert len(prior) == 100
    assert max(prior) == 0
    assert len(set(prior)) > 50
    # A plan with another prior: what it says is what the shards are made and read with.
    changed = plan().model_copy(update={"prior": tuple(float(-n) for n in range(100))})
    for name in once:
        (LABELS / name).unlink()
    (LABELS / "plan.json").write_text(changed.model_dump_json())
    assert command(*PRIOR).code == 0
    assert manifest().prior == changed.prior
    shutil.rmtree(LABELS)
    assert command(*PRIOR).code == 0
    assert wide.files() == once


def test_a_prior_says_more_than_an_even_tail(wide: Project, command: Command) -> None:
    loss = {}
    for tail in ("uniform", "prior"):
        assert command(*TOPK, "--tail", tail, "--output", tail).code == 0
        found = Manifest.model_validate_json(Path(tail, "labelset.json").read_bytes())
        assert found.identity.tail == tail
        loss[tail] = [measured.kl_mean for measured in found.fidelity]
    assert all(p < u for p, u in zip(loss["prior"], loss["uniform"], strict=True)), loss
    first = softlabel.open("uniform").manifest.identity
    assert first.digest() != softlabel.open("prior").manifest.identity.digest()


def test_a_prior_of_the_wrong_length_is_found(wide: Project, command: Command) -> None:
    assert command(*PRIOR).code == 0
    short = manifest().model_copy(update={"prior": None})
    (LABELS / "labelset.json").write_text(short.model_dump_json())
    with pytest.raises(DataError, match="class prior is missing or damaged"):
        softlabel.open("labels")


def test_a_tail_is_of_topk_alone(wide: Project, command: Command) -> None:
    refused = command("infer", "--codec", "dense-f16", "--tail", "prior")
    assert refused.code == 2
    assert "infer.tail" in refused.stderr
