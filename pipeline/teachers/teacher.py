"""Opening a teacher: an ONNX file with our metadata, or anybody's with what params tell of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from softlabel.pipeline.publish import file_sha256
from softlabel.pipeline.teachers.graph_inputs import (
    dimensions,
    graph_inputs,
    number_inputs,
    picture_input,
    weight_type,
)
from softlabel.pipeline.teachers.positions import count_classes, find_grid
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import Identity
from softlabel.schemas.params import InferParams, PlanParams
from softlabel.schemas.teacher import METADATA_KEY, Grid, TeacherSpec

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class Teacher:
    """An opened teacher file.

    input_name: of the pictures, None where it takes numbers by name. fixed_batch: the batch size
    its graph insists on, or None. precision: the type of most of its weights. narrow: it takes
    pictures in float16 or bfloat16, or gives what NumPy has no type for.
    """

    path: Path
    sha256: tuple[str, ...]
    spec: TeacherSpec
    input_name: str | None
    fixed_batch: int | None
    precision: str
    narrow: bool


def open_teacher(
    path: Path, told: InferParams | PlanParams, shape: tuple[int, int, int] | None
) -> Teacher:
    """Read the teacher's file and metadata; `shape` is height, width, channels of stored pictures.

    The file's own size goes first, `shape` only fills what it leaves open; None where pictures are
    encoded and may have any size: then what the file leaves open must be told. A file without our
    metadata takes preprocessing, classes, output and output kind from `told`; one error names all
    that is missing. Raises ParameterError, DataError.
    """
    model = _load(path)
    entry = picture_input(model)
    metadata = _metadata(model)
    if METADATA_KEY in metadata:
        spec = _own_spec(path, metadata[METADATA_KEY], told)
    elif entry is None:
        spec = _told_numbers(path, model, told)
    else:
        spec = _told_spec(path, model, entry, told, shape)
    _check_output(path, model, spec)
    return _opened(path, model, spec, _hashes(path, model))


def carries_metadata(path: Path) -> bool:
    """Whether the teacher's file says itself what params would tell. Raises as `open_teacher`."""
    return METADATA_KEY in _metadata(_load(path))


def telling_nothing(told: InferParams | PlanParams) -> InferParams | PlanParams:
    """The parameters without what they tell of a file that has no metadata."""
    fields = type(told).model_fields
    return told.model_copy(update={name: fields[name].get_default() for name in _TOLD})


def reopen_teacher(path: Path, identity: Identity) -> Teacher:
    """The teacher that labelled a set, by what the set's identity says of it.

    Raises ParameterError, and DataError where the file is another than the one recorded.
    """
    model = _load(path)
    hashes = _hashes(path, model)
    if hashes != identity.teacher_sha256:
        raise DataError(
            f"{path}: is not the teacher that made these labels (other SHA-256); pass the file "
            "that labelled them"
        )
    classes = _own_classes(path, model, identity)
    spec = TeacherSpec(
        preprocess=identity.preprocess,
        inputs=identity.inputs,
        classes=classes,
        output=identity.output,
        output_kind=identity.output_kind,
        positions=identity.positions or None,
        grid=identity.grid,
    )
    return _opened(path, model, spec, hashes)


def _opened(
    path: Path, model: onnx.ModelProto, spec: TeacherSpec, hashes: tuple[str, ...]
) -> Teacher:
    """Raises DataError where the graph does not take what the spec says it is fed."""
    entry = picture_input(model)
    if spec.preprocess is not None and entry is None:
        found = (
            ", ".join(f"{entry.name}{dimensions(entry)}" for entry in graph_inputs(model)) or "none"
        )
        raise DataError(
            f"{path}: a picture teacher has one input of four axes, this one has: {found}; "
            "export the model again with one picture input"
        )
    if spec.inputs is not None and spec.inputs != number_inputs(path, model):
        raise DataError(
            f"{path}: its inputs are not those that are said of it; export the model again"
        )
    batches = {dimensions(one)[0] if dimensions(one) else None for one in graph_inputs(model)}
    fixed = next((size for size in batches if size is not None), None)
    name = None if entry is None or spec.preprocess is None else entry.name
    precision = weight_type(model)
    return Teacher(path, hashes, spec, name, fixed, precision, _is_narrow(model, spec, precision))


def _is_narrow(model: onnx.ModelProto, spec: TeacherSpec, precision: str) -> bool:
    import onnx

    kinds = onnx.TensorProto
    outputs = {one.name: one.type.tensor_type.elem_type for one in model.graph.output}
    if precision == "bfloat16" or outputs.get(spec.output) == kinds.BFLOAT16:
        return True
    entry = picture_input(model)
    return entry is not None and entry.type.tensor_type.elem_type in (kinds.FLOAT16, kinds.BFLOAT16)


