"""What all tests share: where the checkout lies, the real data sets, and one seed."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of larger real data sets, which lie beside the checkout and not in it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the data sets in ../shared/data, which are not part of the checkout")
    return folder


@pytest.fixture(autouse=True)
def seeded_torch(request: pytest.FixtureRequest) -> None:
    """Start each test from the seed that pytest-randomly prints; it reseeds random and NumPy only.

    Unseeded, torch starts from another number in every process.
    """
    torch.manual_seed(request.config.getoption("randomly_seed", 0))
