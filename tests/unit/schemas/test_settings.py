from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from softlabel.schemas.errors import ParameterError
from softlabel.schemas.params import (
    EvaluateParams,
    ExportParams,
    InferParams,
    Params,
    PrepareParams,
    TrainParams,
)
from softlabel.schemas.settings import load_section, section_model

Write = Callable[[str], Path]

STUDENT = """
train_student:
  model: nets:small
  epochs: 3
  runs:
    hard: {loss: hard}
    kd: {loss: kd, labels: labels, temperature: 8, epochs: 5}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_params(text: str) -> Path:
        path = tmp_path / "params.yaml"
        path.write_text(text)
        return path

    return write_params


def infer(file: Path | None, **flags: Any) -> InferParams:
    return load_section(InferParams, "infer", file, flags)


def student(file: Path | None, **flags: Any) -> TrainParams:
    return load_section(TrainParams, "train_student", file, flags)


def test_without_a_file_the_defaults_hold() -> None:
    assert infer(None) == InferParams()
    assert infer(None, batch_size=7).batch_size == 7


def test_the_file_goes_before_the_defaults_and_flags_before_the_file(write: Write) -> None:
    file = write("infer: {batch_size: 64, shard_rows: 128}\n")
    params = infer(file, shard_rows=256)
    assert (params.batch_size, params.shard_rows) == (64, 256)
    assert params.codec == InferParams().codec


def test_a_run_goes_before_its_section_and_flags_before_the_run(write: Write) -> None:
    file = write(STUDENT)
    assert (student(file).epochs, student(file).temperature) == (3, 4.0)
    kd = student(file, run="kd", temperature=2.0)
    assert (kd.loss, kd.labels, kd.epochs, kd.temperature) == ("kd", (Path("labels"),), 5, 2.0)
    hard = student(file, run="hard")
    assert (hard.loss, hard.epochs, hard.run) == ("hard", 3, "hard")


def test_the_file_may_choose_the_run_and_a_flag_another(write: Write) -> None:
    file = write(STUDENT + "  run: kd\n")
    assert student(file).temperature == 8
    assert student(file, run="hard").temperature == 4


@pytest.mark.parametrize("text", ["", "# nothing\n", "infer:\n", "infer: {}\n"])
def test_an_empty_file_or_section_is_the_defaults(write: Write, text: str) -> None:
    assert infer(write(text)) == InferParams()


def test_an_unknown_parameter_names_the_nearest(write: Write) -> None:
    file = write("infer: {batch_sise: 64}\n")
    wanted = r"params\.yaml: infer\.batch_sise: unknown parameter; did you mean 'batch_size'\?$"
    with pytest.raises(ParameterError, match=wanted):
        infer(file)


def test_a_parameter_like_no_other_lists_those_known(write: Write) -> None:
    file = write("infer: {qqqqqq: 1}\n")
    wanted = r"infer\.qqqqqq: unknown parameter; known: teacher, source, output, "
    with pytest.raises(ParameterError, match=wanted):
        infer(file)


def test_an_unknown_section_names_the_nearest(write: Write) -> None:
    file = write("train_studnt: {epochs: 1}\n")
    wanted = r"params\.yaml: train_studnt: unknown section; did you mean 'train_student'\?$"
    with pytest.raises(ParameterError, match=wanted):
        infer(file)


def test_an_unknown_run_names_the_nearest(write: Write) -> None:
    wanted = r"train_student\.runs has no 'hrad'; did you mean 'hard'\?$"
    with pytest.raises(ParameterError, match=wanted):
        student(write(STUDENT), run="hrad")
    with pytest.raises(ParameterError, match=r"runs has no 'kd'; known: none$"):
        student(write("train_student: {model: nets:small}\n"), run="kd")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("epochs: many", r"epochs: input should be a valid integer, .*, got 'many'"),
        ("epochs: 2.5", r"epochs: input should be a valid integer, .*, got 2\.5"),
        ("epochs: 0", r"epochs: input should be greater than or equal to 1, got 0"),
        ("epochs: [1]", r"epochs: input should be a valid integer, got \[1\]"),
        ("epochs:", r"epochs: input should be a valid integer, got None"),
        ("learning_rate: 0", r"learning_rate: input should be greater than 0, got 0"),
        ("learning_rate: .inf", r"learning_rate: input should be a finite number, got inf"),
        ("learning_rate: .nan", r"learning_rate: input should be .*, got nan"),
        ("soft_weight: 1.5", r"soft_weight: input should be less than or equal to 1, got 1\.5"),
        ("label_smoothing: 1", r"label_smoothing: input should be less than 1, got 1"),
        ("temperature: -4", r"temperature: input should be greater than 0, got -4"),
        (
            "loss: soft",
            r"loss: input should be 'hard', 'kd', 'dkd', 'dist', 'mse', 'reverse-kl' or 'js', "
            r"got 'soft'",
        ),
        ("std: [0.5, 0]", r"std\.1: input should be greater than 0, got 0"),
        ("model_args: 3", r"model_args: input should be a valid dictionary, got 3"),
        ("runs: [kd]", r"runs: input should be a valid dictionary, got \['kd'\]"),
        ("run: ../up", r"run: string should match pattern .*, got '\.\./up'"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(write: Write, text: str, problem: str) -> None:
    file = write(f"train_student:\n  model: nets:small\n  {text}\n")
    with pytest.raises(ParameterError, match=rf"params\.yaml: train_student\.{problem}$"):
        student(file)


def test_a_wrong_flag_is_named_without_a_file() -> None:
    wanted = r"^--batch-size: input should be .*, got 0$"
    with pytest.raises(ParameterError, match=wanted):
        infer(None, batch_size=0)


def test_all_problems_come_in_one_error(write: Write) -> None:
    file = write("infer: {batch_size: 0, codex: topk, shard_rows: x}\n")
    wanted = r"infer\.batch_size: .*; infer\.shard_rows: .*; infer\.codex: unknown .*'codec'\?"
    with pytest.raises(ParameterError, match=wanted) as caught:
        infer(file)
    assert "\n" not in str(caught.value)


def test_a_missing_value_says_where_to_give_it(write: Write) -> None:
    wanted = r"train_student\.model: is missing; set it there or pass --model$"
    with pytest.raises(ParameterError, match=wanted):
        student(write("train_student: {epochs: 3}\n"))
    assert student(write("train_student: {epochs: 3}\n"), model="nets:small").epochs == 3


def test_a_value_missing_from_another_section_is_no_error(write: Write) -> None:
    assert infer(write("train_student: {epochs: 3}\nexport: {opset: 20}\n")) == InferParams()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("epohcs: 3", r"train_student\.epohcs: unknown parameter; did you mean 'epochs'\?"),
        ("epochs: many", r"train_student\.epochs: input should be a valid integer"),
        ("runs: {kd: {epohcs: 3}}", r"train_student\.runs\.kd\.epohcs: unknown .* 'epochs'\?"),
        ("runs: {kd: {epochs: many}}", r"train_student\.runs\.kd\.epochs: input should be"),
        ("runs: {kd: 3}", r"train_student\.runs: input should be|runs\.kd: .* dictionary"),
    ],
)
def test_another_verb_sees_the_mistake_too(write: Write, text: str, problem: str) -> None:
    file = write(f"train_student:\n  model: nets:small\n  {text}\n")
    with pytest.raises(ParameterError, match=rf"params\.yaml: .*{problem}"):
        infer(file)


def test_kd_without_labels_is_refused_where_it_runs(write: Write) -> None:
    file = write("train_student:\n  model: nets:small\n  runs: {kd: {loss: kd}}\n")
    wanted = r"params\.yaml: train_student: loss is 'kd' and labels is not set; give --labels"
    with pytest.raises(ParameterError, match=wanted):
        student(file, run="kd")
    assert student(file, run="kd", labels="labels").labels == (Path("labels"),)
    assert student(file).loss == "hard"
    assert infer(file) == InferParams()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- infer\n", r"must be a mapping of sections, is a list"),
        ("infer\n", r"must be a mapping of sections, is a text"),
        ("infer: [1]\n", r"infer: must be a mapping, is a list"),
        ("infer: yes\n", r"infer: must be a mapping, is a boolean"),
        ("infer: {\n", r"is not YAML: "),
        ("infer: !!python/object/apply:os.getcwd []\n", r"is not YAML: "),
        ("infer: {1: 2}\n", r"infer\.1"),
    ],
)
def test_a_file_of_another_shape_is_refused_in_one_line(
    write: Write, text: str, problem: str
) -> None:
    with pytest.raises(ParameterError, match=rf"params\.yaml: {problem}") as caught:
        infer(write(text))
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"absent\.yaml: no such file; pass --params FILE"):
        infer(tmp_path / "absent.yaml")
    with pytest.raises(ParameterError, match="cannot be read"):
        infer(tmp_path)
    (tmp_path / "params.yaml").write_bytes(b"infer: \xff\n")
    with pytest.raises(ParameterError, match="cannot be read"):
        infer(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("prepare", PrepareParams),
        ("train_teacher", TrainParams),
        ("export", ExportParams),
        ("train_student", TrainParams),
        ("evaluate", EvaluateParams),
    ],
)
def test_section_model(name: str, model: type) -> None:
    assert section_model(name) is model


# What makes a label set out of others has no part in the demo.
@pytest.mark.parametrize("section", sorted(Params.model_fields.keys() - {"convert", "merge"}))
def test_the_projects_own_file_loads(repo_root: Path, section: str) -> None:
    file = repo_root / "params.yaml"
    loaded = load_section(section_model(section), section, file, {}).model_dump(mode="json")
    written = yaml.safe_load(file.read_text())[section]
    # A single path may stand for a list of one.
    assert all(loaded[name] in (value, [value]) for name, value in written.items())
