"""Bad input: one clear line on stderr that names the value and the way out, and the right code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
import torch
from safetensors.torch import save_file

from softlabel.pipeline.teachers.devices import cuda_devices

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome, Project

CHECK, USAGE, DATA, MACHINE = 1, 2, 3, 4
MLP = "softlabel.pipeline.small_models:mlp"

needs_no_cuda = pytest.mark.skipif(
    bool(cuda_devices()), reason="this machine has CUDA, so asking for it is no error"
)


def assert_refused(outcome: Outcome, code: int, *words: str) -> None:
    """The command ended with `code` and one line of error, the last, that holds all `words`."""
    assert outcome.code == code, outcome.stderr
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    assert "Warning" not in outcome.stderr
    lines = outcome.stderr.splitlines()
    assert [line for line in lines if "error" in line] == lines[-1:], outcome.stderr
    assert lines[-1].startswith("softlabel: error: ")
    assert [word for word in words if word not in lines[-1]] == [], lines[-1]


def write_params(text: str) -> None:
    Path("params.yaml").write_text(text, encoding="utf-8")


# Each in a process of its own, as users meet it.


def test_missing_teacher(project: Project) -> None:
    outcome = project.run("infer", "--teacher", "models/none.onnx")
    assert_refused(outcome, USAGE, "models/none.onnx", "no such teacher file", "--teacher")
    assert not Path("labels").exists()


def test_no_onnx_file(project: Project) -> None:
    Path("models/teacher.onnx").write_text("weights, honestly\n")
    outcome = project.run("infer")
    assert_refused(outcome, DATA, "models/teacher.onnx", "no ONNX file", "softlabel export")
    assert not Path("labels").exists()


def test_params_of_a_wrong_type(project: Project) -> None:
    write_params("infer:\n  batch_size: many\n")
    outcome = project.run("infer")
    assert_refused(outcome, USAGE, "params.yaml", "infer.batch_size", "'many'", "integer")


def test_duplicate_keys_across_shards(empty_project: Project) -> None:
    keys = [f"k{row}" for row in range(500)]
    keys[450] = keys[7]
    empty_project.source(shards=(300, 200), keys=keys)
    empty_project.teacher()
    outcome = empty_project.run("infer", "--batch-size", "16", "--shard-rows", "64")
    places = ("part-00000.parquet row 7", "part-00001.parquet row 150")
    assert_refused(outcome, DATA, "'k7'", *places, "make the keys unique")
    assert not Path("labels/labelset.json").exists()


@needs_no_cuda
def test_infer_on_missing_cuda(project: Project) -> None:
    outcome = project.run("infer", "--device", "cuda")
    assert_refused(outcome, MACHINE, "'cuda'", "--device cpu")
    assert not Path("labels").exists()


def test_unknown_flag(project: Project) -> None:
    outcome = project.run("infer", "--bacth-size", "8")
    assert_refused(outcome, USAGE, "--bacth-size", "--batch-size")


# The rest inside this process, where every warning is an error.


@needs_no_cuda
def test_training_on_missing_cuda(project: Project, command: Command) -> None:
    outcome = command("train-student", "--model", MLP, "--device", "cuda")
    assert_refused(outcome, MACHINE, "'cuda'", "--device cpu")
    assert not Path("models/students").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no ONNX file"),
        (bytes(range(256)) * 40, "no ONNX file"),
        (b"\x08\x0a", "no ONNX file"),
        (b"{}", "no ONNX file"),
    ],
)
def test_files_that_are_no_onnx(
    project: Project, command: Command, content: bytes, reason: str
) -> None:
    Path("models/teacher.onnx").write_bytes(content)
    assert_refused(command("infer"), DATA, "models/teacher.onnx", reason)


def test_cut_onnx_file(project: Project, command: Command) -> None:
    teacher = Path("models/teacher.onnx")
    teacher.write_bytes(teacher.read_bytes()[:-2000])
    assert_refused(command("infer"), DATA, "models/teacher.onnx", "export")


def test_the_first_rank_to_fail_speaks_for_all(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in ("attempt_0", "attempt_1"):
        said = []
        for rank in ("1", "0"):
            place = project.root / attempt / rank
            place.mkdir(parents=True)
            monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(place / "error.json"))
            outcome = command("train-student", "--model", MLP, "--source", f"nowhere-{rank}")
            assert outcome.code == USAGE
            said.append(outcome.stderr)
        assert "nowhere-1" in said[0]
        assert said[1] == ""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(project.root / "gone/0/error.json"))
    assert_refused(command("train-student", "--model", MLP, "--source", "none"), USAGE, "none")


def test_class_counts_differ(project: Project, command: Command) -> None:
    project.teacher(classes=("a", "b", "c"))
    words = ("models/teacher.onnx has 3 classes", "data/train has 10", "same classes")
    assert_refused(command("infer"), DATA, *words)


def test_class_names_differ(project: Project, command: Command) -> None:
    project.teacher(classes=(*"012345678", "nine"))
    assert_refused(command("infer"), DATA, "lacks classes", "'9'", "alike")


def test_empty_source_folder(project: Project, command: Command) -> None:
    Path("data/empty").mkdir()
    outcome = command("infer", "--source", "data/empty")
    assert_refused(outcome, DATA, "data/empty", "empty", "softlabel prepare")


def test_source_of_no_rows(project: Project, command: Command) -> None:
    project.source("data/none", shards=(0,))
    outcome = command("infer", "--source", "data/none")
    assert_refused(outcome, DATA, "data/none", "empty", "prepare")


def test_missing_source(project: Project, command: Command) -> None:
    outcome = command("infer", "--source", "data/nowhere")
    assert_refused(outcome, USAGE, "data/nowhere", "no such source", "softlabel prepare")


def test_source_that_is_no_parquet(project: Project, command: Command) -> None:
    Path("data/train/part-00001.parquet").write_text("not this")
    assert_refused(command("infer"), DATA, "part-00001.parquet", "no Parquet file", "prepare")


def test_cut_source_shard(project: Project, command: Command) -> None:
    shard = Path("data/train/part-00001.parquet")
    shard.write_bytes(shard.read_bytes()[:-9])
    assert_refused(command("infer"), DATA, "part-00001.parquet", "prepare")


def test_flipped_byte_in_a_source_picture(project: Project, command: Command) -> None:
    shard = Path("data/train/part-00001.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0x10
    shard.write_bytes(content)
    assert_refused(command("infer"), DATA, "part-00001.parquet", "prepare")


def test_duplicate_keys_within_a_shard(empty_project: Project, command: Command) -> None:
    keys = [f"k{row}" for row in range(500)]
    keys[211] = keys[5]
    empty_project.source(keys=keys)
    empty_project.teacher()
    places = ("part-00000.parquet row 5", "part-00000.parquet row 211")
    assert_refused(command("infer"), DATA, "'k5'", *places, "make the keys unique")
    assert sorted(path.name for path in Path("labels").iterdir()) == ["plan.json"]


def test_duplicate_keys_stay_an_error(empty_project: Project, command: Command) -> None:
    """Doing the same again must not publish over the finding."""
    empty_project.source(shards=(100, 100), keys=[f"k{row % 100}" for row in range(200)])
    empty_project.teacher()
    arguments = ("infer", "--batch-size", "4", "--shard-rows", "64")
    for _ in range(2):
        assert_refused(command(*arguments), DATA, "'k0'", "appears twice")
        assert not Path("labels/labelset.json").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("infer:\n  bach_size: 3\n", ("infer.bach_size", "unknown", "'batch_size'")),
        ("infre:\n  batch_size: 3\n", ("infre", "unknown section", "'infer'")),
        ("infer: {batch_size: 0}\n", ("infer.batch_size", "greater", "got 0")),
        ("infer: {temperatures: [1, 0]}\n", ("infer.temperatures.1", "greater", "got 0")),
        ("infer: {device: gpu}\n", ("infer.device", "'gpu'", "'cuda'")),
        ("infer: {codec: zip}\n", ("infer.codec", "'zip'", "'dense-f16'")),
        ("infer: [1, 2\n", ("is not YAML", "line 2")),
        ("- infer\n", ("must be a mapping of sections", "list")),
        ("infer: 3\n", ("infer", "must be a mapping", "number")),
        ("train_student: {epochs: .inf}\n", ("train_student.epochs", "inf")),
        ("train_student: {runs: {kd: {temprature: 2}}}\n", ("runs.kd.temprature", "'temperature'")),
        ("train_student: {runs: [kd]}\n", ("train_student.runs", "dictionary")),
        ("evaluate: {1: 2}\n", ("evaluate.1",)),
    ],
)
def test_params_file(project: Project, command: Command, text: str, words: tuple[str, ...]) -> None:
    """The whole file is checked, so a typo in another stage's section shows too."""
    write_params(text)
    assert_refused(command("infer"), USAGE, "params.yaml", *words)
    assert not Path("labels").exists()


