"""A trained PyTorch model becomes one ONNX file that says everything about itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx.external_data_helper import uses_external_data
from safetensors.torch import save_file
from torch import nn

import softlabel
from softlabel.pipeline.inference.codec_trial import divergences
from softlabel.pipeline.small_models import conv_net
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.training.student import load_student
from softlabel.schemas.labelset import Segment
from softlabel.schemas.teacher import METADATA_KEY, TeacherSpec

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome, Project

CLASSES = ("Katze", "dog, small", "鳥")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.3, 0.225)
Logits = npt.NDArray[np.float32]


def spec_flags(
    height: int = 12, width: int = 10, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> list[str]:
    return [
        f"--height={height}",
        f"--width={width}",
        f"--channels={len(mean)}",
        *(f"--mean={value}" for value in mean),
        *(f"--std={value}" for value in std),
        *(f"--classes={name}" for name in CLASSES),
    ]


def trained(model: nn.Module) -> nn.Module:
    """The model with weights and batch statistics that differ from a fresh one's."""
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) * 0.1)
    return model.eval()


def expected(model: nn.Module, pixels: npt.NDArray[np.uint8]) -> Logits:
    """What PyTorch says, with the preprocessing written out once more."""
    scaled = (pixels.astype(np.float64) / 255 - np.asarray(MEAN)) / np.asarray(STD)
    pictures = torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32))
    with torch.no_grad():
        return np.asarray(model(pictures).numpy())


def run_onnx(path: Path, pixels: npt.NDArray[np.uint8]) -> Logits:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels})
    return np.asarray(logits)


def assert_a_good_teacher(path: Path, model: nn.Module, height: int = 12, width: int = 10) -> None:
    """One file, a free batch axis, its own description, and PyTorch's logits at any batch size."""
    proto = onnx.load(path, load_external_data=False)
    assert [file for file in path.parent.iterdir() if file.name.startswith(path.stem)] == [path]
    assert not any(uses_external_data(tensor) for tensor in proto.graph.initializer)
    (entry,), (output,) = proto.graph.input, proto.graph.output
    assert entry.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    batch, *axes = entry.type.tensor_type.shape.dim
    assert batch.dim_param and not batch.HasField("dim_value")
    assert [axis.dim_value for axis in axes] == [height, width, 3]
    metadata = {prop.key: prop.value for prop in proto.metadata_props}
    spec = TeacherSpec.model_validate_json(metadata[METADATA_KEY])
    assert spec.classes == CLASSES
    assert (spec.output, spec.output_kind) == (output.name, "logits")
    assert spec.preprocess is not None
    assert spec.preprocess.shape == (height, width, 3)
    assert (spec.preprocess.mean, spec.preprocess.std) == (MEAN, STD)
    assert spec.preprocess.in_graph
    assert {"": spec.opset}.items() <= {o.domain: o.version for o in proto.opset_import}.items()
    random = np.random.default_rng(5)
    for rows in (1, 2, 3, 17, 64):
        pixels = random.integers(0, 256, (rows, height, width, 3), np.uint8)
        wanted = expected(model, pixels)
        assert np.ptp(wanted) > 0.1
        np.testing.assert_allclose(run_onnx(path, pixels), wanted, rtol=1e-4, atol=1e-4)


def export(command: Command, *flags: str) -> Outcome:
    outcome = command("export", *spec_flags(), *flags, "--output", "out/teacher.onnx", "--json")
    assert outcome.code == 0, outcome.stderr
    return outcome


def conv() -> nn.Module:
    return trained(conv_net(3, channels=3, width=8, depth=2))


CONV = ("--model", "softlabel.pipeline.small_models:conv_net")
CONV_ARGS = ("--model-args", '{"channels": 3, "width": 8, "depth": 2}')


def save_safetensors(model: nn.Module) -> str:
    save_file(model.state_dict(), "weights.safetensors")
    return "weights.safetensors"


def save_state_dict(model: nn.Module) -> str:
    torch.save(model.state_dict(), "weights.pt")
    return "weights.pt"


def save_lightning(model: nn.Module) -> str:
    torch.save({"epoch": 3, "state_dict": model.state_dict(), "lr": 0.1}, "last.ckpt")
    return "last.ckpt"


def save_model_key(model: nn.Module) -> str:
    torch.save({"model": model.state_dict(), "args": {"lr": 0.1}}, "checkpoint.pth")
    return "checkpoint.pth"


