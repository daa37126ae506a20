"""The verbs are these, and each explains itself: help, an example, a word on every option."""

from typing import Any

import pytest
import typer

from softlabel.cli import app

VERBS = [
    "calibrate",
    "convert",
    "evaluate",
    "export",
    "infer",
    "inspect",
    "merge",
    "plan",
    "prepare",
    "report",
    "train-student",
    "verify",
]


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def test_verbs() -> None:
    assert sorted(commands()) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb: str) -> None:
    command = commands()[verb]
    shown = f"{command.help or ''}\n{command.epilog or ''}"
    assert f"softlabel {verb}" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help(verb: str) -> None:
    silent = [p.name for p in commands()[verb].params if not getattr(p, "help", None)]
    assert silent == []
