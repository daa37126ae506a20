"""A teacher in an ONNX Runtime session on the device that was asked for, and no other."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from softlabel.pipeline.codecs.codec import Codec
from softlabel.pipeline.teachers.devices import cpu_threads
from softlabel.pipeline.teachers.output_kind import as_logits, check_kind
from softlabel.pipeline.teachers.packed import PackedOutput, Packer, PackTeacher
from softlabel.pipeline.teachers.padding import check_padding
from softlabel.pipeline.teachers.positions import find_grid, to_positions
from softlabel.pipeline.teachers.preprocess import model_input
from softlabel.pipeline.teachers.providers import (
    Tuning,
    create_session,
    cuda_version,
    engine_version,
    first_line,
    packing_device,
)
from softlabel.pipeline.teachers.runnable import runnable
from softlabel.pipeline.teachers.teacher import Teacher
from softlabel.schemas.errors import DataError, EnvironmentFault, ParameterError
from softlabel.schemas.labelset import ExecutionRecord
from softlabel.schemas.params.shared import TeacherDevice
from softlabel.schemas.sample import POSITIONS, Array, RunTeacher, TeacherOutput

if TYPE_CHECKING:
    from softlabel.pipeline.teachers.inner import InnerOutput


# Of NumPy or of torch.
AnyArray = Any


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
        # One that insists on a length is always padded to it.
        fixed = teacher.spec.grid is not None or any(
            one.shape[0] >= 0 for one in teacher.spec.inputs or () if one.shape
        )
        self._indifferent = fixed or not teacher.spec.positions
        self._runnable = runnable(teacher, inner)
        self._session, name = create_session(teacher.path, device, self._runnable.model, tuning)
        provider, options = self._session.get_providers()[0], tuning.options if tuning else {}
        self._packing = packing_device(provider, options)
        self.record = ExecutionRecord(
            provider=provider,
            device=name,
            precision=teacher.precision,
            batch_size=batch_size,
            threads=cpu_threads(),
            onnxruntime=onnxruntime.__version__,
            cuda=cuda_version(provider),
            tensorrt=engine_version(provider),
            options=dict(options) or None,
            packing=None if self._packing is None else f"torch {version('torch')}",
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
        teacher's named inputs. Of sequences what it says of all positions that are no padding, of
        pictures on a grid of all, one sample's after the other. Raises DataError where padding
        changes what it says.
        """
        outputs = self._outputs(samples)
        said = outputs.logits
        kind = self._teacher.spec.output_kind
        if not self._checked:
            check_kind(said, kind, self._teacher.path)
            self._checked = True
        if not self._indifferent:
            self._indifferent = check_padding(samples, outputs, self._outputs, self._teacher.path)
        return replace(outputs, logits=as_logits(said, kind))

    def features_width(self, samples: Array) -> int:
        """How many features a row has, by asking about these, which are for their shape only."""
        features = self._outputs(samples).features
        assert features is not None
        return int(features.shape[1])

    def packer(self, order: tuple[int, ...] | None) -> Packer | None:
        """Runs the teacher and packs its labels on its device; None where that is the host.

        order: as for `in_class_order`.
        """
        if self._packing is None:
            return None
        import torch

        from softlabel.pipeline.teachers.bound import pack, run_bound

        device, kind = torch.device(self._packing), self._teacher.spec.output_kind

        def packer(codec: Codec) -> PackTeacher:
            def packed(samples: Array) -> PackedOutput:
                inputs = self._inputs(samples)
                with explaining(inputs):
                    outputs = run_bound(self._session, device, self._runnable.outputs, inputs)
                logits, inner = self._logits(outputs[0], samples), self._inner
                features = None if inner is None else self._flat(inner, outputs[1], samples)
                return pack(codec, self._said(logits, samples), features, kind, order)

            return packed

        return packer

    def _outputs(self, samples: Array) -> TeacherOutput:
        """What the graph gives, of whatever kind; features where they are asked for."""
        values, *others = run_model(self._session, self._runnable.outputs, self._inputs(samples))
        logits = self._logits(values, samples)
        said = np.asarray(self._said(logits, samples)).astype(np.float32, copy=False)
        if self._inner is None:
            return TeacherOutput(said)
        features = self._flat(self._inner, others[0], samples)
        return TeacherOutput(said, features.astype(np.float32, copy=False))

    def _said(self, values: AnyArray, samples: Array) -> AnyArray:
        """Values `[N, width]` of NumPy or torch without what fills up batch and sequences."""
        own, spec = values[: len(samples)], self._teacher.spec
        if spec.grid is not None:
            return own.reshape(-1, own.shape[-1])
        return own[samples[POSITIONS]] if spec.positions else own

    def _axes(self, samples: Array) -> list[int]:
        """How many samples the session takes at once, and how many positions each has, if any."""
        spec = self._teacher.spec
        if spec.grid is not None:
            return [self._batch_size, math.prod(spec.grid)]
        if spec.positions:
            return [self._batch_size, samples[POSITIONS].shape[1]]
        return [self._batch_size]

    def _logits(self, values: AnyArray, samples: Array) -> AnyArray:
        """Logits of NumPy or torch as `[batch, classes]`, or `[batch, positions, classes]`."""
        spec, shape = self._teacher.spec, list(values.shape)
        expected = [*self._axes(samples), len(spec.classes)]
        if spec.grid is not None and spec.preprocess is not None:
            size = spec.preprocess.height, spec.preprocess.width
            if shape[0] == expected[0] and find_grid(shape[1:], expected[2], *size) == spec.grid:
                return to_positions(values, expected[2])
        if shape != expected:
            raise DataError(
                f"{self._teacher.path}: gave logits of shape {shape}, expected {expected}; check "
                "--output-name and --classes"
            )
        return values

    def _inputs(self, samples: Array) -> dict[str, Array]:
        """What the session takes of N samples, filled up to the batch."""
        spec = self._teacher.spec
        if spec.preprocess is None:
            inputs = {
                one.name: np.ascontiguousarray(samples[one.name]) for one in spec.inputs or ()
            }
        else:
            assert self._runnable.pictures is not None
            inputs = {self._runnable.pictures: model_input(samples, spec.preprocess)}
        padding = self._batch_size - len(samples)
        if not padding:
            return inputs
        return {
            name: np.pad(values, [(0, padding), *[(0, 0)] * (values.ndim - 1)])
            for name, values in inputs.items()
        }

    def _flat(self, inner: InnerOutput, values: AnyArray, samples: Array) -> AnyArray:
        """Features of NumPy or torch as `[N, width]`, as `_said` has logits."""
        values = values.T if inner.transposed else values
        axes = self._axes(samples)
        if inner.layered and math.prod(values.shape[:-1]) == math.prod(axes):
            values = values.reshape(*axes, values.shape[-1])
        if list(values.shape[: len(axes)]) != axes or "float" not in str(values.dtype):
            first = f"an axis of {axes[0]} samples"
            if len(axes) > 1:
                first = f"axes of {axes[0]} samples and {axes[1]} positions"
            raise DataError(
                f"{self._teacher.path}: its inner output {inner.name!r} is {values.dtype} of shape "
                f"{list(values.shape)}; features are floating-point numbers with {first} first; "
                "name another output"
            )
        return self._said(values.reshape(*axes, -1), samples)


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
    """These outputs of one run; raises as `explaining` does."""
    with explaining(inputs):
        return [np.asarray(value) for value in session.run(list(outputs), inputs)]


@contextlib.contextmanager
def explaining(inputs: Mapping[str, Array]) -> Iterator[None]:
    """Raise DataError where the model does not take these inputs, else EnvironmentFault.

    The provider fails on memory, for one.
    """
    try:
        yield
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
