import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from softlabel.pipeline.sources.digits import CLASSES, read_digits
from softlabel.schemas.errors import EnvironmentFault


def test_all_scans_with_their_labels() -> None:
    block = read_digits()
    assert block.inputs.shape == (1797, 8, 8, 1)
    assert block.inputs.dtype == np.uint8
    assert len(set(block.keys.to_pylist())) == 1797
    assert np.array_equal(block.hard_labels(), load_digits().target)
    assert len(CLASSES) == 10


def test_grey_levels_are_spread_one_to_one() -> None:
    levels = load_digits().images.astype(int).ravel()
    greys = read_digits().inputs.ravel()
    pairs = set(zip(levels.tolist(), greys.tolist(), strict=True))
    assert len(pairs) == len({grey for _, grey in pairs}) == 17
    assert sorted(pairs)[0] == (0, 0)
    assert sorted(pairs)[-1] == (16, 255)
    assert [grey for _, grey in sorted(pairs)] == sorted(grey for _, grey in pairs)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(EnvironmentFault, match=r"needs scikit-learn; pip install 'softlabel\[demo"):
        read_digits()
