"""The explicit package list and the links say what lies on the disk."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

MAPPED = ("pipeline", "schemas", "stages")


@pytest.fixture(scope="module")
def setuptools_table(repo_root: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((repo_root / "pyproject.toml").read_text())["tool"]
    setuptools: dict[str, Any] = table["setuptools"]
    return setuptools


def folders_of_code(repo_root: Path) -> set[str]:
    face = repo_root / "softlabel"
    tops = [repo_root / top for top in MAPPED]
    tops += [folder for folder in face.iterdir() if folder.is_dir() and not folder.is_symlink()]
    found = {"softlabel"}
    for top in tops:
        for module in top.rglob("*.py"):
            folder = module.parent.relative_to(face if face in top.parents else repo_root)
            found.add(".".join(["softlabel", *folder.parts]))
    return found


def test_packages_are_the_folders_on_disk(
    repo_root: Path, setuptools_table: dict[str, Any]
) -> None:
    assert sorted(setuptools_table["packages"]) == sorted(folders_of_code(repo_root))


def test_every_package_has_its_init_file(repo_root: Path, setuptools_table: dict[str, Any]) -> None:
    for package in setuptools_table["packages"]:
        assert (repo_root / package.replace(".", "/") / "__init__.py").is_file(), package


def test_package_data_patterns_match_files(
    repo_root: Path, setuptools_table: dict[str, Any]
) -> None:
    for package, patterns in setuptools_table["package-data"].items():
        for pattern in patterns:
            assert list((repo_root / package.replace(".", "/")).glob(pattern)), (package, pattern)


@pytest.mark.parametrize("name", MAPPED)
def test_links_are_relative(repo_root: Path, name: str) -> None:
    link = repo_root / "softlabel" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
