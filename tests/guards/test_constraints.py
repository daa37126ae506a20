"""The constraints file holds names and versions only, and a pin for each direct dependency."""

import re
import tomllib
from itertools import chain
from pathlib import Path

PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9a-z.]*")


def normalised(requirement: str) -> str:
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lines_are_names_and_versions(repo_root: Path) -> None:
    lines = (repo_root / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    assert len({normalised(line) for line in lines}) == len(lines)


def test_direct_dependencies_are_pinned(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + list(chain(*project["optional-dependencies"].values()))
    pinned = (repo_root / "constraints.txt").read_text().splitlines()
    missing = {normalised(line) for line in asked} - {normalised(line) for line in pinned}
    assert missing == {"softlabel"}
