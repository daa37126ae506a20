"""Which inner output of a teacher is stored as features: a named one, or the last layer's input."""

from __future__ import annotations

import difflib
from pathlib import Path

import onnx

from softlabel.pipeline.teachers.head import last_layer_input
from softlabel.pipeline.teachers.inner import InnerOutput, give_out
from softlabel.pipeline.teachers.teacher import Teacher
from softlabel.schemas.errors import DataError

AUTO = "auto"


def find_features(teacher: Teacher, asked: str) -> InnerOutput:
    """The inner output `asked`; 'auto' is the one its metadata names, else its last layer's input.

    Raises DataError where the graph has no such tensor, or no linear layer at its end.
    """
    model = onnx.load(teacher.path, load_external_data=False)
    if asked == AUTO:
        asked = teacher.spec.features or _last_layer_input(teacher, model)
    known = {name: None for node in model.graph.node for name in node.output if name}
    if asked not in known:
        raise _unknown(teacher.path, asked, list(known))
    return give_out(model, asked, layered=_is_layered(teacher, model, asked))


def _is_layered(teacher: Teacher, model: onnx.ModelProto, name: str) -> bool:
    try:
        return name == _last_layer_input(teacher, model)
    except DataError:
        return False


def _last_layer_input(teacher: Teacher, model: onnx.ModelProto) -> str:
    remedy = "name an inner output with --features"
    return last_layer_input(teacher.path, model, teacher.spec.output, remedy)


def _unknown(path: Path, asked: str, known: list[str]) -> DataError:
    close = difflib.get_close_matches(asked, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"the last ones are {', '.join(known[-5:])}"
    return DataError(
        f"{path}: has no inner output {asked!r}; {hint}; pass --features auto for the inputs of "
        "its last layer"
    )
