"""Inner outputs of the teacher stored beside its labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

import softlabel
from softlabel.pipeline.small_models import mlp
from softlabel.pipeline.sources.opening import open_source
from softlabel.schemas.labelset import Identity, Segment
from softlabel.schemas.teacher import METADATA_KEY
from tests.integration.page import Page

if TYPE_CHECKING:
    from tests.conftest import Command, Project

TEACHER = Path("models/teacher.onnx")
INFER = ("infer", "--batch-size", "32", "--shard-rows", "160", "--codec", "dense-f32")
VERIFY = ("verify", "--labels=labels", "--source=data/train", "--replay=64", f"--teacher={TEACHER}")


@pytest.fixture
def squashed(project: Project) -> Project:
    """A teacher whose last layer takes numbers that float16 must round, under the name `small`."""

    def squash(graph: onnx.GraphProto) -> None:
        (gemm,) = (node for node in graph.node if node.op_type == "Gemm")
        factor = np.asarray(1 / 255, np.float32)
        graph.initializer.append(numpy_helper.from_array(factor, "factor"))
        add_before(graph, gemm, helper.make_node("Mul", [gemm.input[0], "factor"], ["small"]))
        gemm.input[0] = "small"
        (filters,) = (tensor for tensor in graph.initializer if tensor.name == "filters")
        larger = numpy_helper.to_array(filters) * np.float32(255)
        filters.CopyFrom(numpy_helper.from_array(larger, "filters"))

    edit(squash)
    return project


def edit(change: Any) -> None:
    model = onnx.load(TEACHER)
    change(model.graph)
    TEACHER.write_bytes(model.SerializeToString())


def add_before(graph: onnx.GraphProto, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
    graph.node.insert(list(graph.node).index(node), new)


def pictures(folder: str = "data/train") -> npt.NDArray[np.uint8]:
    source = open_source(Path(folder))
    whole = [Segment(source=file.name, first=0, rows=file.rows) for file in source.files]
    return np.asarray(source.read(whole).inputs)


def hard_labels() -> npt.NDArray[np.int32]:
    (block,) = softlabel.open("labels").batches(500)
    return np.asarray(block.labels.to_numpy())


def identity(folder: str = "labels") -> Identity:
    return softlabel.open(folder).manifest.identity


def features(folder: str = "labels") -> npt.NDArray[np.float16]:
    (block,) = softlabel.open(folder).batches(500)
    assert block.features is not None
    return block.features


@pytest.mark.parametrize(("asked", "layout"), [("small", "packed"), ("auto", "sidecar")])
def test_they_are_what_the_layer_takes(
    squashed: Project, command: Command, asked: str, layout: str
) -> None:
    before = TEACHER.read_bytes()
    assert command(*INFER, "--output=plain").code == 0
    done = command(*INFER, "--features", asked, "--layout", layout)
    assert done.code == 0, done.stderr
    assert TEACHER.read_bytes() == before
    expected = pictures().reshape(500, 64).astype(np.float32) / np.float32(255)
    assert np.array_equal(features(), expected.astype(np.float16))
    assert (identity().features, identity().features_output) == (64, "small")
    (labels,), (plain,) = (softlabel.open(name).batches(500) for name in ("labels", "plain"))
    assert np.array_equal(labels.payload["logits"], plain.payload["logits"])
    shown = command("inspect", "--labels=labels").stdout
    assert "with 64 features" in shown


def test_a_tensor_of_more_axes_is_flat_a_sample(project: Project, command: Command) -> None:
    assert command(*INFER, "--features=floats").code == 0
    assert np.array_equal(features(), pictures().reshape(500, 64).astype(np.float16))


def test_the_layer_behind_a_softmax(squashed: Project, command: Command) -> None:
    def soften(graph: onnx.GraphProto) -> None:
        graph.node[-1].op_type = "Softmax"

    edit(soften)
    model = onnx.load(TEACHER)
    (entry,) = model.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | {"output_kind": "probabilities"})
    TEACHER.write_bytes(model.SerializeToString())
    assert command(*INFER, "--features=auto").code == 0
    assert identity().features_output == "small"


def test_the_report_projects_them(squashed: Project, command: Command) -> None:
    assert command(*INFER, "--features=small").code == 0
    outcome = command("report", "--json")
    assert outcome.code == 0, outcome.stderr
    found = json.loads(outcome.stdout)["projection"]
    assert found["through"] == "means"
    hard, values = hard_labels(), features().astype(np.float64)
    members = [values[hard == int(name)] for name in found["classes"]]
    first, second, third = means = [rows.mean(axis=0) for rows in members]
    along = (second - first) / np.linalg.norm(second - first)
    across = third - first - along * (along @ (third - first))
    across /= np.linalg.norm(across)
    rows = np.concatenate([each[:100] for each in members]) - np.mean(means, axis=0)
    order = np.lexsort(np.stack([rows @ across, rows @ along]))
    told = np.stack([found["x"], found["y"]])
    told = told[:, np.lexsort(told[::-1])]
    np.testing.assert_allclose(told, np.stack([rows @ along, rows @ across])[:, order], rtol=1e-3)
    page = Page(Path("reports/report.html"))
    assert "seen in the stored features" in page.text
    assert "The stored features small , on the plane of the classes" in page.text


def test_other_features_are_another_identity(squashed: Project, command: Command) -> None:
    assert command(*INFER, "--features=small").code == 0
    for flags in ((), ("--features=rows",)):
        refused = command(*INFER, *flags)
        assert refused.code == 3
        assert "different: features" in refused.stderr
    assert "nothing to do" in command(*INFER, "--features=auto").stdout


def test_verify_replays_them(squashed: Project, command: Command) -> None:
    assert command(*INFER, "--features=auto").code == 0
    passed = command(*VERIFY, "--json")
    assert passed.code == 0, passed.stdout
    replay = json.loads(passed.stdout)["replay"]
    assert 0 < replay["features_difference"] < 5e-4
    assert replay["shifted_features_difference"] > 0.1
    assert "their features differ by" in command(*VERIFY).stdout
    part = ("convert", "--labels=labels", "--output=part", "--layout=sidecar", "--codec=dense-u8")
    assert command(*part).code == 0
    passed = command(*VERIFY[:1], "--labels=part", *VERIFY[2:])
    assert passed.code == 0, passed.stdout
    assert "their features differ by" in passed.stdout


def test_verify_finds_features_of_other_samples(
    squashed: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softlabel.pipeline.inference import runner

    def displaced(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
        return np.roll(values, 1, axis=0).astype(np.float16)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "features_to_half", displaced)
        assert command(*INFER, "--features=small").code == 0
    found = command(*VERIFY)
    assert found.code == 1
    assert "the teacher's features are others" in found.stdout
    assert "the teacher says otherwise" not in found.stdout


def test_what_float16_cannot_hold_is_named_by_its_key(project: Project, command: Command) -> None:
    """The 131st sample alone has a pixel of 255, which 257 times is beyond float16."""
    project.source("poisoned", poisoned=(130,))

    def widen(graph: onnx.GraphProto) -> None:
        factor = numpy_helper.from_array(np.asarray(257, np.float32), "factor")
        graph.initializer.append(factor)
        graph.node.append(helper.make_node("Mul", ["rows", "factor"], ["wide"]))

    edit(widen)
    refused = command(*INFER, "--features=wide", "--source=poisoned")
    assert refused.code == 3
    assert "features are beyond 65,504, the end of float16 for key 'sample-000130'" in (
        refused.stderr
    )


def test_features_that_are_not_to_be_had(squashed: Project, command: Command) -> None:
    def whole(graph: onnx.GraphProto) -> None:
        node = helper.make_node("Cast", ["rows"], ["whole"], to=TensorProto.INT64)
        graph.node.append(node)
        graph.node.append(helper.make_node("Transpose", ["rows"], ["turned"], perm=[1, 0]))

    edit(whole)
    two = (f"--teacher={TEACHER}", f"--teacher={TEACHER}")
    for flags, code, said in (
        (("--features=smal",), 3, "has no inner output 'smal'; did you mean 'small'?"),
        (("--features=whole",), 3, "inner output 'whole' is int64"),
        (("--features=turned",), 3, "'turned' is float32 of shape [64, 32]"),
        ((*two, "--features=auto"), 2, "2 teachers have no one inner output"),
    ):
        refused = command(*INFER, *flags)
        assert (refused.code, said in refused.stderr) == (code, True), refused.stderr
    assert not Path("labels").exists()
    edit(lambda graph: setattr(graph.node[4], "op_type", "Softplus"))
    refused = command(*INFER, "--features=auto")
    assert "made by Softplus; name an inner output with --features" in refused.stderr


def test_factored_has_them_already(empty_project: Project, command: Command) -> None:
    many = tuple(f"{number:03d}" for number in range(100))
    empty_project.source(classes=many)
    empty_project.teacher(classes=many)
    refused = command("infer", "--codec=factored", "--features=auto")
    assert refused.code == 2
    assert "codec factored stores the inputs of the last layer already" in refused.stderr
    assert command(*INFER, "--features=auto").code == 0
    assert identity().features == 64


def test_an_exported_teacher_gives_its_features_out(
    empty_project: Project, command: Command
) -> None:
    """The output `features`, times the last layer's weights, makes the logits."""
    empty_project.source(shards=(60,), classes=("a", "b"))
    model = mlp(num_classes=2)
    save_file(model.state_dict(), "weights.safetensors")
    export = (
        "export",
        "--model=softlabel.pipeline.small_models:mlp",
        "--weights=weights.safetensors",
        *("--height=8", "--width=8", "--channels=1", "--mean=0.5", "--std=0.5"),
        *("--classes=a", "--classes=b"),
    )
    assert command(*export, "--output=plain.onnx").code == 0
    done = command(*export, "--features", f"--output={TEACHER}")
    assert done.code == 0, done.stderr
    proto = onnx.load(TEACHER)
    onnx.checker.check_model(proto)
    assert [output.name for output in proto.graph.output] == ["logits", "features"]
    metadata = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert metadata[METADATA_KEY]["features"] == "features"
    session = onnxruntime.InferenceSession(str(TEACHER), providers=["CPUExecutionProvider"])
    logits, inner = session.run(None, {"pixels": pictures()})
    weight, bias = list(model.state_dict().values())[-2:]
    np.testing.assert_allclose(inner @ weight.numpy().T + bias.numpy(), logits, atol=1e-5)
    assert command(*INFER, "--features=auto", "--allow-bad-teacher").code == 0
    assert identity().features_output == "features"
    assert np.array_equal(features(), inner.astype(np.float16))
    assert "features" not in onnx.load("plain.onnx").metadata_props[0].value
