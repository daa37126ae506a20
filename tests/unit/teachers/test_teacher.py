import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from softlabel.pipeline.teachers.teacher import Teacher, open_teacher
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.params import InferParams
from softlabel.schemas.teacher import METADATA_KEY, Preprocess, TeacherSpec

SHAPE = (2, 3, 1)
CLASSES = ("ant", "bee")
SPEC = TeacherSpec(
    preprocess=Preprocess(
        height=2, width=3, channels=1, mean=(0.5,), std=(0.25,), layout="NHWC", in_graph=True
    ),
    classes=CLASSES,
    output="logits",
)
TOLD = InferParams(
    classes=CLASSES,
    output_name="logits",
    output_kind="logits",
    input_layout="NCHW",
    mean=(0.5,),
    std=(0.25,),
)


def float_input(*shape: int | str, name: str = "x", kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def make_model(
    inputs: list[Any] | None = None,
    outputs: tuple[str, ...] = ("logits",),
    width: int | str | None = 2,
    metadata: str | None = None,
) -> onnx.ModelProto:
    """Flatten, then one matrix; `weights` is its only initializer."""
    inputs = inputs or [float_input("n", 1, 2, 3)]
    floats = helper.make_node("Cast", [inputs[0].name], ["floats"], to=TensorProto.FLOAT)
    nodes = [floats, helper.make_node("Flatten", ["floats"], ["flat"])]
    nodes += [helper.make_node("MatMul", ["flat", "weights"], [name]) for name in outputs]
    shape = None if width is None else ["n", width]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "teacher",
            inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
            initializer=[numpy_helper.from_array(np.ones((6, 2), np.float32), "weights")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    if metadata is not None:
        helper.set_model_props(model, {METADATA_KEY: metadata})
    return model


def own(**changes: Any) -> onnx.ModelProto:
    uint8 = float_input("n", 2, 3, 1, kind=TensorProto.UINT8)
    return make_model([uint8], metadata=SPEC.model_copy(update=changes).model_dump_json())


def opened(
    path: Path, model: onnx.ModelProto, told: InferParams | None = None, shape: Any = SHAPE
) -> Teacher:
    path.write_bytes(model.SerializeToString())
    return open_teacher(path, told or InferParams(), shape)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "teacher.onnx"


def test_our_own_file_tells_everything(path: Path) -> None:
    teacher = opened(path, own())
    assert teacher.spec == SPEC
    assert (teacher.path, teacher.input_name, teacher.fixed_batch) == (path, "x", None)
    assert teacher.sha256 == (hashlib.sha256(path.read_bytes()).hexdigest(),)


def test_a_fixed_batch_is_told(path: Path) -> None:
    assert opened(path, make_model([float_input(16, 1, 2, 3)]), TOLD).fixed_batch == 16


def test_anybodys_file_takes_what_is_told(path: Path) -> None:
    teacher = opened(path, make_model(), TOLD)
    assert teacher.spec.classes == CLASSES
    assert teacher.spec.output == "logits"
    wanted = Preprocess(height=2, width=3, channels=1, mean=(0.5,), std=(0.25,), layout="NCHW")
    assert teacher.spec.preprocess == wanted


def test_free_picture_axes_take_the_sources_size(path: Path) -> None:
    teacher = opened(path, make_model([float_input("n", 1, "h", "w")]), TOLD)
    assert teacher.spec.preprocess is not None and teacher.spec.preprocess.shape == SHAPE


def test_axes_follow_the_layout_told(path: Path) -> None:
    told = TOLD.model_copy(update={"input_layout": "NHWC"})
    teacher = opened(path, make_model([float_input("n", 2, 3, 1)]), told)
    assert teacher.spec.preprocess is not None and teacher.spec.preprocess.shape == SHAPE


def test_the_only_output_and_uint8_arithmetic_need_not_be_told(path: Path) -> None:
    told = InferParams(classes=CLASSES, output_kind="logits", input_layout="NHWC")
    model = make_model([float_input("n", 2, 3, 1, kind=TensorProto.UINT8)], outputs=("scores",))
    teacher = opened(path, model, told)
    assert teacher.spec.output == "scores"
    assert teacher.spec.preprocess is not None and teacher.spec.preprocess.in_graph


def test_one_error_names_all_that_is_missing(path: Path) -> None:
    wanted = (
        r"teacher\.onnx: has no softlabel metadata and its classes, output name, output kind, "
        r"input layout, mean, std cannot be known; pass --classes, --output-name, --output-kind, "
        r"--input-layout, --mean, --std \(outputs of the file: logits, features\)$"
    )
    with pytest.raises(ParameterError, match=wanted):
        opened(path, make_model(outputs=("logits", "features")))


def test_only_what_is_missing_is_named(path: Path) -> None:
    told = TOLD.model_copy(update={"mean": (), "input_layout": None})
    with pytest.raises(
        ParameterError, match="its input layout, mean cannot be known; pass --input-layout, --m"
    ):
        opened(path, make_model(), told)


def test_what_is_told_must_fit_the_channels(path: Path) -> None:
    told = TOLD.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    wanted = "what params say of this file is wrong: mean has 3 values for 1 channels"
    with pytest.raises(ParameterError, match=wanted):
        opened(path, make_model(), told)


def test_classes_told_twice_are_refused(path: Path) -> None:
    told = TOLD.model_copy(update={"classes": ("ant", "ant")})
    with pytest.raises(ParameterError, match="class name 'ant' appears twice"):
        opened(path, make_model(), told)


def test_our_own_file_is_not_contradicted(path: Path) -> None:
    told = InferParams(classes=CLASSES, mean=(0.5,))
    with pytest.raises(ParameterError, match=r"carries its own .* classes, mean wou"):
        opened(path, own(), told)


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ("{", "Invalid JSON"),
        ("[]", "valid dictionary|object"),
        ("{}", r"classes: Field required"),
        (SPEC.model_dump_json().replace('"NHWC"', '"CHWN"'), r"preprocess\.layout"),
        (SPEC.model_dump_json().replace("0.25", "0"), "std must be above 0"),
        (SPEC.model_dump_json().replace('"bee"', '"ant"'), "'ant' appears twice"),
        (SPEC.model_dump_json().replace('"format_version":1', '"format_version":2'), "version"),
        (SPEC.model_dump_json().replace('"opset"', '"opsets"'), "opsets"),
        (SPEC.model_dump_json().replace('"logits"', '"guesses"'), "output_kind"),
    ],
)
def test_damaged_metadata_is_named(path: Path, metadata: str, problem: str) -> None:
    model = make_model(metadata=metadata)
    wanted = (
        rf"teacher\.onnx: its softlabel metadata is damaged .*{problem}.*export the model again"
    )
    with pytest.raises(DataError, match=wanted):
        opened(path, model)