@pytest.mark.parametrize(
    "save", [save_safetensors, save_state_dict, save_lightning, save_model_key]
)
def test_kinds_of_weights(
    empty_project: Project, command: Command, save: Callable[[nn.Module], str]
) -> None:
    model = conv()
    outcome = export(command, *CONV, *CONV_ARGS, "--weights", save(model))
    assert_a_good_teacher(Path("out/teacher.onnx"), model)
    report: dict[str, Any] = json.loads(outcome.stdout)
    assert report["checked_batch_sizes"] == [1, 2, 7]
    assert 0 <= report["max_difference"] <= report["allowed_difference"] < 1e-2
    assert report["bytes"] == Path("out/teacher.onnx").stat().st_size


def test_its_soft_targets_are_those_of_pytorch(empty_project: Project, command: Command) -> None:
    """Mean KL of ONNX Runtime's to PyTorch's in eval mode, on the CPU in float32."""
    model = conv()
    export(command, *CONV, *CONV_ARGS, "--weights", save_safetensors(model))
    pixels = np.random.default_rng(7).integers(0, 256, (256, 12, 10, 3), np.uint8)
    wanted, got = expected(model, pixels), run_onnx(Path("out/teacher.onnx"), pixels)
    kl, _ = divergences(wanted, got, 1.0)
    assert np.ptp(wanted) > 0.1
    assert kl.mean() <= 1e-9


def test_factory_in_the_working_folder(empty_project: Project) -> None:
    """By the installed script, whose own folder and not this one is on Python's path."""
    Path("nets").mkdir()
    Path("nets/small.py").write_text(
        "from softlabel.pipeline.small_models import conv_net\n"
        "def build(num_classes, wide=False):\n"
        "    return conv_net(num_classes, channels=3, width=8 if wide else 1, depth=2)\n"
    )
    model = conv()
    weights = save_safetensors(model)
    outcome = empty_project.run(
        "export",
        *spec_flags(),
        "--model=nets.small:build",
        '--model-args={"wide": true}',
        f"--weights={weights}",
        "--output=out/teacher.onnx",
    )
    assert outcome.code == 0, outcome.stderr
    assert "differ by" in outcome.stdout
    assert "Warning" not in outcome.stderr
    assert_a_good_teacher(Path("out/teacher.onnx"), model)

    assert str(empty_project.root).encode() not in Path("out/teacher.onnx").read_bytes()


