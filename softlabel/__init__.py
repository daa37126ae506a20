"""Soft labels as a dataset: run the teacher once, train any number of students."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softlabel import torch as torch
    from softlabel.pipeline.labelset.labelset import LabelSet
    from softlabel.pipeline.labelset.labelset import open_labelset as open

__version__ = "0.1.0"
__all__ = ["LabelSet", "__version__", "open"]

# Public name -> its name in pipeline.labelset.labelset, which loads pyarrow and numpy: resolved
# on first use, so that `import softlabel` and `softlabel --help` stay light; so is softlabel.torch.
_LAZY = {"LabelSet": "LabelSet", "open": "open_labelset"}

if not TYPE_CHECKING:  # a type checker would believe in every misspelt name

    def __getattr__(name):
        if name == "torch":
            return importlib.import_module("softlabel.torch")
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from softlabel.pipeline.labelset import labelset

        return getattr(labelset, _LAZY[name])


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "torch"})
