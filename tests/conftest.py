"""What all tests share: the checkout, the real data sets, one seed, and tiny projects to work in.

A tiny project has synthetic pictures whose class is plain to see and a teacher of one matrix that
sees it, written as ONNX by hand: no training, no torch, any number of rows and classes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow as pa
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper

from softlabel import cli
from softlabel.pipeline.sources.parquet import write_source_shard
from softlabel.schemas.sample import SampleBlock
from softlabel.schemas.teacher import METADATA_KEY, Preprocess, TeacherSpec

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = Path(sys.executable).with_name("softlabel")
SHAPE = (8, 8, 1)
CLASSES = tuple("0123456789")
# A sample whose first pixel has this value makes a teacher written with `poisoned` say NaN.
POISON = 255


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of larger real data sets, which lie beside the checkout and not in it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the data sets in ../shared/data, which are not part of the checkout")
    return folder


@pytest.fixture(autouse=True)
def seeded_torch() -> None:
    """Give every test the same fresh weights in every run: what fails then is the code.

    pytest-randomly varies the order and reseeds random and NumPy; it does not know torch.
    """
    torch.manual_seed(0)


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Project:
    """A folder with a source and a teacher, and commands run in it.

    own_code: the folder is a checkout, and its commands run its own code.
    """

    root: Path
    own_code: bool = False

    def source(
        self,
        name: str = "data/train",
        shards: Sequence[int] = (300, 200),
        classes: Sequence[str] = CLASSES,
        shape: tuple[int, int, int] = SHAPE,
        keys: Sequence[str] | None = None,
        labelled: bool = True,
        poisoned: Sequence[int] = (),
        seed: int = 0,
    ) -> Path:
        """Write a source of `shards` rows each; the rows in `poisoned` carry the poison."""
        folder = self.root / name
        folder.mkdir(parents=True)
        rows = sum(shards)
        pixels, labels = _pictures(rows, len(classes), shape, seed)
        pixels[list(poisoned), 0, 0, 0] = POISON
        column = labels if labelled else np.ma.masked_array(labels, mask=True)
        block = SampleBlock(
            pa.array(keys if keys is not None else [f"sample-{row:06d}" for row in range(rows)]),
            pixels,
            pa.array(column),
        )
        first = 0
        for index, size in enumerate(shards):
            piece = block.slice(first, size)
            write_source_shard(folder / f"part-{index:05d}.parquet", piece, classes)
            first += size
        return folder

    def teacher(
        self,
        name: str = "models/teacher.onnx",
        classes: Sequence[str] = CLASSES,
        shape: tuple[int, int, int] = SHAPE,
        sharpness: float = 100.0,
        work: int = 0,
        poisoned: bool = False,
        fixed_batch: int | None = None,
        metadata: bool = True,
    ) -> Path:
        """Write a teacher; `work` widens a branch that costs time and changes next to nothing.

        `sharpness` scales the logits: 0 makes them all alike, below 0 always wrong.
        """
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            _teacher_bytes(classes, shape, sharpness, work, poisoned, fixed_batch, metadata)
        )
        return path

    def run(self, *arguments: str) -> Outcome:
        """`softlabel ARGUMENTS` in a process of its own."""
        return self.call(str(SCRIPT), *arguments)

    def call(self, *command: str) -> Outcome:
        """Any command in this folder, in a process of its own."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def spawn(self, *arguments: str, program: str = "softlabel") -> subprocess.Popen[str]:
        """`softlabel ARGUMENTS` in a process of its own, in a session of its own, running."""
        return subprocess.Popen(
            [str(SCRIPT.with_name(program)), *arguments],
            cwd=self.root,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def environment(self) -> dict[str, str]:
        """This process's environment, with the scripts of its Python first on the PATH."""
        code = {"PYTHONPATH": str(self.root)} if self.own_code else {}
        return (os.environ | code) | {
            "PATH": f"{SCRIPT.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            # Whatever lies above this folder is none of its git's business, nor DVC's.
            "GIT_CEILING_DIRECTORIES": str(self.root.parent),
            "DVC_SITE_CACHE_DIR": str(self.root.parent / "dvc-site"),
        }

    def set_params(self, values: Mapping[str, Any]) -> None:
        """Change params.yaml at dotted names."""
        path = self.root / "params.yaml"
        document = yaml.safe_load(path.read_text())
        for name, value in values.items():
            *sections, last = name.split(".")
            place = document
            for section in sections:
                place = place[section]
            place[last] = value
        path.write_text(yaml.safe_dump(document, sort_keys=False))

    def copy(self, folder: Path) -> Project:
        """The whole project once more, links and all, as `folder`."""
        shutil.copytree(self.root, folder, symlinks=True)
        return Project(folder, self.own_code)

    def files(self, folder: str = "labels") -> dict[str, bytes]:
        """Every file below `folder` by its name in it."""
        base = self.root / folder
        return {
            str(path.relative_to(base)): path.read_bytes()
            for path in sorted(base.rglob("*"))
            if path.is_file()
        }


class Command:
    """The command line inside this process: quick where a process of its own adds nothing."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Outcome:
        self._capsys.readouterr()
        code = cli.run(arguments)
        return Outcome(code, *self._capsys.readouterr())


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty folder, entered."""
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.fixture
def project(empty_project: Project) -> Project:
    """500 samples in two shards at data/train and a teacher of their classes, entered."""
    empty_project.source()
    empty_project.teacher()
    return empty_project


@pytest.fixture(scope="session")
def make_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Project]:
    """A function that makes an empty project, for fixtures that outlive a test; not entered."""
    return lambda: Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def unpack() -> Callable[[Path], Project]:
    """A function that makes a folder what unpacking an archive of this checkout would make it.

    Uncommitted files are in it; what git ignores, and git itself, are not.
    """

    def copy_checkout(folder: Path) -> Project:
        for name in _checkout_files():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
        return Project(folder, own_code=True)

    return copy_checkout


