"""Several teachers in one pass: their mean, their classes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import helper

import softlabel
from softlabel.schemas.labelset import Ensemble, Identity, sha256_of
from tests.conftest import CLASSES

if TYPE_CHECKING:
    from tests.conftest import Command, Project

ONE, TWO = Path("models/teacher.onnx"), Path("models/two.onnx")
BOTH = ("--teacher", str(ONE), "--teacher", str(TWO))
FLAGS = ("--mean-of", "--mean-temperature")
INFER = ("infer", "--batch-size", "32", "--shard-rows", "160", "--codec", "dense-f32")


@pytest.fixture
def pair(project: Project) -> Project:
    """Two teachers of the same classes in another order; the second doubts more and is wrong."""
    project.teacher(str(TWO), classes=CLASSES[::-1], sharpness=-40)
    return project


def edit(path: Path, **spec: Any) -> None:
    """Change what the teacher's metadata says."""
    model = onnx.load(path)
    (entry,) = model.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | spec)
    path.write_bytes(model.SerializeToString())


def make_softmax(path: Path) -> None:
    """Let the teacher end in a softmax and say so."""
    model = onnx.load(path)
    last = model.graph.node.pop()
    model.graph.node.append(helper.make_node("Softmax", list(last.input), ["logits"]))
    path.write_bytes(model.SerializeToString())
    edit(path, output_kind="probabilities")


def identity(folder: str = "labels") -> Identity:
    return softlabel.open(folder).manifest.identity


def rows(folder: str = "labels") -> Any:
    (block,) = softlabel.open(folder).batches(500)
    return block


def ensemble() -> Ensemble:
    found = identity().ensemble
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("kind", "mean", "weights"),
    [
        ("logits", (), ()),
        ("logits", ("probs", "2.5"), ("3", "1")),
        ("probabilities", (), ("3", "1")),
        ("probabilities", ("probs", "1"), ()),
    ],
)
def test_it_says_what_merge_says_of_its_members(
    pair: Project, command: Command, kind: str, mean: tuple[str, ...], weights: tuple[str, ...]
) -> None:
    if kind == "probabilities":
        make_softmax(TWO)
    shares = [word for weight in weights for word in ("--weights", weight)]
    told = [f"{flag}={value}" for flag, value in zip(FLAGS, mean, strict=False)]
    assert command(*INFER, *BOTH, *shares, *told).code == 0
    for teacher, folder in ((ONE, "a"), (TWO, "b")):
        alone = ("--teacher", str(teacher), "--output", folder, "--allow-bad-teacher")
        assert command(*INFER, *alone).code == 0
    merge = ("merge", "--labels=a", "--labels=b", "--output=mean", "--codec=dense-f32", *shares)
    told = [word.replace("-of", "").replace("mean-t", "t") for word in told]
    assert command(*merge, *told).code == 0
    got, expected = rows(), rows("mean")
    assert got.keys.equals(expected.keys)
    assert np.array_equal(got.top1, expected.top1)
    np.testing.assert_allclose(got.logits(), expected.logits(), rtol=1e-6, atol=3e-6)
    np.testing.assert_allclose(got.shift, expected.shift, rtol=1e-6, atol=3e-6)
    assert np.abs(rows("a").logits() - expected.logits()).max() > 1


def test_equal_members_say_what_one_says(project: Project, command: Command) -> None:
    assert command(*INFER, "--output", "alone").code == 0
    assert command(*INFER, "--teacher", str(ONE), "--teacher", str(ONE)).code == 0
    one, two = rows("alone"), rows()
    assert np.array_equal(one.payload["logits"], two.payload["logits"])
    assert np.array_equal(one.shift, two.shift)
    assert identity("alone").ensemble is None


def test_the_identity_names_teachers_weights_and_mean(pair: Project, command: Command) -> None:
    assert command(*INFER, *BOTH, "--weights", "3", "--weights", "1").code == 0
    files = tuple(sha256_of(path.read_bytes()) for path in (ONE, TWO))
    assert identity().teacher_sha256 == files
    found = ensemble()
    assert [member.teacher_sha256 for member in found.members] == [files[:1], files[1:]]
    assert [member.class_map for member in found.members] == [None, tuple(range(9, -1, -1))]
    assert (found.weights, found.mean, found.temperature) == ((0.75, 0.25), "logits", None)
    assert "nothing to do" in command(*INFER, *BOTH, "--weights", "6", "--weights", "2").stdout
    for other in ((), ("--mean-of", "probs", "--mean-temperature", "1")):
        refused = command(*INFER, *BOTH, *other)
        assert refused.code == 3
        assert "different: ensemble" in refused.stderr
    shown = command("inspect", "--labels", "labels").stdout
    assert "ensemble of 2 teachers: mean of logits, weights 0.75 : 0.25" in shown