def _no_pictures(model: onnx.ModelProto) -> str:
    found = ", ".join(f"{one.name}{_axes(dimensions(one))}" for one in graph_inputs(model))
    return f"a picture teacher has one input of four axes, this one has: {found or 'none'}"


def _own_classes(path: Path, model: onnx.ModelProto, identity: Identity) -> tuple[str, ...]:
    """The teacher's classes, of which a set may keep only some; by number where it names none."""
    if identity.class_map is None:
        return identity.classes
    metadata = _metadata(model)
    if METADATA_KEY in metadata:
        return _parse_spec(path, metadata[METADATA_KEY]).classes
    width = count_classes(_output_axes(model, identity.output)[1:], identity.grid)
    return identity.classes if width is None else tuple(str(number) for number in range(width))


def _load(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ParameterError(
            f"{path}: no such teacher file; make one with 'softlabel export' or pass --teacher"
        )
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        model = onnx.ModelProto()
    if not model.graph.node:
        raise DataError(f"{path}: is no ONNX file; make one with 'softlabel export'")
    return model


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _own_spec(path: Path, text: str, told: InferParams | PlanParams) -> TeacherSpec:
    given = [name for name in _TOLD if getattr(told, name)]
    if given:
        raise ParameterError(
            f"{path}: carries its own metadata, and {', '.join(given)} would contradict it; "
            "remove what you set, or export the model again"
        )
    return _parse_spec(path, text)


def _parse_spec(path: Path, text: str) -> TeacherSpec:
    try:
        return TeacherSpec.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise DataError(
            f"{path}: its softlabel metadata is damaged ({where}: {problem['msg']}); "
            "export the model again"
        ) from error


_OF_PICTURES = ("input_layout", "mean", "std", "height", "width", "resize", "interpolation")
_TOLD = ("classes", "output_name", "output_kind", *_OF_PICTURES)


def _told_numbers(
    path: Path, model: onnx.ModelProto, told: InferParams | PlanParams
) -> TeacherSpec:
    given = [name for name in _OF_PICTURES if getattr(told, name)]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ParameterError(
            f"{path}: {_no_pictures(model)}, and {flags} are of pictures; leave them out where it "
            "takes numbers by name, or export the model again with one picture input"
        )
    inputs = number_inputs(path, model)
    settled = {*_OF_PICTURES, *(("output_name",) if len(model.graph.output) == 1 else ())}
    _refuse_missing(path, model, told, settled)
    output = told.output_name or model.graph.output[0].name
    fields: dict[str, Any] = {
        "inputs": inputs,
        "classes": told.classes,
        "output": output,
        "output_kind": told.output_kind,
        "positions": _speaks_of_positions(model, output),
    }
    return _validated(path, fields)


def _told_spec(
    path: Path,
    model: onnx.ModelProto,
    entry: onnx.ValueInfoProto,
    told: InferParams | PlanParams,
    shape: tuple[int, int, int] | None,
) -> TeacherSpec:
    import onnx

    outputs = [output.name for output in model.graph.output]
    kinds, taken = onnx.TensorProto, entry.type.tensor_type.elem_type
    takes_uint8 = taken == kinds.UINT8
    if taken not in (kinds.UINT8, kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16):
        raise DataError(
            f"{path}: input {entry.name!r} is neither uint8 nor float32, float16 or bfloat16; "
            "export it as one of them"
        )
    settled = {"resize", "interpolation"} | ({"mean", "std"} if takes_uint8 else set())
    sizes = _picture_sizes(entry, told, shape)
    settled |= {name for name in ("height", "width") if sizes[name] is not None}
    if len(outputs) == 1:
        settled.add("output_name")
    _refuse_missing(path, model, told, settled)
    channels = sizes["channels"] or 3
    output = told.output_name or outputs[0]
    grid = _told_grid(path, model, output, told, sizes)
    fields: dict[str, Any] = {
        "preprocess": {
            "height": sizes["height"],
            "width": sizes["width"],
            "channels": channels,
            "resize": told.resize,
            "interpolation": told.interpolation,
            "mean": told.mean or (0.0,) * channels,
            "std": told.std or (1.0,) * channels,
            "layout": told.input_layout,
            "in_graph": takes_uint8,
        },
        "classes": told.classes,
        "output": output,
        "output_kind": told.output_kind,
        "positions": None if grid is None else True,
        "grid": grid,
    }
    return _validated(path, fields)


def _told_grid(
    path: Path,
    model: onnx.ModelProto,
    output: str,
    told: InferParams | PlanParams,
    sizes: Mapping[str, int | None],
) -> Grid | None:
    """How positions lie in an output that speaks of them; None where it has two axes."""
    axes = _output_axes(model, output)
    if len(axes) < 3:
        return None
    height, width = sizes["height"], sizes["width"]
    assert height is not None
    assert width is not None
    grid = find_grid(axes[1:], len(told.classes), height, width)
    if grid is None:
        raise DataError(
            f"{path}: output {output!r} has shape {_axes(axes)}, and with the {len(told.classes)} "
            "class names that were given an output of a picture's positions is [batch, classes, "
            "height, width], or with the classes last; name the classes of that output, and where "
            "axes are open fix them with onnxruntime.tools.make_dynamic_shape_fixed"
        )
    return grid


def _refuse_missing(
    path: Path, model: onnx.ModelProto, told: InferParams | PlanParams, settled: set[str]
) -> None:
    missing = [name for name in _TOLD if name not in settled and not getattr(told, name)]
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        outputs = ", ".join(output.name for output in model.graph.output)
        raise ParameterError(
            f"{path}: has no softlabel metadata and its {_words(missing)} cannot be known; "
            f"pass {flags} (outputs of the file: {outputs})"
        )


def _validated(path: Path, fields: dict[str, Any]) -> TeacherSpec:
    try:
        return TeacherSpec.model_validate(fields)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ParameterError(f"{path}: what params say of this file is wrong: {reason}") from error


def _picture_sizes(
    entry: onnx.ValueInfoProto,
    told: InferParams | PlanParams,
    shape: tuple[int, int, int] | None,
) -> dict[str, int | None]:
    """What the graph says of its pictures, else what was told, else what the stored ones are."""
    axes = dimensions(entry)[1:]
    order = (0, 1, 2) if told.input_layout == "NHWC" else (1, 2, 0)
    said = {"height": told.height, "width": told.width, "channels": None}
    return {
        name: axes[axis] or said[name] or (None if shape is None else shape[place])
        for place, (name, axis) in enumerate(zip(said, order, strict=True))
    }


def _check_output(path: Path, model: onnx.ModelProto, spec: TeacherSpec) -> None:
    outputs = {output.name: output for output in model.graph.output}
    if spec.output not in outputs:
        raise DataError(
            f"{path}: has no output {spec.output!r}; its outputs are {', '.join(outputs)}; "
            "pass --output-name or export again"
        )
    axes = dimensions(outputs[spec.output])
    if spec.grid is not None and spec.preprocess is not None:
        _check_grid(path, axes, spec, spec.grid)
        return
    width = axes[-1] if axes else None
    wanted = ["batch", "length", "classes"] if spec.positions else ["batch", "classes"]
    if axes and (len(axes) != len(wanted) or width not in (None, len(spec.classes))):
        raise DataError(
            f"{path}: output {spec.output!r} has shape {_axes(axes)}, "
            f"{len(spec.classes)} class names were given; they must agree as "
            f"[{', '.join(wanted)}]"
        )


def _check_grid(path: Path, axes: list[int | None], spec: TeacherSpec, grid: Grid) -> None:
    assert spec.preprocess is not None
    size = spec.preprocess.height, spec.preprocess.width
    if axes and find_grid(axes[1:], len(spec.classes), *size) != grid:
        raise DataError(
            f"{path}: output {spec.output!r} has shape {_axes(axes)}, which are not "
            f"{len(spec.classes)} classes at {grid[0]}x{grid[1]} positions, as is said of it; "
            "export the model again"
        )


def _speaks_of_positions(model: onnx.ModelProto, output: str) -> bool | None:
    """True where the output is `[batch, length, classes]`, else None."""
    return True if len(_output_axes(model, output)) == 3 else None


def _output_axes(model: onnx.ModelProto, output: str) -> list[int | None]:
    """The axes of the output of this name, none where there is no such output."""
    return next((dimensions(one) for one in model.graph.output if one.name == output), [])


def _hashes(path: Path, model: onnx.ModelProto) -> tuple[str, ...]:
    """SHA-256 of the file and of each external data file, which must lie in the same folder."""
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    names = {
        ExternalDataInfo(tensor).location
        for tensor in _tensors(model.graph)
        if uses_external_data(tensor)
    }
    files = [path]
    for name in sorted(names):
        file = path.parent / name
        if file.resolve().parent != path.parent.resolve() or not file.is_file():
            raise DataError(
                f"{path}: its external data {name!r} is not a file in the same folder; "
                "put both side by side"
            )
        files.append(file)
    return tuple(file_sha256(file) for file in files)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _words(names: list[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)


def _axes(sizes: list[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in sizes) + "]"
