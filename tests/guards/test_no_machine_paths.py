"""No file of the project names a folder of somebody's machine or a package index's host."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FORBIDDEN = re.compile(
    r"(?<![\w./:-])/(?:home|root|work|Users)/\w"
    r"|pypi\.org|pythonhosted\.org|deb\.debian\.org|npmjs\.org|download\.pytorch\.org"
)
# What .gitignore names, for a checkout without git.
OUTPUTS = {
    "__pycache__",
    "build",
    "dist",
    "data",
    "models",
    "labels",
    "reports",
    "softlabel.egg-info",
}


def project_files(root: Path) -> Iterator[Path]:
    """The files that git tracks or would track; all but outputs where there is no git."""
    if (root / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        yield from (root / name for name in listed.stdout.split("\0") if name)
        return
    for folder, folders, files in os.walk(root):
        hidden = {name for name in folders if name.startswith(".") and name != ".ci"}
        folders[:] = set(folders) - hidden - OUTPUTS
        yield from (Path(folder, name) for name in files)


def lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except UnicodeDecodeError:
        return []


def test_no_such_line(repo_root: Path) -> None:
    found = [
        f"{path.relative_to(repo_root)}:{number}: {line.strip()}"
        for path in project_files(repo_root)
        for number, line in enumerate(lines_of(path), 1)
        if FORBIDDEN.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("line", ["open('/" + "home/me/x')", "see https://" + "pypi" + ".org/x"])
def test_the_pattern_finds(line: str) -> None:
    assert FORBIDDEN.search(line)
