"""A teacher in an ONNX Runtime session on the device that was asked for, and no other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from softlabel.pipeline.teachers.devices import cpu_threads
from softlabel.pipeline.teachers.output_kind import as_logits, check_kind
from softlabel.pipeline.teachers.preprocess import model_input
from softlabel.pipeline.teachers.providers import (
    Tuning,
    create_session,
    cuda_version,
    first_line,
)
from softlabel.pipeline.teachers.runnable import runnable
from softlabel.pipeline.teachers.teacher import Teacher
from softlabel.schemas.errors import DataError, EnvironmentFault, ParameterError
from softlabel.schemas.labelset import ExecutionRecord
from softlabel.schemas.params import TeacherDevice
from softlabel.schemas.sample import Array, RunTeacher, TeacherOutput

if TYPE_CHECKING:
    from softlabel.pipeline.teachers.inner import InnerOutput


class TeacherSession:
    """Runs batches of exactly `batch_size` rows; smaller ones are padded and trimmed.

    record: where and how it runs. inner: what is given out as features. tuning: of the provider.
    Raises EnvironmentFault where the device cannot be had.
    """

    def __init__(
        self,
        teacher: Teacher,
        device: TeacherDevice,
        batch_size: int,
        inner: InnerOutput | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        if teacher.fixed_batch not in (None, batch_size):
            raise ParameterError(
                f"{teacher.path}: its graph takes batches of {teacher.fixed_batch} only; "
                f"pass --batch-size {teacher.fixed_batch}"
            )
        self._teacher = teacher
        self._batch_size = batch_size
        self._inner = inner
        self._checked = False
        self._runnable = runnable(teacher, inner)
        self._session, name = create_session(teacher.path, device, self._runnable.model, tuning)
        provider = self._session.get_providers()[0]
        self.record = ExecutionRecord(
            provider=provider,
            device=name,
            precision=teacher.precision,
            batch_size=batch_size,
            threads=cpu_threads(),
            onnxruntime=onnxruntime.__version__,
            cuda=cuda_version(provider),
            options=dict(tuning.options) if tuning and tuning.options else None,
        )

    def resized(self, batch_size: int) -> TeacherSession:
        """The same teacher, loaded once, for batches of another size."""
        other = copy.copy(self)
        other._batch_size = batch_size
        other.record = self.record.model_copy(update={"batch_size": batch_size})
        return other

    def run(self, samples: Array) -> TeacherOutput:
        """What the teacher says of N <= batch samples.

        samples: uint8 pictures `[N, height, width, channels]`, or a structured array `[N]` of the
        teacher's named inputs.
        """
        logits, features = self._outputs(samples)
        said = logits.astype(np.float32, copy=False)
        kind = self._teacher.spec.output_kind
        if not self._checked:
            check_kind(said, kind, self._teacher.path)
            self._checked = True
        return TeacherOutput(as_logits(said, kind), features)

    def features_width(self, samples: Array) -> int:
        """How many features a sample has, by asking about these, which are for their shape only."""
        _, features = self._outputs(samples)
        assert features is not None
        return int(features.shape[1])

    def _outputs(self, samples: Array) -> tuple[Array, npt.NDArray[np.float32] | None]:
        """Logits as the graph gives them, `[N, classes]`, and features `[N, width]`."""
        rows = len(samples)
        padding = self._batch_size - rows
        inputs = {
            name: np.pad(values, [(0, padding), *[(0, 0)] * (values.ndim - 1)])
            if padding
            else values
            for name, values in self._inputs(samples).items()
        }
        logits, *others = run_model(self._session, self._runnable.outputs, inputs)
        classes = len(self._teacher.spec.classes)
        if logits.shape != (self._batch_size, classes):
            raise DataError(
                f"{self._teacher.path}: gave logits of shape {list(logits.shape)}, expected "
                f"[{self._batch_size}, {classes}]; check --output-name and --classes"
            )
        features = self._features(self._inner, *others)[:rows] if self._inner else None
        return logits[:rows], features

    def _inputs(self, samples: Array) -> dict[str, Array]:
        spec = self._teacher.spec
        if spec.preprocess is not None:
            assert self._runnable.pictures is not None
            return {self._runnable.pictures: model_input(samples, spec.preprocess)}
        return {
            wanted.name: np.ascontiguousarray(samples[wanted.name]) for wanted in spec.inputs or ()
        }

    def _features(self, inner: InnerOutput, values: Array) -> npt.NDArray[np.float32]:
        values = values.T if inner.transposed else values
        if values.shape[:1] != (self._batch_size,) or values.dtype.kind != "f":
            raise DataError(
                f"{self._teacher.path}: its inner output {inner.name!r} is {values.dtype} of shape "
                f"{list(values.shape)}; features are floating-point numbers with an axis of "
                f"{self._batch_size} samples first; name another output"
            )
        return values.reshape(self._batch_size, -1).astype(np.float32, copy=False)


def in_class_order(run: RunTeacher, order: tuple[int, ...] | None) -> RunTeacher:
    """`run` with its columns in the order of the source's classes; as it is where they agree."""
    if order is None:
        return run
    columns = np.asarray(order)

    def reordered(samples: Array) -> TeacherOutput:
        output = run(samples)
        return replace(output, logits=np.ascontiguousarray(output.logits[:, columns]))

    return reordered


def run_model(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], inputs: dict[str, Array]
) -> list[Array]:
    """These outputs of one run.

    Raises DataError where the model does not take these inputs, EnvironmentFault where the
    provider fails otherwise, such as on memory.
    """
    try:
        return [np.asarray(value) for value in session.run(list(outputs), inputs)]
    except InvalidArgument as error:
        raise DataError(
            f"the teacher does not take inputs of shape {[list(x.shape) for x in inputs.values()]}"
            f": {first_line(error)}; check --input-layout and the source's pictures"
        ) from error
    except Exception as error:
        raise EnvironmentFault(
            f"the teacher failed on a batch: {first_line(error)}; a smaller --batch-size needs "
            "less memory"
        ) from error