def test_a_missing_file_is_a_parameter_error(path: Path) -> None:
    with pytest.raises(ParameterError, match=r"teacher\.onnx: no such teacher file; make one with"):
        open_teacher(path, TOLD, SHAPE)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("teacher.onnx", b""),
        ("teacher.onnx", b"hello"),
        ("teacher.onnx", b"PK\x03\x04"),
        ("student.json", b'{"format_version": 1}'),
        ("student.json", b"{"),
        ("notes.txt", b"hello"),
        ("teacher.onnxtxt", b"hello"),
    ],
)
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: is no ONNX file; make one with"):
        open_teacher(path, TOLD, SHAPE)


def test_a_cut_file_is_refused(path: Path) -> None:
    data = own().SerializeToString()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"teacher\.onnx: "):
        open_teacher(path, InferParams(), SHAPE)


@pytest.mark.parametrize(
    "inputs",
    [
        [float_input("n", 6)],
        [float_input("n", 1, 2, 3), float_input("n", name="mask")],
    ],
)
def test_a_teacher_of_pictures_has_one_input(path: Path, inputs: list[Any]) -> None:
    with pytest.raises(ParameterError, match="has one input of four axes, this one has: x"):
        opened(path, make_model(inputs), TOLD)


def test_an_initializer_among_the_inputs_is_no_input(path: Path) -> None:
    inputs = [float_input("n", 1, 2, 3), float_input(6, 2, name="weights")]
    assert opened(path, make_model(inputs), TOLD).input_name == "x"


def test_an_input_of_another_type_is_refused(path: Path) -> None:
    model = make_model([float_input("n", 1, 2, 3, kind=TensorProto.DOUBLE)])
    with pytest.raises(DataError, match="input 'x' is neither uint8 nor float32"):
        opened(path, model, TOLD)


def test_an_output_that_is_not_there_lists_those_that_are(path: Path) -> None:
    told = TOLD.model_copy(update={"output_name": "scores"})
    with pytest.raises(DataError, match="has no output 'scores'; its outputs are logits, features"):
        opened(path, make_model(outputs=("logits", "features")), told)


def test_an_output_of_another_width_is_refused(path: Path) -> None:
    wanted = r"output 'logits' has shape \[\?, 5\], 2 class names were given"
    with pytest.raises(DataError, match=wanted):
        opened(path, make_model(width=5), TOLD)


@pytest.mark.parametrize("width", [2, "classes", None])
def test_an_output_of_unknown_width_is_taken(path: Path, width: int | str | None) -> None:
    assert opened(path, make_model(width=width), TOLD).spec.classes == CLASSES


def outside(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    """The weights moved into a file named `location`."""
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    entry = weights.external_data.add()
    entry.key, entry.value = "location", location
    return model


def test_external_data_beside_the_file_is_part_of_the_teacher(path: Path) -> None:
    data = path.parent / "weights.bin"
    data.write_bytes(bytes(48))
    teacher = opened(path, outside(make_model(), "weights.bin"), TOLD)
    assert teacher.sha256 == tuple(
        hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, data)
    )


@pytest.mark.parametrize("location", ["../weights.bin", "sub/weights.bin", "absent.bin", "/{}"])
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        (place / "weights.bin").write_bytes(bytes(48))
    location = location.format(str(tmp_path / "weights.bin").removeprefix("/"))
    with pytest.raises(DataError, match=r"its external data .* is not a file in the same folder"):
        opened(folder / "teacher.onnx", outside(make_model(), location), TOLD)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(48))
    (folder / "weights.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r"its external data 'weights\.bin' is not a file"):
        opened(folder / "teacher.onnx", outside(make_model(), "weights.bin"), TOLD)


def test_external_data_of_a_constant_is_part_of_the_teacher(path: Path) -> None:
    data = path.parent / "weights.bin"
    data.write_bytes(bytes(48))
    model = outside(make_model(), "weights.bin")
    constant = helper.make_node("Constant", [], ["weights"], value=model.graph.initializer.pop())
    model.graph.node.insert(0, constant)
    teacher = opened(path, model, TOLD)
    assert hashlib.sha256(data.read_bytes()).hexdigest() in teacher.sha256
