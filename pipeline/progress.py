"""How long work tells of itself: an interface that the command line fills."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what a stage says while it works."""

    def start(self, what: str, total: int, unit: str) -> None:
        """A new piece of work of `total` units begins."""

    def advance(self, amount: int) -> None:
        """`amount` more units are done."""

    def say(self, message: str) -> None:
        """One line that a person should see."""


class Quiet:
    """A Progress that shows nothing."""

    def start(self, what: str, total: int, unit: str) -> None:
        """Ignore the start."""

    def advance(self, amount: int) -> None:
        """Ignore the advance."""

    def say(self, message: str) -> None:
        """Ignore the message."""
