"""Anybody's ONNX file, made by a plain torch.onnx.export, told by flags what it does not say."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn

import softlabel
from softlabel.pipeline.sources.opening import open_source
from softlabel.schemas.labelset import Manifest, Segment

if TYPE_CHECKING:
    from tests.conftest import Command, Project

SHAPE = (6, 10, 3)
CLASSES = ("apple", "bee", "cow", "dune")
MEAN, STD = (0.48, 0.45, 0.4), (0.22, 0.3, 0.25)
PREPROCESS = (*(f"--mean={value}" for value in MEAN), *(f"--std={value}" for value in STD))
NAMES = tuple(f"--classes={name}" for name in CLASSES)
KIND = "--output-kind=logits"
INFER = ("infer", "--teacher=foreign.onnx", "--batch-size=32", "--allow-bad-teacher")


class Net(nn.Module):
    """Convolution, batch normalisation and a head: float NCHW pictures to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5 * 4 * 8, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.norm(self.conv(x))).flatten(1))
        return logits


class Raw(nn.Module):
    """The same behind its own preprocessing: uint8 pictures, NHWC or NCHW, to logits."""

    def __init__(self, inner: nn.Module, layout: str) -> None:
        super().__init__()
        self.inner = inner
        self.layout = layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.layout == "NHWC":
            x = x.permute(0, 3, 1, 2)
        mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (MEAN, STD))
        logits: torch.Tensor = self.inner((x.to(torch.float32) / 255 - mean) / std)
        return logits


class Two(nn.Module):
    """Features and logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(1), self.inner(x)


def plain_export(
    model: nn.Module, example: torch.Tensor, folder: Path = Path(), **options: Any
) -> None:
    """What people type; the defaults of torch, and so weights in a file beside."""
    if options.pop("dynamic", True):
        options["dynamic_shapes"] = ({0: torch.export.Dim("n")},)
    path = folder / "foreign.onnx"
    torch.onnx.export(model.eval(), (example,), path, dynamo=True, verbose=False, **options)


FLOATS = torch.zeros(2, 3, 6, 10)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A trained-looking network, and the folder of its plain export, float pictures in NCHW."""
    torch.manual_seed(11)
    model = Net()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) * 0.3)
    folder = tmp_path_factory.mktemp("exported")
    plain_export(model, FLOATS, folder)
    return model, folder


@pytest.fixture
def net(empty_project: Project, exported: tuple[nn.Module, Path]) -> nn.Module:
    """The network, its export in the project, and there a source of its shape and classes."""
    empty_project.source(shards=(130,), classes=CLASSES, shape=SHAPE)
    model, folder = exported
    for name in ("foreign.onnx", "foreign.onnx.data"):
        shutil.copy(folder / name, name)
    return model


def stored(folder: str = "labels") -> npt.NDArray[np.float32]:
    (block,) = softlabel.open(folder).batches(1000)
    logits: npt.NDArray[np.float32] = block.logits() + block.shift[:, None]
    return logits


def pytorch(model: nn.Module) -> npt.NDArray[np.float32]:
    source = open_source(Path("data/train"))
    pixels = source.read([Segment(source=source.files[0].name, first=0, rows=130)]).inputs
    with torch.no_grad():
        pictures = torch.from_numpy(pixels.copy())
        return np.asarray(Raw(model, "NHWC")(pictures).numpy())


