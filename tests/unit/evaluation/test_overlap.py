"""Mean intersection over union, beside torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softlabel.pipeline.evaluation.overlap import Overlap


def test_it_is_that_of_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassJaccardIndex

    random = np.random.default_rng(0)
    labels, said = random.integers(0, 4, (2, 500))
    # Class 4 is said and never right, class 5 stands nowhere.
    said[:7] = 4
    overlap, oracle = Overlap(6), MulticlassJaccardIndex(6, average="macro")
    for part in np.array_split(np.arange(500), 3):
        overlap.add(labels[part], said[part])
        oracle.update(torch.from_numpy(said[part]), torch.from_numpy(labels[part]))
    assert overlap.mean() == pytest.approx(float(oracle.compute()), abs=1e-6)


def test_a_case_by_hand() -> None:
    overlap = Overlap(3)
    overlap.add(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    assert overlap.mean() == pytest.approx((2 / 3 + 1 / 2) / 2)