def _checkout_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0 and (ROOT / ".git").exists():
        names = {name for name in listed.stdout.split("\0") if name}
    else:
        # This checkout is an unpacked archive itself, with what was made in it since.
        made = {".venv", "data", "models", "labels", "reports", "build", "dist"}
        names = {
            str(path.relative_to(ROOT))
            for top in ROOT.iterdir()
            if top.name not in made and not top.name.endswith(("cache", ".egg-info"))
            for path in ([top] if not top.is_dir() else top.rglob("*"))
            if path.is_symlink() or path.is_file()
            if not {"__pycache__", "cache", "tmp"} & set(path.parts)
        }
    return sorted(
        name
        for name in names - {"dvc.lock", ".dvc/config.local"}
        if (ROOT / name).is_symlink() or (ROOT / name).is_file()
    )


def _patterns(classes: int, shape: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    return np.random.default_rng(99).uniform(0, 255, (classes, *shape))


def _pictures(
    rows: int, classes: int, shape: tuple[int, int, int], seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Noisy pictures of their class's pattern, every value below the poison; and the classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows, np.int32)
    noise = random.uniform(0, 255, (rows, *shape))
    pixels = 0.3 * _patterns(classes, shape)[labels] + 0.7 * noise
    return pixels.clip(0, POISON - 1).astype(np.uint8), labels


def _teacher_bytes(
    classes: Sequence[str],
    shape: tuple[int, int, int],
    sharpness: float,
    work: int,
    poisoned: bool,
    fixed_batch: int | None,
    metadata: bool,
) -> bytes:
    """The correlation of the picture with every class's pattern, times `sharpness`."""
    patterns = _patterns(len(classes), shape).reshape(len(classes), -1)
    pixels = patterns.shape[1]
    filters = (patterns - patterns.mean(axis=0)) / 255
    offsets = -0.5 * sharpness * (filters * (patterns.mean(axis=0) / 255)).sum(axis=1) / pixels
    constants = {
        "filters": (sharpness * filters.T / 255 / pixels * 10).astype(np.float32),
        "offsets": (10 * offsets).astype(np.float32),
        "flat": np.asarray([0, -1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "filters", "offsets"], ["seen"]),
    ]
    last = "seen"
    if work:
        random = np.random.default_rng(1)
        constants["into"] = random.normal(0, 1e-3, (pixels, work)).astype(np.float32)
        constants["across"] = random.normal(0, 1e-3, (work, work)).astype(np.float32)
        constants["out"] = random.normal(0, 1e-3, (work, len(classes))).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", ["rows", "into"], ["wide"]),
            helper.make_node("Relu", ["wide"], ["bent"]),
            helper.make_node("MatMul", ["bent", "across"], ["wider"]),
            helper.make_node("Relu", ["wider"], ["folded"]),
            helper.make_node("MatMul", ["folded", "out"], ["little"]),
            helper.make_node("Add", [last, "little"], ["worked"]),
        ]
        last = "worked"
    if poisoned:
        constants["corner"] = np.asarray([0], np.int64)
        constants["limit"] = np.asarray([[POISON - 0.5]], np.float32)
        nodes += [
            helper.make_node("Gather", ["rows", "corner"], ["first"], axis=1),
            helper.make_node("Sub", ["limit", "first"], ["room"]),
            helper.make_node("Sqrt", ["room"], ["root"]),
            helper.make_node("Sub", ["root", "root"], ["nothing"]),
            helper.make_node("Add", [last, "nothing"], ["spoilt"]),
        ]
        last = "spoilt"
    nodes.append(helper.make_node("Identity", [last], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [fixed_batch, *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [fixed_batch, len(classes)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if metadata:
        channels = shape[2]
        spec = TeacherSpec(
            preprocess=Preprocess(
                height=shape[0],
                width=shape[1],
                channels=channels,
                mean=(0.0,) * channels,
                std=(1.0,) * channels,
                layout="NHWC",
                in_graph=True,
            ),
            classes=tuple(classes),
            output="logits",
        )
        helper.set_model_props(model, {METADATA_KEY: spec.model_dump_json()})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
