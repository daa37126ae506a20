"""What a run of the teacher stores: the codec asked for or the default, and which features."""

from __future__ import annotations

from softlabel.pipeline.progress import Progress
from softlabel.pipeline.teachers.ensemble import Teachers
from softlabel.pipeline.teachers.features import find_features
from softlabel.pipeline.teachers.head import LinearEnd, find_head
from softlabel.pipeline.teachers.inner import InnerOutput
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import CodecName
from softlabel.schemas.params.infer import InferCodec

MOST_DENSE_CLASSES = 4096
# Features of 2,048 bytes a row.
WIDEST_FEATURES = 1024


def choose_codec(
    asked: InferCodec, teachers: Teachers, progress: Progress
) -> tuple[CodecName, LinearEnd | None]:
    """The codec for `asked`, and with `factored` the linear layer at the teacher's end.

    'auto' is `dense-f16` up to 4,096 classes; beyond them `factored` where the graph allows it
    and a row's features take at most 2,048 bytes, else `topk`; it says so. Raises DataError where
    `factored` was asked for and the graph does not allow it, ParameterError where it was for an
    ensemble.
    """
    teacher = teachers.first
    classes = len(teacher.spec.classes)
    if asked == "factored" and teachers.mean is not None:
        raise ParameterError(
            f"infer.codec: factored stores one teacher's last layer, and {len(teachers.members)} "
            "teachers are given; pass --codec dense-f16 or topk, or label with one teacher"
        )
    if asked == "factored":
        return "factored", find_head(teacher.path, teacher.spec.output, classes)
    if asked != "auto":
        return asked, None
    if classes <= MOST_DENSE_CLASSES:
        return "dense-f16", None
    if teachers.mean is not None:
        progress.say("codec topk, not factored: an ensemble has no one last layer")
        return "topk", None
    try:
        end = find_head(teacher.path, teacher.spec.output, classes)
    except DataError as error:
        progress.say(f"codec topk, not factored: {str(error).rpartition('; ')[0]}")
        return "topk", None
    width = end.head.weight.shape[1]
    if width > WIDEST_FEATURES:
        progress.say(f"codec topk, not factored: the teacher's last layer has {width:,} inputs")
        return "topk", None
    unit = "position" if teacher.spec.positions else "row"
    progress.say(f"codec factored: {width:,} features a {unit}, and the teacher's last layer once")
    return "factored", end


def choose_inner(
    asked: str | None, end: LinearEnd | None, teachers: Teachers
) -> InnerOutput | None:
    """What is taken out of the teacher beside its logits: `end` for `factored`, or what was asked.

    Raises ParameterError where features do not go with the codec or the ensemble, DataError where
    the teacher has no such output.
    """
    if asked is None:
        return None if end is None else end.inner
    if end is not None:
        raise ParameterError(
            "features: codec factored stores the inputs of the last layer already; leave "
            "--features out, or pass --codec topk or dense-f16"
        )
    if teachers.mean is not None:
        raise ParameterError(
            f"features: {len(teachers.members)} teachers have no one inner output; leave "
            "--features out, or label with one teacher"
        )
    return find_features(teachers.first, asked)
