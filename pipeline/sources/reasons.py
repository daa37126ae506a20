"""What a library says of a damaged file, as part of a message of one line."""

from __future__ import annotations


def reason(error: Exception) -> str:
    """The error's words in one line; its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