def test_params_file_in_another_encoding(project: Project, command: Command) -> None:
    Path("params.yaml").write_bytes("infer: {output: Größe}\n".encode("latin-1"))
    assert_refused(command("infer"), USAGE, "params.yaml", "cannot be read")


def test_missing_params_file(project: Project, command: Command) -> None:
    outcome = command("infer", "--params", "other.yaml")
    assert_refused(outcome, USAGE, "other.yaml", "no such file", "--params")


def test_unknown_run(project: Project, command: Command) -> None:
    write_params(f"train_student: {{model: '{MLP}', runs: {{smooth: {{}}}}}}\n")
    outcome = command("train-student", "--run", "smoth")
    assert_refused(outcome, USAGE, "'smoth'", "'smooth'")


def test_section_of_another_verb(project: Project, command: Command) -> None:
    outcome = command("train-student", "--section", "infer")
    assert_refused(outcome, USAGE, "infer", "train_teacher", "train_student")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("infre",), ("infre",)),
        (("infer", "--batch-size", "many"), ("--batch-size", "integer")),
        (("infer", "--device", "gpu"), ("--device", "'gpu'", "cuda")),
        (("infer", "stray"), ("stray",)),
        (("train-student", "--model-args", "{width}"), ("--model-args", "'{width}'", "JSON")),
        (("train-student",), ("model", "is missing", "--model")),
        (("train-student", "--model", "conv"), ("'conv'", "timm:NAME")),
        (("train-student", "--model", "nowhere:net"), ("nowhere", "this folder")),
        (("train-student", "--model", "math:pi"), ("no function 'pi'",)),
        (("train-student", "--model", "math:hypot"), ("math:hypot", "cannot be built")),
        (("train-student", "--model", f"{MLP}", "--model-args", '{"x": 1}'), ("x", "built")),
        (("train-student", "--model", MLP, "--loss", "kd"), ("labels", "--labels")),
        (
            ("train-student", "--model", MLP, "--loss", "kd", "--labels", "none"),
            ("none", "no such label set", "softlabel infer"),
        ),
        (("train-student", "--model", MLP, "--mean", "0.5", "--mean", "0.5"), ("mean has 2",)),
        (("evaluate", "--source", "data/train"), ("models/students", "train-student")),
        (("report",), ("neither an evaluation nor a label set", "softlabel evaluate", "--labels")),
        (("report", "--evaluation=absent"), ("absent", "softlabel evaluate")),
        (("prepare", "--format", "idx"), ("prepare.path", "--path")),
        (("prepare", "--format", "idx", "--path", "models"), ("models", "train-images")),
        (("prepare", "--test-rows", "5000"), ("5000", "1797")),
    ],
)
def test_usage(
    project: Project, command: Command, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_refused(command(*arguments), USAGE, *words)


def test_a_wrong_flag_is_not_blamed_on_the_file(project: Project, command: Command) -> None:
    write_params("infer: {batch_size: 64}\n")
    outcome = command("infer", "--batch-size", "0")
    assert_refused(outcome, USAGE, "--batch-size", "got '0'")


def test_output_of_another_identity(project: Project, command: Command) -> None:
    assert command("infer").code == 0
    before = project.files()
    outcome = command("infer", "--temperatures", "1", "--temperatures", "3")
    remedies = ("another --output", "--if-different replace")
    assert_refused(outcome, DATA, "labels", "different: temperatures)", *remedies)
    project.teacher(sharpness=50)
    assert_refused(command("infer"), DATA, "different: teacher)", *remedies)
    shutil.rmtree("data/train")
    project.source(seed=1)
    assert_refused(command("infer"), DATA, "different: teacher, source)", *remedies)
    assert project.files() == before


@pytest.mark.parametrize("name", ["thesis.txt", ".notes.tmp", ".hidden", "part-00000.parquet"])
def test_output_with_foreign_files(project: Project, command: Command, name: str) -> None:
    Path("labels").mkdir()
    Path("labels", name).write_text("years of work")
    for flags in ([], ["--overwrite"], ["--if-different", "replace"]):
        outcome = command("infer", *flags)
        assert_refused(outcome, USAGE, "labels", "no label set", "another --output")
        assert project.files() == {name: b"years of work"}


def test_output_that_is_a_file(project: Project, command: Command) -> None:
    Path("labels").write_text("years of work")
    assert_refused(command("infer"), USAGE, "labels", "is a file", "another --output")
    assert Path("labels").read_text() == "years of work"


def test_output_below_a_file(project: Project, command: Command) -> None:
    Path("labels").write_text("years of work")
    assert_refused(command("infer", "--output", "labels/deep"), USAGE, "labels")


def test_output_is_this_folder(empty_project: Project, command: Command) -> None:
    """`--output .` in an empty folder is as good as any other; in a full one it is refused."""
    empty_project.source("../data", shards=(40,))
    teacher = str(empty_project.teacher("../teacher.onnx"))
    arguments = ("infer", "--teacher", teacher, "--source", "../data", "--output", ".")
    Path("mine.txt").write_text("years of work")
    assert_refused(command(*arguments), USAGE, "no label set", "another --output")
    Path("mine.txt").unlink()
    assert command(*arguments).code == 0


@pytest.mark.parametrize("damaged", ["{", "[]", '{"format_version": 2}'])
def test_damaged_plan(project: Project, command: Command, damaged: str) -> None:
    assert command("infer").code == 0
    Path("labels/plan.json").write_text(damaged)
    assert_refused(command("infer"), DATA, "labels/plan.json", "damaged", "run again")


def test_nonfinite_logits_name_the_key(empty_project: Project) -> None:
    empty_project.source(poisoned=[333])
    empty_project.teacher(poisoned=True)
    outcome = empty_project.run("infer", "--batch-size", "16", "--shard-rows", "16")
    assert_refused(outcome, DATA, "NaN", "'sample-000333'", "preprocessing")
    assert not Path("labels/labelset.json").exists()
    assert not Path("labels/part-00021.parquet").exists()


def test_logits_that_are_all_nan_name_a_key(empty_project: Project, command: Command) -> None:
    """The check against chance must not hide it: a NaN row's arg-max means nothing."""
    empty_project.source(poisoned=range(500))
    empty_project.teacher(poisoned=True)
    assert_refused(command("infer"), DATA, "NaN", "'sample-000000'")


def test_teacher_no_better_than_chance(project: Project, command: Command) -> None:
    project.teacher(sharpness=0)
    outcome = command("infer")
    words = ("chance is 10.0%", "500 samples", "class order", "--allow-bad-teacher")
    assert_refused(outcome, CHECK, *words)
    assert not Path("labels/labelset.json").exists()
    assert command("infer", "--allow-bad-teacher").code == 0
    assert Path("labels/labelset.json").exists()


def test_worse_than_chance_is_no_better(project: Project, command: Command) -> None:
    project.teacher(sharpness=-100)
    assert_refused(command("infer"), CHECK, "chance", "--allow-bad-teacher")


def test_chance_needs_hard_labels(empty_project: Project, command: Command) -> None:
    empty_project.source(labelled=False)
    empty_project.teacher(sharpness=0)
    outcome = command("infer", "--json")
    assert outcome.code == 0
    assert '"teacher_accuracy": null' in outcome.stdout


def test_a_refused_teacher_stays_refused(project: Project, command: Command) -> None:
    """Shards that the first run left behind must not carry it past the check."""
    project.teacher(sharpness=0)
    for _ in range(2):
        assert_refused(command("infer", "--batch-size", "4", "--shard-rows", "64"), CHECK, "chance")
        assert not Path("labels/labelset.json").exists()


def test_a_refused_teacher_can_be_mended(project: Project, command: Command) -> None:
    """Nothing was labelled, so the mended teacher's run needs no flag."""
    project.teacher(sharpness=0)
    assert command("infer").code == CHECK
    project.teacher()
    outcome = command("infer")
    assert outcome.code == 0, outcome.stderr


def test_a_refused_teacher_leaves_the_old_labels(project: Project, command: Command) -> None:
    assert command("infer").code == 0
    before = project.files()
    project.teacher(sharpness=0)
    assert_refused(command("infer", "--if-different", "replace"), CHECK, "chance")
    assert project.files() == before


def test_teacher_of_another_picture_size(project: Project, command: Command) -> None:
    project.teacher(shape=(16, 8, 1))
    assert_refused(command("infer"), DATA, "16x8 with 1 channel", "8x8 with 1", "prepare")
    project.teacher(shape=(8, 8, 3))
    assert_refused(command("infer"), DATA, "8x8 with 3 channels", "8x8 with 1", "prepare")


def test_fixed_batch_axis(project: Project, command: Command) -> None:
    project.teacher(fixed_batch=48)
    assert_refused(command("infer"), USAGE, "teacher.onnx", "--batch-size 48")
    assert not Path("labels").exists()
    fixed = command("infer", "--batch-size", "48")
    assert fixed.code == 0
    shards = {name: data for name, data in project.files().items() if name.endswith(".parquet")}
    assert len(shards) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output(project: Project, command: Command) -> None:
    Path("labels").mkdir(mode=0o555)
    assert_refused(command("infer"), MACHINE, "labels", "ermission")


def test_read_only_source_is_enough(project: Project, command: Command) -> None:
    for path in (Path("data/train"), *Path("data/train").iterdir(), Path("models/teacher.onnx")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert command("infer").code == 0
    Path("data/train").chmod(0o755)


def test_a_student_that_does_not_take_the_pictures(project: Project, command: Command) -> None:
    """Known before the first step, and before anything is written."""
    words = ("--model-args", '{"channels": 3}', "--logger=none", "--output=student")
    outcome = command("train-student", "--model=softlabel.pipeline.small_models:conv_net", *words)
    assert_refused(outcome, USAGE, "conv_net", "8x8 with 1 channel", "model_args")
    assert not Path("student").exists()


class TestExport:
    """What stops an export; nothing may stand under the output's name afterwards."""

    SPEC = (
        "--height=8",
        "--width=8",
        "--channels=1",
        "--mean=0",
        "--std=1",
        *(f"--classes={name}" for name in "0123456789"),
    )

    def refuse(self, command: Command, code: int, words: tuple[str, ...], *flags: str) -> None:
        outcome = command("export", *self.SPEC, *flags, "--output", "out.onnx")
        assert_refused(outcome, code, *words)
        assert list(Path().glob("*out.onnx*")) == []

    def weights(self, hidden: int = 16) -> dict[str, torch.Tensor]:
        from softlabel.pipeline.small_models import mlp

        return dict(mlp(10, hidden=hidden).state_dict())

    def test_parity(self, project: Project, command: Command) -> None:
        Path("two_faces.py").write_text(
            "import torch\n"
            "class Net(torch.nn.Module):\n"
            "    def __init__(self, num_classes):\n"
            "        super().__init__()\n"
            "        self.head = torch.nn.Linear(64, num_classes)\n"
            "    def forward(self, x):\n"
            "        logits = self.head(x.flatten(1))\n"
            "        return logits + 0.25 if torch.compiler.is_exporting() else logits\n"
        )
        torch.manual_seed(0)
        state = torch.nn.Linear(64, 10).state_dict()
        save_file({f"head.{name}": value for name, value in state.items()}, "w.safetensors")
        flags = ("--model", "two_faces:Net", "--weights", "w.safetensors")
        words = ("differ by 0.25", "allowed 0.000", "batch size 1, row 0, class ", "nothing was")
        self.refuse(command, CHECK, words, *flags)
        Path("models/out.onnx").write_bytes(b"an older teacher")
        assert command("export", *self.SPEC, *flags, "--output", "models/out.onnx").code == CHECK
        assert Path("models/out.onnx").read_bytes() == b"an older teacher"
        assert command("export", *self.SPEC, *flags, "--tolerance", "0.3").code == 0

    def test_weights_of_another_shape(self, project: Project, command: Command) -> None:
        save_file(self.weights(hidden=8), "w.safetensors")
        words = ("w.safetensors", "does not fit", "hidden.weight", "--model-args")
        self.refuse(command, DATA, words, "--model", MLP, "--weights", "w.safetensors")

    def test_missing_and_unknown_weights(self, project: Project, command: Command) -> None:
        state = self.weights()
        del state["head.bias"]
        save_file(state | {"heap.bias": torch.zeros(10)}, "w.safetensors")
        words = ("w.safetensors", "head.bias", "heap.bias")
        self.refuse(command, DATA, words, "--model", MLP, "--weights", "w.safetensors")

    def test_nan_weights(self, project: Project, command: Command) -> None:
        state = self.weights()
        state["head.bias"][3] = float("nan")
        save_file(state, "w.safetensors")
        words = ("class 3", "nan", "nothing was published")
        self.refuse(command, CHECK, words, "--model", MLP, "--weights", "w.safetensors")

    def test_no_weights_file(self, project: Project, command: Command) -> None:
        words = ("none.pt", "no such weights file", "--weights")
        self.refuse(command, USAGE, words, "--model", MLP, "--weights", "none.pt")

    def test_checkpoint_with_code(self, project: Project, command: Command) -> None:
        Path("w.pt").write_bytes(pickle.dumps(Bomb()))
        words = ("w.pt", "weights_only", "safetensors")
        self.refuse(command, DATA, words, "--model", MLP, "--weights", "w.pt")
        torch.save({"model": Bomb()}, "w.pt")
        self.refuse(command, DATA, words, "--model", MLP, "--weights", "w.pt")
        assert not Path("exploded").exists()

    @pytest.mark.parametrize(
        "content",
        [b"", b"hello", b"\x80\x04", bytes(range(256)), b"PK\x03\x04" + bytes(60), b"c\n\n", b"0"],
    )
    @pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
    def test_files_that_are_no_weights(
        self, project: Project, command: Command, name: str, content: bytes
    ) -> None:
        Path(name).write_bytes(content)
        self.refuse(command, DATA, (name, "save"), "--model", MLP, "--weights", name)

    def test_cut_checkpoint(self, project: Project, command: Command) -> None:
        torch.save(self.weights(), "w.pt")
        Path("w.pt").write_bytes(Path("w.pt").read_bytes()[:-300])
        self.refuse(command, DATA, ("w.pt", "save"), "--model", MLP, "--weights", "w.pt")

    def test_checkpoint_without_a_state_dict(self, project: Project, command: Command) -> None:
        torch.save({"epoch": 3, "net": self.weights()}, "w.pt")
        words = ("w.pt", "no state dict", "model.state_dict()")
        self.refuse(command, DATA, words, "--model", MLP, "--weights", "w.pt")

    def test_weights_that_are_a_folder(self, project: Project, command: Command) -> None:
        self.refuse(command, USAGE, ("data",), "--model", MLP, "--weights", "data")

    def test_unknown_models(self, project: Project, command: Command) -> None:
        torch.save(self.weights(), "w.pt")
        words = ("timm:resnet_18", "cannot be built")
        self.refuse(command, USAGE, words, "--model", "timm:resnet_18", "--weights", "w.pt")
        words = ("torchvision:resnet_18", "cannot be built")
        self.refuse(command, USAGE, words, "--model", "torchvision:resnet_18", "--weights", "w.pt")

    def test_what_is_missing_is_named_at_once(self, project: Project, command: Command) -> None:
        outcome = command("export", "--model", MLP, "--height", "8")
        names = ("weights", "classes", "width", "channels", "mean", "std")
        assert_refused(outcome, USAGE, *("--" + name for name in names), "student.json")
        assert "--height" not in outcome.stderr

    def test_class_name_twice(self, project: Project, command: Command) -> None:
        torch.save(self.weights(), "w.pt")
        flags = ("--model", MLP, "--weights", "w.pt", "--classes", "3")
        self.refuse(command, USAGE, ("'3' appears twice",), *flags)

    def test_samples_of_another_size(self, project: Project, command: Command) -> None:
        project.source("data/wide", shape=(8, 9, 1), shards=(20,))
        torch.save(self.weights(), "w.pt")
        flags = ("--model", MLP, "--weights", "w.pt", "--samples", "data/wide")
        self.refuse(command, DATA, ("data/wide", "8x9 with 1", "8x8 with 1"), *flags)

    def test_output_that_is_a_folder(self, project: Project, command: Command) -> None:
        torch.save(self.weights(), "w.pt")
        outcome = command(
            "export", *self.SPEC, "--model", MLP, "--weights", "w.pt", "--output", "models"
        )
        assert_refused(outcome, USAGE, "models")
        assert sorted(path.name for path in Path("models").iterdir()) == ["teacher.onnx"]


class Bomb:
    """Unpickled, it makes a folder: proof that a file's code ran."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("exploded",))


class TestOutputsInTheWay:
    """A file stands where a folder is wanted: the user's fault, not a bug of ours."""

    def test_students(self, project: Project, command: Command) -> None:
        Path("out").write_text("years of work")
        outcome = command(
            "train-student", "--model", MLP, "--epochs", "1", "--logger", "none", "--output", "out"
        )
        assert_refused(outcome, USAGE, "out")

    def test_prepare(self, project: Project, command: Command) -> None:
        Path("out").write_text("years of work")
        assert_refused(command("prepare", "--output", "out"), USAGE, "out")

    def test_evaluate(self, student: Project, command: Command) -> None:
        Path("out").write_text("years of work")
        outcome = command("evaluate", "--source", "data/train", "--output", "out")
        assert_refused(outcome, USAGE, "out")


@pytest.fixture
def student(project: Project, command: Command) -> Project:
    """The project with a label set and a student taught by it for one epoch."""
    assert command("infer", "--batch-size", "8", "--shard-rows", "128").code == 0
    assert command("train-student", *TAUGHT).code == 0
    return project


TAUGHT = (
    "--model",
    MLP,
    "--loss",
    "kd",
    "--labels",
    "labels",
    "--epochs",
    "1",
    "--logger",
    "none",
    "--output",
    "models/students/kd",
)


def test_labels_of_another_source(student: Project, command: Command) -> None:
    student.source("data/other", seed=1)
    outcome = command("train-student", *TAUGHT, "--source", "data/other")
    assert_refused(outcome, DATA, "labels", "data/other", "softlabel infer")


def test_unfinished_labels(student: Project, command: Command) -> None:
    Path("labels/labelset.json").unlink()
    outcome = command("train-student", *TAUGHT)
    assert_refused(outcome, DATA, "labels", "unfinished", "softlabel infer")


@pytest.mark.parametrize("damage", ["cut", "gone", "no receipt", "flipped"])
def test_damaged_labels(student: Project, command: Command, damage: str) -> None:
    shard = Path("labels/part-00001.parquet")
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        shard.write_bytes(content[:-1])
    elif damage == "gone":
        shard.unlink()
    elif damage == "no receipt":
        shard.with_suffix(".json").unlink()
    else:
        content[len(content) // 2] ^= 0x10
        shard.write_bytes(content)
    outcome = command("train-student", *TAUGHT)
    assert_refused(outcome, DATA, "part-00001.parquet", "softlabel infer")
    # The way out that it names leads out.
    assert command("infer", "--batch-size", "8", "--shard-rows", "128").code == 0
    assert command("train-student", *TAUGHT).code == 0


def test_edited_manifest(student: Project, command: Command) -> None:
    manifest = Path("labels/labelset.json")
    manifest.write_text(manifest.read_text().replace('"output": "logits"', '"output": "other"'))
    outcome = command("train-student", *TAUGHT)
    assert_refused(outcome, DATA, "labelset.json", "delete it", "softlabel infer")


def test_student_of_another_picture_size(student: Project, command: Command) -> None:
    student.source("data/wide", shape=(8, 9, 1), shards=(20,))
    outcome = command("evaluate", "--source", "data/wide")
    assert_refused(outcome, DATA, "8x8 with 1", "8x9 with 1", "student.json")


def test_students_weights_exchanged(student: Project, command: Command) -> None:
    other = (*TAUGHT[:-1], "models/other", "--seed", "1")
    assert command("train-student", *other).code == 0
    shutil.copy("models/other/student.safetensors", "models/students/kd/student.safetensors")
    outcome = command("evaluate", "--source", "data/train")
    assert_refused(outcome, DATA, "student.safetensors", "student.json", "train again")


def test_nothing_to_measure_on(student: Project, command: Command) -> None:
    student.source("data/bare", shards=(20,), labelled=False)
    outcome = command("evaluate", "--source", "data/bare")
    assert_refused(outcome, DATA, "data/bare", "no hard labels")


def test_debug_shows_the_traceback(project: Project) -> None:
    outcome = project.run("infer", "--teacher", "none.onnx", "--debug")
    assert outcome.code != 0
    assert "Traceback" in outcome.stderr


def test_external_data_outside_the_folder(project: Project, command: Command) -> None:
    path = Path("models/teacher.onnx")
    model = onnx.load(path)
    filters = next(tensor for tensor in model.graph.initializer if tensor.name == "filters")
    Path("secret").write_bytes(filters.raw_data)
    filters.ClearField("raw_data")
    filters.data_location = onnx.TensorProto.EXTERNAL
    filters.external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    assert_refused(command("infer"), DATA, "'../secret'", "same folder")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (('--provider-options={"use_arena": "0"}',), "device is 'auto'; name it"),
        (("--engine-cache=engines", "--device=cuda"), "engine_cache is of device 'tensorrt'"),
        (
            ("--device=cuda", '--provider-options={"enable_cuda_graph": "1"}'),
            "would replay the first batch's memory for every batch",
        ),
        (("--batch-size=auto", "--device=tensorrt"), "an engine for every size"),
    ],
)
def test_what_a_device_does_not_take(
    project: Project, command: Command, flags: tuple[str, ...], said: str
) -> None:
    refused = command("infer", *flags)
    assert refused.code == USAGE
    assert said in refused.stderr


def test_told_provider_options_stand_in_the_record(project: Project, command: Command) -> None:
    told = ("--device=cpu", '--provider-options={"arena_extend_strategy": "kSameAsRequested"}')
    assert command("infer", *told).code == 0
    record = json.loads(Path("labels/plan.json").read_text())["execution"]
    assert record["options"] == {"arena_extend_strategy": "kSameAsRequested"}
    Path("labels/part-00000.json").unlink()
    assert "options was {" in command("infer", "--device=cpu").stderr
