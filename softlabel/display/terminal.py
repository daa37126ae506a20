"""What a person sees of a stage while it works."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Terminal:
    """The progress of a stage on stderr: a live bar on a terminal, plain lines otherwise."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def start(self, what: str, total: int, unit: str) -> None:
        """Show a bar for `total` units of work, where somebody watches."""
        if self._quiet or not self._console.is_terminal:
            return
        if self._live is None:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _RateColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._live.start()
        self._task = self._live.add_task(what, total=total, unit=unit)

    def advance(self, amount: int) -> None:
        """Move the bar."""
        if self._live is not None and self._task is not None:
            self._live.advance(self._task, amount)

    def say(self, message: str) -> None:
        """Print one line, unless the result alone was asked for."""
        if not self._quiet:
            self._console.print(message, markup=False, highlight=False, soft_wrap=True)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields["unit"]
        return Text(f"{speed:,.0f} {unit}/s" if speed else f"- {unit}/s")