def test_verify_asks_all_of_them(pair: Project, command: Command) -> None:
    assert command(*INFER, *BOTH, "--mean-of", "probs", "--mean-temperature", "2").code == 0
    check = ("verify", "--labels", "labels", "--source", "data/train", "--replay", "64")
    passed = command(*check, *BOTH)
    assert passed.code == 0, passed.stdout
    assert "negative control" in passed.stdout
    alone = command(*check, "--teacher", str(ONE))
    assert alone.code == 2
    assert "made by 2 teachers and 1 were given; pass --teacher for each" in alone.stderr
    turned = command(*check, "--teacher", str(TWO), "--teacher", str(ONE))
    assert turned.code == 3
    assert f"{TWO}: is not the teacher that made these labels" in turned.stderr


def test_who_comes_first_changes_no_label(pair: Project, command: Command) -> None:
    """The first one's classes stand in another order than the source's, the second's do not."""
    turned = ("--teacher", str(TWO), "--teacher", str(ONE))
    assert command(*INFER, *BOTH, "--output=straight").code == 0
    assert command(*INFER, *turned).code == 0
    assert identity().classes == CLASSES
    assert identity().class_map == ensemble().members[1].class_map == tuple(range(9, -1, -1))
    np.testing.assert_allclose(rows().logits(), rows("straight").logits(), rtol=1e-6, atol=1e-6)
    check = ("verify", "--labels=labels", "--source=data/train", "--replay=64", *turned)
    assert command(*check).code == 0


def test_a_subset_of_classes_is_replayed_too(pair: Project, command: Command) -> None:
    assert command(*INFER, *BOTH).code == 0
    Path("some.txt").write_text("7\n2\n5\n")
    part = ("convert", "--labels=labels", "--output=part", "--classes=some.txt")
    assert command(*part).code == 0
    passed = command("verify", "--labels=part", "--source=data/train", "--replay=64", *BOTH)
    assert passed.code == 0, passed.stdout
    assert "negative control" in passed.stdout


def test_the_plan_tries_them_and_its_command_runs_them(pair: Project, command: Command) -> None:
    outcome = command("plan", *BOTH, "--weights", "3", "--weights", "1", "--json")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert report["teacher"] == [str(ONE), str(TWO)]
    assert "factored is left out: an ensemble has no one last layer" in report["notes"]
    _, *arguments = report["command"].split()
    assert command(*arguments).code == 0
    assert ensemble().weights == (0.75, 0.25)


def test_params_yaml_takes_one_path_or_a_list(pair: Project, command: Command) -> None:
    for teachers in (str(ONE), [str(ONE), str(TWO)]):
        Path("params.yaml").write_text(yaml.safe_dump({"infer": {"teacher": teachers}}))
        assert command("infer", "--overwrite").code == 0
        assert (identity().ensemble is None) == isinstance(teachers, str)


def test_what_is_told_is_of_the_files_without_metadata(pair: Project, command: Command) -> None:
    pair.teacher(str(TWO), metadata=False)
    told = ("--output-kind=logits", "--input-layout=NHWC")
    classes = [f"--classes={name}" for name in CLASSES[::-1]]
    assert command(*INFER, *BOTH, *told, *classes, "--allow-bad-teacher").code == 0
    assert ensemble().members[1].class_map == tuple(range(9, -1, -1))
    pair.teacher(str(TWO))
    refused = command(*INFER, *BOTH, *told, "--output=b")
    assert refused.code == 2
    assert f"{ONE}: carries its own metadata" in refused.stderr


def test_members_that_do_not_go_together(pair: Project, command: Command) -> None:
    pair.teacher(str(TWO), classes=(*CLASSES[:9], "nine"))
    refused = command(*INFER, *BOTH)
    assert refused.code == 3
    assert f"teacher {TWO} lacks classes of teacher {ONE}: '9'" in refused.stderr
    pair.teacher(str(TWO), shape=(8, 16, 1))
    refused = command(*INFER, *BOTH)
    assert refused.code == 3
    assert "another framing (width 8 and 16)" in refused.stderr
    assert "'softlabel merge'" in refused.stderr
    pair.teacher(str(TWO))
    refused = command(*INFER[:-1], "factored", *BOTH)
    assert refused.code == 2
    assert "and 2 teachers are given; pass --codec dense-f16" in refused.stderr
    assert not Path("labels").exists()


@pytest.mark.parametrize("mean", ["logits", "probs"])
def test_a_member_that_gives_no_number_is_named_by_the_key(
    empty_project: Project, command: Command, mean: str
) -> None:
    empty_project.source(poisoned=(130,))
    empty_project.teacher()
    empty_project.teacher(str(TWO), poisoned=True)
    told = ("--mean-temperature", "1") if mean == "probs" else ()
    refused = command(*INFER, *BOTH, "--mean-of", mean, *told)
    assert refused.code == 3
    assert "logits hold NaN for key 'sample-000130'" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((*BOTH, "--weights=1"), "weights are 1 for 2 teachers; give one each"),
        ((*BOTH, "--mean-of=probs"), "needs the temperature of the probabilities"),
        ((*BOTH, "--mean-temperature=2"), "leave it out for mean 'logits'"),
        (("--weights=1",), "there is one teacher; give several"),
    ],
)
def test_bad_flags(pair: Project, command: Command, flags: tuple[str, ...], said: str) -> None:
    refused = command(*INFER, *flags)
    assert refused.code == 2
    assert said in refused.stderr
