"""scikit-learn's bundled digits: 1,797 scans of 8x8, the default that needs no download.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (test part).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from softlabel.schemas.errors import EnvironmentFault
from softlabel.schemas.sample import SampleBlock

CLASSES = tuple("0123456789")


def read_digits() -> SampleBlock:
    """All scans, `[1797, 8, 8, 1]`; their 17 grey levels spread one to one over 0..255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise EnvironmentFault(
            "prepare: format 'digits' needs scikit-learn; pip install 'softlabel[demo]'"
        ) from error
    pictures, labels = load_digits(return_X_y=True)
    grey = np.rint(pictures * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    keys = pa.array([f"digit-{index:04d}" for index in range(len(grey))], pa.string())
    return SampleBlock(keys, grey, pa.array(labels.astype(np.int32)))
