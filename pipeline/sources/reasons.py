"""What is wrong with the files of a source, in messages of one line."""

from __future__ import annotations

from softlabel.schemas.errors import ParameterError
from softlabel.schemas.location import Location


def reason(error: Exception) -> str:
    """The error's words in one line; its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def no_such_source(path: Location) -> ParameterError:
    """The error for a path that does not exist."""
    return ParameterError(f"{path}: no such source; write one with 'softlabel prepare'")
