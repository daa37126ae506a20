"""Samples with their stored soft labels as a dataset of PyTorch, in the order of train-student."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.pipeline.prefetch import prefetch
from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.devices import cpu_threads
from softlabel.pipeline.training.batch import JoinedBatch
from softlabel.pipeline.training.ensemble import Labels
from softlabel.pipeline.training.framing import student_framing
from softlabel.pipeline.training.handing import DistillationBatch, in_one_piece
from softlabel.pipeline.training.join import JoinedSamples
from softlabel.pipeline.training.padded import SequenceBatch, padded_batch
from softlabel.pipeline.training.randomness import own_randomness, seed_for
from softlabel.pipeline.training.sequences import named_inputs, of_sequences
from softlabel.pipeline.training.spans import Steps
from softlabel.pipeline.training.targets import stored_targets
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import sha256_of
from softlabel.schemas.location import located
from softlabel.schemas.model import Record
from softlabel.schemas.teacher import Interpolation, SequenceInputs

BATCHES_AHEAD = 4

# From a picture, uint8 [channels, height, width].
Transform = Callable[[Tensor], Tensor]


class DatasetState(Record):
    """Where in which order a training stands: so many samples of the epoch were seen."""

    seed: int
    epoch: int
    position: int
    shuffle_rows: int
    rows: int
    source: str


class DistillationDataset(IterableDataset[Any]):
    """Every sample of a source once an epoch, joined by key with its label, in batches.

    These are `DistillationBatch`es of pictures, and `SequenceBatch`es of sequences.

    Give it to a `DataLoader` with `batch_size=None`: batches are made here, so that their order is
    a function of seed and epoch alone, whatever the number of workers. With 0 workers pictures are
    decoded in threads; processes help where the transform is slow. Call `set_epoch` before each
    epoch.

    source: whatever `softlabel infer` reads. labels: a label set, its folder, a `LabelEnsemble`, or
    None for the samples alone. transform: of each picture, uint8 `[channels, height, width]`; what
    it draws from the generators of torch, NumPy and Python is a function of seed, epoch and the
    sample's place in the order. batch_size: samples a rank and step. shuffle_rows: samples held and
    shuffled together. temperature: of a `topk` set, where its labels will be used; tail: there,
    `bucket` for the classes left out as one, `spread` for logits of all. height, width, channels,
    resize, interpolation: how the student sees encoded pictures, as train-student has them. inputs:
    of sequences, the columns and masks that the student takes; default: all there are. part:
    `(rank, ranks)`; default: those of `torch.distributed`, or of torchrun's environment.

    Of Parquet labels each page is checked when it is read, tars are checked here, whole and once.
    Raises ParameterError, also for what is of pictures where samples are sequences and the other
    way round, and DataError where source and labels do not belong together or a tar is damaged.
    """

    def __init__(
        self,
        source: str | Path,
        labels: Labels | str | Path | None,
        transform: Transform | None = None,
        *,
        batch_size: int = 128,
        seed: int = 0,
        shuffle_rows: int = 65536,
        temperature: float | None = None,
        tail: Literal["bucket", "spread"] = "bucket",
        height: int | None = None,
        width: int | None = None,
        channels: int | None = None,
        resize: int | None = None,
        interpolation: Interpolation | None = None,
        inputs: Sequence[str] | None = None,
        part: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(labels, str | Path):
            labels = open_labelset(labels)
        opened = open_source(located(source)).naming(() if labels is None else labels.classes)
        frame = (height, width, channels, resize, interpolation)
        if of_sequences(opened, labels):
            _check_of_sequences(opened, transform, *frame)
            wanted = SequenceInputs(inputs=named_inputs(opened, inputs))
            self._source = opened.fed(wanted, "the student")
        else:
            _check_of_pictures(opened, labels, inputs)
            framing = student_framing(opened, labels, type(self).__name__, *frame)
            self._source = opened.framed(framing, "the student")
        self._labels = labels
        self._transform = transform
        self._batch_size = _at_least(1, "batch_size", batch_size)
        self._seed = _at_least(0, "seed", seed)
        self._shuffle_rows = _at_least(1, "shuffle_rows", shuffle_rows)
        self._temperature = _temperature(labels, temperature)
        self._spread = tail == "spread"
        self._part = part
        self._rows = self._joined(0).rows
        if labels is not None and labels.manifest.aligned:
            # Here, once: else every worker would, in every epoch.
            labels.check_tars()
        # Arrow looks for pandas when it makes its first array: each worker would import it anew.
        pa.array(np.zeros(0))
        # Epoch and first position, in shared memory: workers that outlive an epoch see the next.
        self._place = torch.zeros(2, dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives, counted from 0."""
        return int(self._place[0])

    def set_epoch(self, epoch: int) -> None:
        """Give another epoch, from its first sample on; the present one stays where it stands."""
        if _at_least(0, "epoch", epoch) != self.epoch:
            self._place.copy_(torch.tensor([epoch, 0]))

    def state_dict(self, seen: int) -> dict[str, Any]:
        """What `load_state_dict` takes to go on after so many samples of this epoch.

        seen: `batch.seen` of the last batch trained on; a `DataLoader` reads ahead of the loop, so
        only the loop knows it. The state is the same on all ranks, JSON, and serves any number of
        ranks and workers and any batch size. Raises ParameterError.
        """
        if not 0 <= seen <= self._rows:
            raise ParameterError(
                f"DistillationDataset: seen must be from 0 to {self._rows}, the samples of an "
                f"epoch; got {seen}"
            )
        return self._state(self.epoch, seen).model_dump()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a run stood: the next iteration gives what its epoch had left.

        Raises DataError where the state is damaged or of another order.
        """
        try:
            parsed = DatasetState.model_validate(state)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise DataError(
                f"DistillationDataset: the state is damaged ({problem['loc'][0]}: "
                f"{problem['msg']}); pass what state_dict gave"
            ) from error
        own = self._state(parsed.epoch, parsed.position)
        differing = [
            name
            for name in DatasetState.model_fields
            if getattr(own, name) != getattr(parsed, name)
        ]
        if differing or not 0 <= parsed.position <= self._rows:
            raise DataError(
                f"DistillationDataset: the state is of another order of samples (different: "
                f"{', '.join(differing) or 'position'}); make the dataset as the one it is of"
            )
        self._place.copy_(torch.tensor([parsed.epoch, parsed.position]))

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch."""
        return len(Steps(self._rows, 0, self._batch_size, self._found_part()[1]))

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        steps = self._steps()
        left = steps.rows - steps.start
        if 0 < left < steps.ranks:
            raise DataError(
                f"DistillationDataset: {left} samples are left in epoch {self.epoch} for "
                f"{steps.ranks} ranks; go on with the next epoch, or on fewer ranks"
            )
        epoch = self.epoch
        spans = list(itertools.islice(steps.spans(self._found_part()[0]), first, None, step))
        joined = self._joined(cpu_threads() if worker is None else 0)
        batches = joined.batches(self._seed, epoch, self._shuffle_rows, spans)
        if worker is None:
            batches = prefetch(batches, BATCHES_AHEAD, "batches")
        numbers = itertools.count(first, step)
        for number, span, batch in zip(numbers, spans, batches, strict=False):
            tensors = self._tensors(batch, epoch, span.first, steps.position(number + 1))
            if worker is not None and isinstance(tensors, DistillationBatch):
                tensors = in_one_piece(tensors)
            yield tensors

    def __getstate__(self) -> dict[str, Any]:
        # What is open stays here; a rank that is known here may not be known in a worker.
        return self.__dict__ | {
            "_source": self._source.reopen().decoded_by(0),
            "_labels": None if self._labels is None else self._labels.reopen(),
            "_part": _ranks_of_torch() or self._part,
        }

    def _joined(self, threads: int) -> JoinedSamples:
        source = self._source.reopen().decoded_by(threads)
        labels = None if self._labels is None else self._labels.reopen()
        return JoinedSamples(source, labels, self._temperature)

    def _tensors(
        self, batch: JoinedBatch, epoch: int, position: int, seen: int
    ) -> DistillationBatch | SequenceBatch:
        targets = None
        if batch.block is not None:
            targets = stored_targets(batch.block, self._temperature, spread=self._spread)
        if batch.lengths is not None:
            return padded_batch(batch, targets, seen)
        pixels = torch.from_numpy(batch.pixels).permute(0, 3, 1, 2)
        if self._transform is not None:
            pixels = self._transformed(pixels, self._transform, epoch, position)
        labels = torch.from_numpy(batch.labels)
        keys = batch.keys.to_numpy(zero_copy_only=False)
        return DistillationBatch(pixels, targets, labels, keys, seen)

    def _transformed(
        self, pixels: Tensor, transform: Transform, epoch: int, position: int
    ) -> Tensor:
        changed = []
        with own_randomness():
            for row, picture in enumerate(pixels):
                seed_for(self._seed, epoch, position + row)
                changed.append(transform(picture))
        return torch.stack(changed)

    def _steps(self) -> Steps:
        _, ranks = self._found_part()
        return Steps(self._rows, int(self._place[1]), self._batch_size, ranks)

    def _state(self, epoch: int, position: int) -> DatasetState:
        files = [f"{file.name} {file.rows} {file.bytes}" for file in self._source.files]
        return DatasetState(
            seed=self._seed,
            epoch=epoch,
            position=position,
            shuffle_rows=self._shuffle_rows,
            rows=self._rows,
            source=sha256_of("\n".join(files).encode()),
        )

    def _found_part(self) -> tuple[int, int]:
        return self._part or _ranks_of_torch() or _ranks_of_torchrun()


