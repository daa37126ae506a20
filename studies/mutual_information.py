"""What two logits of the demo's students tell of training pictures, for all pairs of classes.

`make demo`, then `python studies/mutual_information.py` prints the table of docs/benchmarks.md; a
minute on one core.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from softlabel.pipeline.sources.opening import open_source
from softlabel.pipeline.sources.source import Source
from softlabel.pipeline.teachers.models import PictureModel
from softlabel.pipeline.training.cards import find_cards
from softlabel.pipeline.training.fabric import make_fabric
from softlabel.pipeline.training.probe import measure_information, open_probe
from softlabel.pipeline.training.student import load_student
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports.training import StudentCard

SHIFTS = (1 / 80, 1 / 32, 1 / 16, 1 / 8)


def main() -> None:
    """Print a line a shift and run: means over the seeds, of all pairs of classes."""
    source = open_source(Path("data/train"))
    students = [load_student(path) for path in find_cards([Path("models/students")])]
    pairs = list(itertools.combinations(source.classes, 2))
    print("| moved by up to, pixels | run | mean, nats | lowest pair | highest | below 'hard' |")
    print("|---|---|---|---|---|---|")
    for shift in SHIFTS:
        told = [_of_pair(source, students, pair, shift) for pair in pairs]
        for run in told[0]:
            values = np.array([one[run] for one in told])
            lower = sum(one[run] < one["hard"] for one in told)
            print(
                f"| {shift * source.shape[0]:g} | {run} | {values.mean():.2f} "
                f"| {values.min():.2f} | {values.max():.2f} | {lower} of {len(pairs)} |"
            )


def _of_pair(
    source: Source,
    students: Sequence[tuple[StudentCard, PictureModel]],
    pair: tuple[str, str],
    shift: float,
) -> dict[str, float]:
    settings = {"information_classes": pair, "information_shift": shift}
    probe = open_probe(TrainParams(model="a:b", information_samples=200, **settings), source, ())
    fabric = make_fabric("cpu", "32-true")
    found: dict[str, list[float]] = {}
    for card, model in students:
        told = measure_information(model, fabric, probe)["mutual_information"]
        found.setdefault(card.run, []).append(told)
    return {run: float(np.mean(values)) for run, values in found.items()}


if __name__ == "__main__":
    main()
