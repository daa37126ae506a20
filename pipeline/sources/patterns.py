"""Patterns of file names: `*`, `?`, `[ab]`, `{a,b}` and `{000..123}`."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator

from softlabel.pipeline.sources.files import matched
from softlabel.pipeline.sources.reasons import no_such_source
from softlabel.schemas.errors import ParameterError
from softlabel.schemas.location import Location, Url, located

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expanded(path: Location) -> list[Location]:
    """The files that a pattern names, in its order, those of a `*` by name.

    `{a,b}` are alternatives and `{000..123}` numbers of that width. Raises ParameterError where one
    of them names no file, or two the same. Behind a URL, those without a `*` are not asked for.
    """
    if not is_pattern(path):
        raise no_such_source(path)
    found: list[Location] = []
    for name in map(located, _alternatives(str(path))):
        if _has_magic(name):
            files = matched(name)
        else:
            files = [name] if isinstance(name, Url) or name.exists() else []
        if not files:
            raise ParameterError(f"{path}: names no file {name}; check the pattern")
        found += files
    twice = next((a for a, b in itertools.pairwise(sorted(found, key=str)) if a == b), None)
    if twice is not None:
        raise ParameterError(f"{path}: names {twice} twice; check the pattern")
    return found


def is_pattern(path: Location) -> bool:
    """Whether the name may be one of several files."""
    return _has_magic(path) or "{" in str(path)


def _has_magic(path: Location) -> bool:
    return glob.has_magic(path.without_query if isinstance(path, Url) else str(path))


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
