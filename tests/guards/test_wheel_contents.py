"""The wheel holds softlabel and nothing under a generic name."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SOURCES = ("LICENSE", "README.md", "pyproject.toml", "pipeline", "schemas", "softlabel", "stages")


@pytest.fixture(scope="module")
def wheel_names(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    # Built from a copy: setuptools leaves its own files in the folder that it builds from.
    copy = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = repo_root / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (copy / "dist").glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_only_softlabel_at_the_top(wheel_names: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"softlabel"}


@pytest.mark.slow
def test_every_source_file_is_in_it_once(repo_root: Path, wheel_names: set[str]) -> None:
    face = repo_root / "softlabel"
    expected = {f"softlabel/{path.name}" for path in face.glob("*.py")}
    expected |= {f"softlabel/display/{path.name}" for path in (face / "display").glob("*.py")}
    for top in ("pipeline", "schemas", "stages"):
        for path in (repo_root / top).rglob("*.py"):
            expected.add(f"softlabel/{path.relative_to(repo_root)}")
    assert {name for name in wheel_names if name.endswith(".py")} == expected


@pytest.mark.slow
def test_data_files_are_in_it(repo_root: Path, wheel_names: set[str]) -> None:
    templates = {
        f"softlabel/{path.relative_to(repo_root)}"
        for path in (repo_root / "pipeline" / "reporting" / "templates").iterdir()
    }
    assert templates | {"softlabel/py.typed"} <= wheel_names
