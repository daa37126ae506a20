"""Teachers and the source that they shall label, opened and fitted to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softlabel.pipeline.classes import class_map, read_class_names
from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.sources.fitting import fitted_input
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.sources.views import augmentation_here
from softlabel.pipeline.teachers.ensemble import Teachers, open_teachers
from softlabel.pipeline.teachers.head import LinearEnd
from softlabel.schemas.augment import Augmentation
from softlabel.schemas.labelset import CodecName, Identity, Tail
from softlabel.schemas.params import InferParams, PlanParams
from softlabel.schemas.sample import Array


@dataclass(frozen=True, slots=True)
class Task:
    """The source has pictures of the teachers' size, or their views.

    order: see `Identity.class_map`. augment, seed: see `Identity`.
    """

    teachers: Teachers
    source: Source
    order: tuple[int, ...] | None
    augment: Augmentation | None
    seed: int

    def head(self, end: LinearEnd | None) -> Head | None:
        """The teacher's last layer with its classes in the source's order; None without one."""
        if end is None:
            return None
        return end.head if self.order is None else end.head.take(self.order)

    def blank(self, rows: int) -> Array:
        """So many samples that say nothing, of the kind and shape that the teachers take.

        Sequences have no one shape: so many of the first one.
        """
        spec, numbers = self.teachers.first.spec, self.source.numbers
        if spec.inputs is None or numbers is None:
            return np.zeros((rows, *self.source.shape), np.uint8)
        if spec.positions:
            return np.repeat(self.source.first(1).inputs, rows)
        path, taker = self.source.path, f"teacher {self.teachers.first.path}"
        fitted = [fitted_input(path, numbers[one.name], one, taker) for one in spec.inputs]
        return np.zeros(rows, [(one.name, one.dtype, one.shape) for one in fitted])

    def identity(
        self,
        temperatures: tuple[float, ...],
        codec: CodecName,
        k: int | None = None,
        tail: Tail | None = None,
        head: Head | None = None,
        features: tuple[str, int] | None = None,
    ) -> Identity:
        """What decides the labels that these teachers give this source, packed so.

        features: name and width of the inner output that is stored beside them.
        """
        name, width = features or (None, None)
        spec = self.teachers.first.spec
        return Identity(
            teacher_sha256=self.teachers.sha256,
            preprocess=spec.preprocess,
            inputs=spec.inputs,
            classes=self.source.classes,
            class_map=self.order,
            output=spec.output,
            output_kind=spec.output_kind,
            probability_floor=spec.probability_floor,
            ensemble=self.teachers.record(),
            source=self.source.files,
            views=self.source.views,
            seed=self.seed,
            augment=self.augment,
            positions=bool(spec.positions),
            grid=spec.grid,
            temperatures=temperatures,
            codec=codec,
            k=k,
            tail=tail,
            head_sha256=None if head is None else head.digest(),
            features=width,
            features_output=name,
        )


def open_task(params: InferParams | PlanParams) -> Task:
    """Open both and compare their classes by name; a source without names takes the teacher's.

    With `augment` the source gives views. Raises ParameterError, DataError where classes or the
    size of pictures differ, EnvironmentFault where views cannot be made here.
    """
    told = params.model_copy(update={"classes": read_class_names(params.classes)})
    source = open_source(params.source, params.workers)
    teachers = open_teachers(told, source.stored_shape)
    spec = teachers.first.spec
    name = f"teacher {teachers.first.path}"
    source = source.fed(spec, name).naming(spec.classes)
    names = (name, f"source {params.source}")
    order = class_map(spec.classes, source.classes, names)
    if not params.augment:
        return Task(teachers, source, order, augment=None, seed=0)
    augment = augmentation_here(params.augment)
    source = source.viewed(augment, params.seed, params.views)
    return Task(teachers, source, order, augment, params.seed)
