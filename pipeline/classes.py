"""Class names: the same in the same order, the same in another order, or an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softlabel.schemas.errors import DataError, ParameterError


def class_map(
    teacher: Sequence[str], source: Sequence[str], names: tuple[str, str]
) -> tuple[int, ...] | None:
    """For each class of `source`, its position in `teacher`; None where the orders agree.

    `names` says what the two are, for the message. Raises DataError where the classes differ.
    """
    if list(teacher) == list(source):
        return None
    if len(teacher) != len(source):
        raise DataError(
            f"{names[0]} has {len(teacher)} classes, {names[1]} has {len(source)}; "
            "take a teacher of the same classes"
        )
    unknown = [name for name in source if name not in set(teacher)]
    if unknown:
        raise DataError(
            f"{names[0]} lacks classes of {names[1]}: {_few(unknown)}; name the classes alike "
            "in both"
        )
    twice = [
        name for names_ in (teacher, source) for name in names_ if list(names_).count(name) > 1
    ]
    if twice:
        raise DataError(f"{names[0]} or {names[1]} names class {twice[0]!r} twice; rename one")
    positions = {name: index for index, name in enumerate(teacher)}
    return tuple(positions[name] for name in source)


def read_class_names(values: tuple[str, ...]) -> tuple[str, ...]:
    """Class names as given, or from the file in a single `@FILE` with one name a line."""
    if len(values) != 1 or not values[0].startswith("@"):
        return values
    path = Path(values[0][1:])
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: class names cannot be read: {error}") from error


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
