"""The checkpoint of a training: one file beside its result, whole or absent, and whose it is.

The file is the SHA-256 of the rest, then what `torch.save` makes of a dictionary that `torch.load`
reads with `weights_only`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from softlabel.pipeline.publish import publish_bytes
from softlabel.pipeline.training.state import TrainingState
from softlabel.schemas.errors import DataError, EnvironmentFault, IdentityError
from softlabel.schemas.params import TrainParams

CHECKPOINT_FILE = "training.checkpoint"
DIGEST_BYTES = 32
# Parameters that may change between a run and its continuation.
FREE = {
    "checkpoint_epochs", "checkpoint_steps", "compile", "device", "export_onnx", "if_different",
    "logger", "output", "overwrite", "run", "runs",
}  # fmt: skip


@dataclass(slots=True)
class Checkpoints:
    """Writes the checkpoint of one run, and gives back the one that an earlier start left.

    course: what decides how the run goes, JSON values by name. every_epochs, every_steps: when
    one is due; 0 for never. writes: whether this rank does; all take part. epoch, step: where the
    standing checkpoint goes on; None where there is none.
    """

    path: Path
    course: Mapping[str, Any]
    every_epochs: int
    every_steps: int
    writes: bool = True
    _standing: Mapping[str, Any] | None = None
    epoch: int | None = None
    step: int = 0

    @property
    def enabled(self) -> bool:
        """Whether any is ever written."""
        return self.every_epochs > 0 or self.every_steps > 0

    def steps_done(self, steps_per_epoch: int) -> int:
        """After how many steps `restore` goes on; 0 where the run starts afresh."""
        if self._standing is None:
            return 0
        return int(self._standing["epoch"] * steps_per_epoch + self._standing["step"])

    def restore(self, state: TrainingState) -> None:
        """Bring `state` to where the standing checkpoint was, if there is one."""
        if self._standing is not None:
            state.load_state_dict(self._standing)
            self._standing = None

    def after_step(self, state: TrainingState, steps: int) -> None:
        """Write one where it is due after so many steps in all.

        Raises EnvironmentFault where it cannot be written; the last one then still stands.
        """
        if self.every_steps and steps % self.every_steps == 0:
            self._write(state)

    def after_epoch(self, state: TrainingState) -> None:
        """Write one where it is due after `state.epoch` epochs; raises as `after_step`."""
        if self.every_epochs and state.epoch % self.every_epochs == 0:
            self._write(state)

    def discard(self) -> None:
        """Start afresh."""
        self._standing = self.epoch = None
        self.step = 0
        self.remove()

    def remove(self) -> None:
        """The result stands: nothing is left to continue."""
        if self.writes:
            self.path.unlink(missing_ok=True)

    def _write(self, state: TrainingState) -> None:
        whole = state.state_dict()
        if self.writes:
            self._publish(whole)
        self.epoch, self.step = state.epoch, state.step

    def _publish(self, state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({"course": json.dumps(dict(self.course)), "state": state}, buffer)
        content = buffer.getvalue()
        try:
            publish_bytes(self.path, hashlib.sha256(content).digest() + content)
        except OSError as error:
            raise EnvironmentFault(
                f"{self.path}: the checkpoint cannot be written: {error.strerror}; the one before "
                "stands, make room and run the same command again"
            ) from error


NO_CHECKPOINTS = Checkpoints(Path(), {}, every_epochs=0, every_steps=0)


def open_checkpoints(
    folder: Path, params: TrainParams, inputs: Mapping[str, Any], *, writes: bool = True
) -> Checkpoints:
    """The checkpoints of the run that `params` and the identities of its `inputs` decide.

    Raises IdentityError, naming what differs, where `folder` holds one of another run that shall
    not be replaced; DataError where it is damaged.
    """
    path = folder / CHECKPOINT_FILE
    course = params.model_dump(mode="json", exclude=FREE) | dict(inputs)
    standing = None if params.overwrite else _read(path)
    if standing is not None:
        different = _differences(json.loads(standing["course"]), course)
        if different and params.if_different == "error":
            raise IdentityError(
                f"{path}: is of a run with {'; '.join(different)}; continue with that run's "
                "parameters, or pass --overwrite to start afresh"
            )
        standing = None if different else standing["state"]
    if standing is None and writes:
        path.unlink(missing_ok=True)
    every = (params.checkpoint_epochs, params.checkpoint_steps)
    checkpoints = Checkpoints(path, course, *every, writes, standing)
    if standing is not None:
        checkpoints.epoch, checkpoints.step = standing["epoch"], standing["step"]
    return checkpoints


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        data = memoryview(path.read_bytes())
    except FileNotFoundError:
        return None
    digest, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise DataError(f"{path}: is damaged; pass --overwrite to start afresh")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {_shown(before.get(name))} instead of {_shown(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _shown(value: Any) -> str:
    """The value as params.yaml spells it; of a digest its beginning."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:12]}..."