def test_the_file_tells_nothing_of_this_machine(
    empty_project: Project, command: Command, repo_root: Path
) -> None:
    """No path and no line of the user's code: else its hash depends on where it was exported."""
    export(command, *CONV, *CONV_ARGS, "--weights", save_safetensors(conv()))
    content = Path("out/teacher.onnx").read_bytes()
    for word in (str(repo_root), str(Path(torch.__file__).parent), "site-packages", "def forward"):
        assert word.encode() not in content
    assert b"scaled.permute" not in content


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "test_convnext"])
def test_timm(empty_project: Project, command: Command, name: str) -> None:
    timm = pytest.importorskip("timm")
    model = trained(timm.create_model(name, num_classes=3))
    flags = (*spec_flags(height=48, width=32), "--output=out/teacher.onnx")
    weights = save_safetensors(model)
    outcome = command("export", *flags, "--model", f"timm:{name}", "--weights", weights)
    assert outcome.code == 0, outcome.stderr
    assert_a_good_teacher(Path("out/teacher.onnx"), model, 48, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_torchvision(empty_project: Project, command: Command, name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = trained(torchvision.models.get_model(name, weights=None, num_classes=3))
    flags = (*spec_flags(height=48, width=32), "--output=out/teacher.onnx")
    weights = save_state_dict(model)
    outcome = command("export", *flags, "--model", f"torchvision:{name}", "--weights", weights)
    assert outcome.code == 0, outcome.stderr
    assert_a_good_teacher(Path("out/teacher.onnx"), model, 48, 32)


@pytest.mark.slow
def test_timm_takes_the_channels(empty_project: Project, command: Command) -> None:
    timm = pytest.importorskip("timm")
    model = trained(timm.create_model("test_resnet", num_classes=3, in_chans=1))
    weights = save_safetensors(model)
    flags = spec_flags(height=32, width=32, mean=(0.5,), std=(0.5,))
    outcome = command("export", *flags, "--model=timm:test_resnet", f"--weights={weights}")
    assert outcome.code == 0, outcome.stderr


@pytest.mark.slow
def test_parity_on_samples(empty_project: Project, command: Command) -> None:
    empty_project.source(shards=(0, 3, 9), shape=(12, 10, 3))
    model = conv()
    flags = ("--weights", save_safetensors(model), "--samples", "data/train")
    outcome = export(command, *CONV, *CONV_ARGS, *flags)
    assert json.loads(outcome.stdout)["checked_on"] == "samples of data/train"
    assert_a_good_teacher(Path("out/teacher.onnx"), model)


@pytest.mark.slow
def test_the_same_model_gives_the_same_file(empty_project: Project, command: Command) -> None:
    """The file's hash is part of every label's identity: exporting again must not change it."""
    flags = (*CONV, *CONV_ARGS, "--weights", save_safetensors(conv()))
    export(command, *flags)
    first = Path("out/teacher.onnx").read_bytes()
    export(command, *flags)
    assert Path("out/teacher.onnx").read_bytes() == first
    outcome = empty_project.run("export", *spec_flags(), *flags, "--output", "again.onnx")
    assert outcome.code == 0, outcome.stderr
    assert Path("again.onnx").read_bytes() == first


@pytest.mark.slow
def test_class_names_from_a_file(empty_project: Project, command: Command) -> None:
    Path("names.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    model = conv()
    others = [flag for flag in spec_flags() if not flag.startswith("--classes")]
    weights = save_safetensors(model)
    flags = (*others, *CONV, *CONV_ARGS, "--weights", weights, "--classes", "@names.txt")
    assert command("export", *flags, "--output", "out/teacher.onnx").code == 0
    assert_a_good_teacher(Path("out/teacher.onnx"), model)


@pytest.mark.slow
def test_a_students_card_is_enough(project: Project, command: Command) -> None:
    """Trained here, exported from its card, and what infer stores is what PyTorch says."""
    train = (
        "train-student",
        "--model=softlabel.pipeline.small_models:conv_net",
        '--model-args={"width": 8, "depth": 2}',
        "--epochs=2",
        "--mean=0.3",
        "--std=0.2",
        "--logger=none",
        "--output=models/own",
    )
    assert command(*train).code == 0
    outcome = command(
        "export", "--model=models/own/student.json", "--output=own.onnx", "--samples=data/train"
    )
    assert outcome.code == 0, outcome.stderr
    assert command("infer", "--teacher=own.onnx", "--allow-bad-teacher").code == 0
    source = open_source(Path("data/train"))
    samples = source.read([Segment(source=f.name, first=0, rows=f.rows) for f in source.files])
    _, model = load_student(Path("models/own/student.json"))
    with torch.no_grad():
        logits = model(torch.from_numpy(samples.inputs)).numpy()
    (block,) = softlabel.open("labels").batches(500)
    stored = block.logits() + block.shift[:, None]
    np.testing.assert_allclose(stored, logits, rtol=2**-10, atol=2e-3)


class TestModelsThatWillNotDo:
    """Refused in one line that says why; nothing is published."""

    def refuse(self, command: Command, body: str, *words: str) -> None:
        name = f"odd_{abs(hash(body))}"
        Path(f"{name}.py").write_text(
            "import torch\n"
            "class Net(torch.nn.Module):\n"
            "    def __init__(self, num_classes):\n"
            "        super().__init__()\n"
            "        self.head = torch.nn.Linear(360, num_classes)\n"
            "    def forward(self, x):\n"
            f"        {body}\n"
        )
        state = nn.Linear(360, 3).state_dict()
        save_file({f"head.{key}": value for key, value in state.items()}, "odd.safetensors")
        flags = ("--model", f"{name}:Net", "--weights", "odd.safetensors")
        outcome = command("export", *spec_flags(), *flags, "--output", "odd.onnx")
        assert outcome.code in (1, 2, 3), outcome.stderr
        (line,) = [text for text in outcome.stderr.splitlines() if "error" in text]
        assert [word for word in words if word not in line] == [], line
        assert not Path("odd.onnx").exists()

    def test_not_exportable(self, empty_project: Project, command: Command) -> None:
        body = "torch.compiler.is_exporting() and [][1]; return self.head(x.flatten(1))"
        self.refuse(command, body, "cannot export", "list index out of range")

    def test_several_outputs(self, empty_project: Project, command: Command) -> None:
        self.refuse(command, "return self.head(x.flatten(1)), x", "tuple", "[1, 3]")

    def test_more_logits_than_classes(self, empty_project: Project, command: Command) -> None:
        body = "return torch.cat([self.head(x.flatten(1))] * 2, dim=1)"
        self.refuse(command, body, "[1, 6]", "[1, 3]", "class names")

    def test_logits_of_another_rank(self, empty_project: Project, command: Command) -> None:
        self.refuse(command, "return self.head(x.flatten(1))[:, :, None]", "[1, 3, 1]", "[1, 3]")

    def test_a_batch_axis_that_is_fixed(self, empty_project: Project, command: Command) -> None:
        self.refuse(command, "return self.head(x.reshape(2, 360))", "batch")
