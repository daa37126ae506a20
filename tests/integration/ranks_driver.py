"""Trains as JOBS.json says, alone or as a rank of torchrun's, and writes down what it trained on.

usage: ranks_driver.py JOBS.json
each job: train-student's parameters, and maybe `die` or `unlabelled`
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from softlabel.pipeline.training.batch import TrainingBatch
from softlabel.pipeline.training.lesson import Lesson, Outcome
from softlabel.pipeline.training.losses import IGNORED
from softlabel.schemas.params import TrainParams
from softlabel.stages import train_student
from tests.unit.builders import CLASSES, numbers_of_keys, numbers_of_logits, numbers_of_pixels


def run(job: dict[str, Any], rank: int) -> None:
    """One training. die: after so many parts of batches the last rank kills itself.

    unlabelled: every so-many-th sample is to have no hard label.
    """
    params = TrainParams.model_validate(job["params"])
    seen, every = 0, job.get("unlabelled")

    def look(lesson: Lesson, batch: TrainingBatch, epoch: int) -> Outcome:
        nonlocal seen
        if not batch.share:
            return plain(lesson, batch, epoch)
        numbers = numbers_of_keys(batch.keys)
        assert numbers_of_pixels(batch.pixels).tolist() == numbers
        assert batch.labels.tolist() == [
            IGNORED if every and number % every == 0 else number % len(CLASSES)
            for number in numbers
        ]
        assert batch.teacher is not None
        assert numbers_of_logits(batch.teacher) == numbers
        with open(f"{params.output}.seen-{rank}", "a") as file:
            print(*numbers, file=file)
        seen += 1
        if seen == job.get("die") and rank == int(os.environ.get("WORLD_SIZE", "1")) - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(lesson, batch, epoch)

    plain = Lesson.plain
    with mock.patch.object(Lesson, "plain", look):
        train_student.run(params)


if __name__ == "__main__":
    for one in json.loads(Path(sys.argv[1]).read_text()):
        run(one, int(os.environ.get("RANK", "0")))
