"""Patterns of file names: `*`, `?`, `[ab]`, `{a,b}` and `{000..123}`."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from softlabel.pipeline.sources.reasons import no_such_source
from softlabel.schemas.errors import ParameterError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


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


def _alternatives(pattern: str) -> Iterator[str]:
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    for part in _parts(pattern, braces[1]):
        yield from _alternatives(before + part + after)


def _parts(pattern: str, inside: str) -> Iterator[str]:
    span = _RANGE.fullmatch(inside)
    if span is None:
        yield from inside.split(",")
        return
    first, last = int(span[1]), int(span[2])
    if first > last:
        raise ParameterError(
            f"{pattern}: the range {{{inside}}} is empty; write the smaller number first"
        )
    for number in range(first, last + 1):
        yield f"{number:0{len(span[1])}d}"
