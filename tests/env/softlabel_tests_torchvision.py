"""Let a torchvision built for another torch import in the test environment.

The package index's torchvision is a CUDA build. Beside a CPU torch its compiled half does not load,
and then its Python half fails too, because it describes two operators that nobody has declared.
Models and transforms need neither, so declaring the two schemas is enough. A `.pth` file installs
the finder at start-up, since command-line tests run in processes of their own; torch is imported
only when torchvision is.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A schema lives only as long as the library object that declared it.
declared: list[object] = []


class TorchvisionFinder:
    """Declare torchvision's operators just before it loads, then let the usual finders find it."""

    @classmethod
    def find_spec(
        cls,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and not declared:
            found = PathFinder.find_spec(fullname, path, target)
            if found is not None and found.origin is not None:
                declare_missing_operators(Path(found.origin).parent)
        return None


def declare_missing_operators(torchvision_folder: Path) -> None:
    if compiled_half_loads(torchvision_folder):
        return
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    declared.append(library)


def compiled_half_loads(torchvision_folder: Path) -> bool:
    import torch

    compiled = sorted(torchvision_folder.glob("_C*.so"))
    try:
        for library in compiled:
            torch.ops.load_library(library)
    except OSError:
        return False
    return bool(compiled)


sys.meta_path.insert(0, TorchvisionFinder)