def _ranks_of_torch() -> tuple[int, int] | None:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.get_rank(), distributed.get_world_size()


def _ranks_of_torchrun() -> tuple[int, int]:
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _check_of_sequences(source: Source, *of_pictures: object) -> None:
    names = ("transform", "height", "width", "channels", "resize", "interpolation")
    given = [name for name, value in zip(names, of_pictures, strict=True) if value is not None]
    if given:
        raise ParameterError(
            f"DistillationDataset: {', '.join(given)} are of pictures, and {source.path} has "
            "sequences; leave them out"
        )


def _check_of_pictures(source: Source, labels: Labels | None, inputs: Sequence[str] | None) -> None:
    if inputs is not None:
        raise ParameterError(
            f"DistillationDataset: inputs are of sequences, and {source.path} has none; leave them "
            "out"
        )
    if labels is not None and labels.manifest.identity.grid is not None:
        raise ParameterError(
            f"DistillationDataset: the labels in {labels.folder} are of pictures' positions, and "
            "here a picture has one; train with 'softlabel train-student', or read them by "
            "softlabel.open"
        )


def _at_least(least: int, name: str, value: int) -> int:
    if value < least:
        raise ParameterError(f"DistillationDataset: {name} must be at least {least}, got {value}")
    return value


def _temperature(labels: Labels | None, temperature: float | None) -> float:
    """The one at which `topk` labels will be used; the others are the same at any."""
    if temperature is not None and not temperature > 0:
        raise ParameterError(f"DistillationDataset: temperature must be above 0, got {temperature}")
    topk = labels is not None and labels.manifest.identity.codec == "topk"
    if topk and temperature is None:
        raise ParameterError(
            f"DistillationDataset: {labels.folder} is a topk label set, and its labels depend on "  # type: ignore[union-attr]
            "the temperature they are used at; give the loss's as temperature="
        )
    return temperature or 1.0
