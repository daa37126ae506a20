"""Opening a source by what lies at its path."""

from __future__ import annotations

import glob
import itertools
import re
from pathlib import Path

from softlabel.pipeline.sources.parquet import open_canonical
from softlabel.pipeline.sources.source import Source, no_such_source
from softlabel.schemas.errors import DataError, ParameterError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_source(path: Path, workers: int | None = None) -> Source:
    """The source at `path`: a file, a folder, or a pattern of files with `*`, `?` and `{0..9}`.

    workers: threads that decode encoded pictures; default: as many as processors. Raises
    ParameterError where there is no source, DataError where it is of no kind that is read.
    """
    if path.is_dir():
        source = _open_folder(path)
    else:
        source = _open_files(path, [path] if path.exists() else expanded(path))
    return source if workers is None else source.decoded_by(workers)


def expanded(path: Path) -> list[Path]:
    """The files that a pattern names, in its order, those of a `*` by name.

    `{a,b}` are alternatives and `{000..123}` numbers of that width. Raises ParameterError where one
    of them names no file, or two the same.
    """
    if not set("*?[{") & set(str(path)):
        raise no_such_source(path)
    found: list[Path] = []
    for name in _alternatives(str(path)):
        files = sorted(glob.glob(name)) if glob.has_magic(name) else [name] * Path(name).exists()
        if not files:
            raise ParameterError(f"{path}: names no file {name}; check the pattern")
        found += map(Path, files)
    twice = next((a for a, b in itertools.pairwise(sorted(found)) if a == b), None)
    if twice is not None:
        raise ParameterError(f"{path}: names {twice} twice; check the pattern")
    return found


def _alternatives(pattern: str) -> list[str]:
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    span = _RANGE.fullmatch(braces[1])
    if span is None:
        parts = braces[1].split(",")
    else:
        width = len(span[1])
        parts = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [name for part in parts for name in _alternatives(before + part + after)]


def _open_folder(path: Path) -> Source:
    files = sorted(path.glob("*.parquet"))
    if files:
        return _open_files(path, files)
    raise DataError(
        f"{path}: the source is empty: no .parquet file in it; write it with 'softlabel prepare'"
    )


def _open_files(path: Path, files: list[Path]) -> Source:
    return open_canonical(path, files)
