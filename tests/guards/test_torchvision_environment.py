"""The test environment can import torchvision and timm, whatever build of torch it has."""

import subprocess
import sys


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_models_of_both_libraries_can_be_made() -> None:
    code = """
import timm, torch, torchvision
from torchvision.transforms import v2
print(timm.create_model("resnet18").num_classes)
print(torchvision.models.get_model("resnet18").fc.out_features)
print(tuple(v2.RandomCrop(8)(torch.zeros(3, 16, 16)).shape))
"""
    assert run_python(code).splitlines() == ["1000", "1000", "(3, 8, 8)"]


def test_an_ordinary_start_does_not_load_torch() -> None:
    assert run_python("import sys; print('torch' in sys.modules)").strip() == "False"
