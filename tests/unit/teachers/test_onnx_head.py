"""Finding the linear layer at the end of a graph: written by hand in every form, and refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.teachers.head import LinearEnd, checking_head, find_head
from softlabel.schemas.errors import DataError
from softlabel.schemas.sample import TeacherOutput

ROWS, WIDTH, CLASSES = 5, 4, 7
Floats = npt.NDArray[np.float32]
Nodes = list[onnx.NodeProto]
RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.normal(size=(CLASSES, WIDTH)).astype(np.float32)
BIAS = RANDOM.normal(size=CLASSES).astype(np.float32)
INPUT = RANDOM.normal(size=(ROWS, WIDTH)).astype(np.float32)
node = helper.make_node


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Any],
    dtype: int = TensorProto.FLOAT,
) -> Path:
    """A graph whose features are twice its input `x`, under the name `h`."""
    cast = [node("Cast", ["x"], ["x_as"], to=dtype), node("Add", ["x_as", "x_as"], ["h"])]
    graph = helper.make_graph(
        [*cast, *nodes],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, WIDTH])],
        [onnx.ValueInfoProto(name="logits")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def run(end: LinearEnd) -> TeacherOutput:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    inner, providers = end.inner, ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(inner.model, options, providers=providers)
    logits, features = session.run(["logits", inner.name], {"x": INPUT})
    features = features.T if inner.transposed else features
    return TeacherOutput(logits.astype(np.float32), features.astype(np.float32))


def assert_found(path: Path, tolerance: float = 1e-5) -> LinearEnd:
    before = path.read_bytes()
    end = find_head(path, "logits", CLASSES)
    assert path.read_bytes() == before
    assert end.head.weight.shape == (CLASSES, WIDTH)
    assert end.head.weight.dtype == end.head.bias.dtype == np.float32
    output = run(end)
    assert output.features is not None
    assert output.features == pytest.approx(2 * INPUT, abs=1e-2)
    scale = float(np.abs(output.logits).max())
    assert end.head.logits(output.features) == pytest.approx(output.logits, abs=tolerance * scale)
    return end


GEMM = {"w": WEIGHT.T, "b": BIAS}
FORMS: dict[str, tuple[Nodes, dict[str, Any]]] = {
    "Gemm": ([node("Gemm", ["h", "w", "b"], ["logits"])], GEMM),
    "Gemm transB": (
        [node("Gemm", ["h", "w", "b"], ["logits"], transB=1)],
        {"w": WEIGHT, "b": BIAS},
    ),
    "Gemm scaled": ([node("Gemm", ["h", "w", "b"], ["logits"], alpha=0.5, beta=3.0)], GEMM),
    "Gemm without bias": ([node("Gemm", ["h", "w"], ["logits"])], GEMM),
    "Gemm with a bias row": (
        [node("Gemm", ["h", "w", "b"], ["logits"])],
        {**GEMM, "b": BIAS[None]},
    ),
    "Gemm with one bias": (
        [node("Gemm", ["h", "w", "b"], ["logits"])],
        {**GEMM, "b": np.float32(0.5)},
    ),
    "Gemm transA": (
        [
            node("Transpose", ["h"], ["columns"], perm=[1, 0]),
            node("Gemm", ["columns", "w", "b"], ["logits"], transA=1),
        ],
        GEMM,
    ),
    "MatMul": ([node("MatMul", ["h", "w"], ["logits"])], GEMM),
    "MatMul, Add": (
        [node("MatMul", ["h", "w"], ["m"]), node("Add", ["m", "b"], ["logits"])],
        GEMM,
    ),
    "Add before MatMul's result": (
        [node("MatMul", ["h", "w"], ["m"]), node("Add", ["b", "m"], ["logits"])],
        GEMM,
    ),
    "Gemm, Add": (
        [node("Gemm", ["h", "w", "b"], ["m"]), node("Add", ["m", "more"], ["logits"])],
        {**GEMM, "more": 2 * BIAS},
    ),
    "a transposed weight": (
        [
            node("Transpose", ["w"], ["turned"], perm=[1, 0]),
            node("MatMul", ["h", "turned"], ["m"]),
            node("Add", ["m", "b"], ["logits"]),
        ],
        {"w": WEIGHT, "b": BIAS},
    ),
    "Constant nodes": (
        [
            node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT.T.copy())),
            node("Constant", [], ["b"], value=numpy_helper.from_array(BIAS)),
            node("Gemm", ["h", "w", "b"], ["logits"]),
        ],
        {},
    ),
    "Identity and Dropout": (
        [
            node("Identity", ["w"], ["v"]),
            node("MatMul", ["h", "v"], ["m"]),
            node("Identity", ["m"], ["same"]),
            node("Add", ["same", "b"], ["sum"]),
            node("Dropout", ["sum"], ["logits"]),
        ],
        GEMM,
    ),
    "a cast behind": (
        [
            node("Gemm", ["h", "w", "b"], ["m"]),
            node("Cast", ["m"], ["wide"], to=TensorProto.DOUBLE),
            node("Cast", ["wide"], ["logits"], to=TensorProto.FLOAT),
        ],
        GEMM,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_linear_layer(tmp_path: Path, form: str) -> None:
    nodes, constants = FORMS[form]
    assert_found(write(tmp_path / "m.onnx", nodes, constants))


def test_the_features_are_the_inputs_of_the_layer_and_no_others(tmp_path: Path) -> None:
    end = assert_found(write(tmp_path / "m.onnx", *FORMS["Gemm"]))
    assert end.inner.name == "h"
    assert np.array_equal(end.head.weight, WEIGHT)
    assert np.array_equal(end.head.bias, BIAS)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_a_head_of_another_floating_type_that_float32_holds(tmp_path: Path, dtype: int) -> None:
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = [
        node("Gemm", ["h", "w", "b"], ["m"]),
        node("Cast", ["m"], ["logits"], to=TensorProto.FLOAT),
    ]
    constants = {"w": WEIGHT.T.astype(kind), "b": BIAS.astype(kind)}
    assert_found(write(tmp_path / "m.onnx", nodes, constants, dtype), 1e-3)


def test_weights_in_external_data(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", *FORMS["Gemm"])
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size > 0
    end = find_head(path, "logits", CLASSES)
    assert np.array_equal(end.head.weight, WEIGHT)
    assert np.array_equal(end.head.bias, BIAS)


def test_features_that_are_an_output_already(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", *FORMS["Gemm"])
    model = onnx.load(path)
    model.graph.output.append(onnx.ValueInfoProto(name="h"))
    path.write_bytes(model.SerializeToString())
    assert_found(path)


LONG = np.float64(1) / 3
REFUSED: dict[str, tuple[Nodes, dict[str, Any], str]] = {
    "a softmax": (
        [node("Gemm", ["h", "w", "b"], ["m"]), node("Softmax", ["m"], ["logits"])],
        GEMM,
        "its logits are made by Softmax",
    ),
    "a scale": (
        [node("Gemm", ["h", "w", "b"], ["m"]), node("Mul", ["m", "t"], ["logits"])],
        {**GEMM, "t": np.float32(0.1)},
        "its logits are made by Mul",
    ),
    "a convolution": (
        [
            node("Unsqueeze", ["h", "axes"], ["picture"]),
            node("Conv", ["picture", "filters"], ["maps"]),
            node("Flatten", ["maps"], ["logits"]),
        ],
        {"axes": np.asarray([2, 3]), "filters": WEIGHT[:, :, None, None]},
        "its logits are made by Flatten of Conv",
    ),
    "a sum of two branches": (
        [
            node("MatMul", ["h", "w"], ["m"]),
            node("MatMul", ["h", "w"], ["n"]),
            node("Add", ["m", "n"], ["logits"]),
        ],
        GEMM,
        "an Add of two computed tensors",
    ),
    "a normalised weight": (
        [
            node("ReduceL2", ["w"], ["length"], axes=None),
            node("Div", ["w", "length"], ["unit"]),
            node("MatMul", ["h", "unit"], ["logits"]),
        ],
        GEMM,
        "weights of its last MatMul are not in the file but made at run time by Div",
    ),
    "a quantised weight": (
        [
            node("DequantizeLinear", ["q", "scale"], ["w"]),
            node("MatMul", ["h", "w"], ["logits"]),
        ],
        {"q": np.ones((WIDTH, CLASSES), np.int8), "scale": np.float32(0.1)},
        "made at run time by DequantizeLinear",
    ),
    "a bias of the picture": (
        [
            node("MatMul", ["h", "w"], ["own"]),
            node("Gemm", ["h", "w", "own"], ["logits"]),
        ],
        GEMM,
        "the bias of its last Gemm is made at run time by MatMul",
    ),
    "weights on the left": (
        [
            node("Transpose", ["h"], ["columns"], perm=[1, 0]),
            node("MatMul", ["w", "columns"], ["logits"]),
        ],
        {"w": WEIGHT},
        "made at run time by Transpose of Add",
    ),
    "weights beyond float32": (
        [node("Gemm", ["h", "w"], ["logits"])],
        {"w": WEIGHT.T * LONG},
        "the weight of its last layer is float64, beyond float32",
    ),
    "an integer cast": (
        [
            node("Gemm", ["h", "w", "b"], ["m"]),
            node("Cast", ["m"], ["logits"], to=TensorProto.INT64),
        ],
        GEMM,
        "its logits are made by Cast",
    ),
    "as many inputs as classes": (
        [node("Gemm", ["h", "w"], ["logits"])],
        {"w": np.ones((CLASSES, CLASSES), np.float32)},
        "has 7 inputs for 7 classes",
    ),
    "other outputs": (
        [node("Gemm", ["h", "w"], ["logits"])],
        {"w": np.ones((WIDTH, 9), np.float32)},
        "has 9 outputs for 7 classes",
    ),
    "a bias of another shape": (
        [node("MatMul", ["h", "w"], ["m"]), node("Add", ["m", "b"], ["logits"])],
        {**GEMM, "b": BIAS[:, None]},
        r"the bias of its last layer has shape \[7, 1\]",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_anything_else_is_named(tmp_path: Path, fault: str) -> None:
    nodes, constants, said = REFUSED[fault]
    path = write(tmp_path / "m.onnx", nodes, constants)
    with pytest.raises(DataError, match=said) as caught:
        find_head(path, "logits", CLASSES)
    assert str(caught.value).startswith(f"{path}: codec factored needs")
    assert str(caught.value).endswith("; pass --codec dense-f16")


def test_another_domain_s_operator_is_no_linear_layer(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["h", "w"], ["logits"], domain="com.example")]
    path = write(tmp_path / "m.onnx", nodes, GEMM)
    with pytest.raises(DataError, match=r"made by com\.example\.MatMul"):
        find_head(path, "logits", CLASSES)


def outputs(change: float) -> TeacherOutput:
    logits = Head(WEIGHT, BIAS).logits(INPUT)
    logits[2, 3] += change
    return TeacherOutput(logits, INPUT)


def says(output: TeacherOutput, pixels: npt.NDArray[np.uint8]) -> TeacherOutput:
    return output


def test_a_head_that_makes_the_logits_passes() -> None:
    largest = float(np.abs(outputs(0).logits).max())
    for change in (0.0, 0.9e-3 * largest, -0.9e-3 * largest):
        checked = checking_head(partial(says, outputs(change)), Head(WEIGHT, BIAS), Path("m"))
        assert checked(np.zeros(0, np.uint8)).features is INPUT


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_head_that_does_not_make_the_logits_is_refused_with_the_difference(sign: int) -> None:
    change = sign * 2e-3 * float(np.abs(outputs(0).logits).max())
    checked = checking_head(lambda pixels: outputs(change), Head(WEIGHT, BIAS), Path("m.onnx"))
    with pytest.raises(
        DataError, match=rf"m\.onnx: .*differs from its logits by {abs(change):.3g}"
    ):
        checked(np.zeros(0, np.uint8))


def test_only_the_first_batch_is_checked() -> None:
    batches = iter([outputs(0), outputs(100)])
    checked = checking_head(lambda pixels: next(batches), Head(WEIGHT, BIAS), Path("m.onnx"))
    checked(np.zeros(0, np.uint8))
    assert checked(np.zeros(0, np.uint8)).logits[2, 3] > 50


def test_a_batch_of_empty_sequences_proves_nothing() -> None:
    wrong = outputs(100)
    batches = iter([wrong.take(np.arange(0)), wrong])
    checked = checking_head(lambda pixels: next(batches), Head(WEIGHT, BIAS), Path("m.onnx"))
    checked(np.zeros(0, np.uint8))
    with pytest.raises(DataError, match="differs from its logits by 100"):
        checked(np.zeros(0, np.uint8))


def test_a_masked_class_must_be_masked_by_the_head() -> None:
    masked = BIAS.copy()
    masked[1] = -np.inf
    output = TeacherOutput(Head(WEIGHT, masked).logits(INPUT), INPUT)
    pixels = np.zeros(0, np.uint8)
    assert checking_head(lambda _: output, Head(WEIGHT, masked), Path("m"))(pixels) is output
    with pytest.raises(DataError, match="differs from its logits by inf"):
        checking_head(lambda _: output, Head(WEIGHT, BIAS), Path("m"))(pixels)


def test_a_row_that_is_no_number_is_left_to_the_one_who_names_its_key() -> None:
    output = outputs(0)
    output.logits[0, 0] = np.nan
    checked = checking_head(lambda pixels: output, Head(WEIGHT, BIAS), Path("m"))
    assert checked(np.zeros(0, np.uint8)) is output