def assert_same(got: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> None:
    assert np.ptp(wanted) > 1
    np.testing.assert_allclose(got, wanted, rtol=2**-10, atol=1e-3)


def run(command: Command, *flags: str) -> None:
    outcome = command(*INFER, *flags)
    assert outcome.code == 0, outcome.stderr


def refuse(command: Command, code: int, words: tuple[str, ...], *flags: str) -> None:
    outcome = command(*INFER, *flags)
    assert outcome.code == code, outcome.stderr
    (line,) = [text for text in outcome.stderr.splitlines() if "error" in text]
    assert [word for word in words if word not in line] == [], line
    assert not Path("labels/labelset.json").exists()


def test_float_nchw(net: nn.Module, command: Command) -> None:
    run(command, *NAMES, *PREPROCESS, KIND, "--input-layout=NCHW")
    assert_same(stored(), pytorch(net))


def test_float_nchw_in_a_process_of_its_own(net: nn.Module, empty_project: Project) -> None:
    plain_export(net, FLOATS, external_data=False)
    outcome = empty_project.run(*INFER, *NAMES, *PREPROCESS, KIND, "--input-layout=NCHW")
    assert outcome.code == 0, outcome.stderr
    assert_same(stored(), pytorch(net))


@pytest.mark.parametrize(
    ("last", "kind"),
    [(nn.Softmax(dim=1), "probabilities"), (nn.LogSoftmax(dim=1), "log-probabilities")],
)
def test_probabilities(net: nn.Module, command: Command, last: nn.Module, kind: str) -> None:
    """They are stored as logits; who says logits of them is told, and `verify` passes."""
    plain_export(nn.Sequential(copy.deepcopy(net), last), FLOATS)
    flags = (*NAMES, *PREPROCESS, "--input-layout=NCHW")
    if kind == "probabilities":
        refuse(command, 3, ("foreign.onnx", "--output-kind probabilities"), *flags, KIND)
    run(command, *flags, f"--output-kind={kind}")
    labels = softlabel.open("labels")
    assert labels.manifest.identity.output_kind == kind
    floor = labels.manifest.identity.probability_floor
    assert floor == (2.0**-126 if kind == "probabilities" else None)
    (block,) = labels.batches(1000)
    wanted = torch.from_numpy(pytorch(net)).softmax(dim=1).numpy()
    np.testing.assert_allclose(block.probs(1.0), wanted, rtol=5e-3, atol=1e-6)
    outcome = command("verify", "--source=data/train", "--teacher=foreign.onnx")
    assert outcome.code == 0, outcome.stderr


def test_sigmoids_are_refused(net: nn.Module, command: Command) -> None:
    plain_export(nn.Sequential(copy.deepcopy(net), nn.Sigmoid()), FLOATS)
    flags = (*NAMES, *PREPROCESS, "--input-layout=NCHW", "--output-kind=probabilities")
    refuse(command, 3, ("foreign.onnx", "sum to", "sigmoid"), *flags)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_uint8(net: nn.Module, command: Command, layout: str) -> None:
    """Its own arithmetic is inside, so mean and deviation are not asked for."""
    example = torch.zeros((2, *SHAPE) if layout == "NHWC" else (2, 3, 6, 10), dtype=torch.uint8)
    plain_export(Raw(net, layout), example)
    run(command, *NAMES, KIND, f"--input-layout={layout}")
    assert_same(stored(), pytorch(net))


def test_told_by_the_parameter_file(net: nn.Module, command: Command) -> None:
    Path("params.yaml").write_text(
        "infer:\n"
        "  teacher: foreign.onnx\n"
        "  classes: [apple, bee, cow, dune]\n"
        "  output_kind: logits\n"
        "  input_layout: NCHW\n"
        f"  mean: {list(MEAN)}\n"
        f"  std: {list(STD)}\n"
    )
    outcome = command("infer", "--allow-bad-teacher")
    assert outcome.code == 0, outcome.stderr
    assert_same(stored(), pytorch(net))


def test_one_of_two_outputs(net: nn.Module, command: Command) -> None:
    plain_export(Two(net), FLOATS, output_names=["features", "scores"])
    told = (*NAMES, *PREPROCESS, KIND, "--input-layout=NCHW")
    refuse(command, 2, ("output name", "--output-name", "features, scores"), *told)
    refuse(command, 3, ("'score'", "features, scores"), *told, "--output-name=score")
    refuse(command, 3, ("'features'", "[?, 180]", "4 class"), *told, "--output-name=features")
    run(command, *told, "--output-name=scores")
    assert_same(stored(), pytorch(net))


def test_classes_in_another_order(net: nn.Module, command: Command) -> None:
    """By name, column by column; top1 and the hard labels' agreement follow."""
    told = (*PREPROCESS, KIND, "--input-layout=NCHW")
    run(command, *NAMES, *told, "--output=in-order")
    order = ("dune", "apple", "cow", "bee")
    run(command, *(f"--classes={name}" for name in order), *told)
    wanted = pytorch(net)[:, [order.index(name) for name in CLASSES]]
    assert_same(stored(), wanted)
    labels = softlabel.open("labels")
    assert labels.classes == CLASSES
    (block,) = labels.batches(1000)
    np.testing.assert_array_equal(block.top1, wanted.argmax(axis=1))
    manifest = Manifest.model_validate_json(Path("labels/labelset.json").read_bytes())
    assert manifest.identity.class_map == (1, 3, 2, 0)
    agreeing = wanted.argmax(axis=1) == np.asarray(block.labels.to_pylist())
    assert manifest.statistics.correct == agreeing.sum()
    assert softlabel.open("in-order").identity != labels.identity


def test_all_that_is_missing_in_one_error(net: nn.Module, command: Command) -> None:
    flags = ("--classes", "--output-kind", "--input-layout", "--mean", "--std")
    refuse(command, 2, ("foreign.onnx", "no softlabel metadata", *flags))
    outcome = command(*INFER, *NAMES, "--input-layout=NCHW")
    assert outcome.code == 2
    remedy = outcome.stderr.partition("pass ")[2]
    assert "--output-kind, --mean, --std" in remedy
    assert "--input-layout" not in remedy


LAYOUT = "--input-layout=NCHW"


@pytest.mark.parametrize(
    ("code", "words", "flags"),
    [
        (3, ("4", "3 class names"), (*NAMES[:3], *PREPROCESS, KIND, LAYOUT)),
        (2, ("1 values", "3 channels"), (*NAMES, "--mean=0", "--std=1", KIND, LAYOUT)),
        (2, ("channels",), (*NAMES, *PREPROCESS, KIND, "--input-layout=NHWC")),
        (2, ("'bee' appears twice",), ("--classes=bee", *NAMES[:3], *PREPROCESS, KIND, LAYOUT)),
        (2, ("'sigmoid'",), (*NAMES, *PREPROCESS, "--output-kind=sigmoid", LAYOUT)),
        (3, ("lacks", "'dune'"), (*NAMES[:3], "--classes=Dune", *PREPROCESS, KIND, LAYOUT)),
    ],
)
def test_told_wrongly(
    net: nn.Module, command: Command, code: int, words: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    refuse(command, code, words, *flags)


def test_fixed_batch(net: nn.Module, command: Command) -> None:
    plain_export(net, torch.zeros(48, 3, 6, 10), dynamic=False)
    told = (*NAMES, *PREPROCESS, KIND, "--input-layout=NCHW")
    refuse(command, 2, ("batches of 48", "--batch-size 48"), *told)
    run(command, *told, "--batch-size=48")
    assert_same(stored(), pytorch(net))


def test_half_precision_input(net: nn.Module, command: Command) -> None:
    plain_export(copy.deepcopy(net).half(), FLOATS.half())
    run(command, *NAMES, *PREPROCESS, KIND, "--input-layout=NCHW")
    expected = pytorch(net)
    np.testing.assert_allclose(stored(), expected, rtol=1e-2, atol=1e-2 * np.abs(expected).max())


def test_our_own_teacher_needs_no_telling(project: Project, command: Command) -> None:
    outcome = command("infer", "--mean=0.5", "--input-layout=NCHW")
    assert outcome.code == 2
    assert "carries its own metadata" in outcome.stderr
    assert "input_layout, mean would contradict" in outcome.stderr


def test_weights_in_a_file_beside_are_part_of_the_identity(
    net: nn.Module, command: Command
) -> None:
    assert Path("foreign.onnx.data").exists()
    told = (*NAMES, *PREPROCESS, KIND, "--input-layout=NCHW")
    run(command, *told)
    before = softlabel.open("labels").manifest.identity.teacher_sha256
    assert len(before) == 2
    data = bytearray(Path("foreign.onnx.data").read_bytes())
    data[1] ^= 1
    Path("foreign.onnx.data").write_bytes(data)
    outcome = command(*INFER, *told)
    assert outcome.code == 3
    assert "different: teacher)" in outcome.stderr


def test_weights_beside_must_be_there(net: nn.Module, command: Command) -> None:
    Path("foreign.onnx.data").unlink()
    told = (*NAMES, *PREPROCESS, KIND, "--input-layout=NCHW")
    refuse(command, 3, ("foreign.onnx", "'foreign.onnx.data'", "same folder"), *told)


@pytest.mark.slow
def test_weights_beside_in_another_working_folder(
    net: nn.Module, make_project: Callable[[], Project], empty_project: Project
) -> None:
    other = make_project()
    shutil.copytree("data/train", other.root / "source")
    told = (
        *NAMES,
        *PREPROCESS,
        KIND,
        "--input-layout=NCHW",
        "--allow-bad-teacher",
        "--source=source",
    )
    teacher = f"--teacher={empty_project.root / 'foreign.onnx'}"
    outcome = other.run("infer", *told, teacher)
    assert outcome.code == 0, outcome.stderr


def test_weights_inside_a_subgraph_are_hashed(net: nn.Module, command: Command) -> None:
    """External data may hang at a constant inside a node, too, and must not escape the check."""
    plain_export(net, FLOATS, external_data=False)
    model = onnx.load("foreign.onnx")
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "nudge")
    Path("../outside.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../outside.bin")
    last = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["inner" if name == last else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["nudge"], value=tensor))
    model.graph.node.append(onnx.helper.make_node("Add", ["inner", "nudge"], [last]))
    Path("foreign.onnx").write_bytes(model.SerializeToString())
    told = (*NAMES, *PREPROCESS, KIND, "--input-layout=NCHW")
    refuse(command, 3, ("foreign.onnx",), *told)
