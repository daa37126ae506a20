"""Experiments of DVC on the report's page: by the command line, and as the real dvc lists them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.page import Page

if TYPE_CHECKING:
    from softlabel.schemas.params import ReportParams
    from tests.conftest import Command, Project


def states(listing: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each revision, and after it the experiments that grew from it."""
    for state in listing:
        yield state
        for group in state["experiments"] or ():
            yield from group["revs"]


def numbers(value: object) -> Iterator[float]:
    """Every number in a JSON value, however deep in mappings."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def check(page: Page, report: dict[str, Any], listing: list[dict[str, Any]]) -> None:
    """DVC's listing, `--json` and the page say the same."""
    listed = list(states(listing))
    assert [one["rev"] for one in report["experiments"]] == [state["rev"] for state in listed]
    values = {float(str(one["value"])) for one in page.all("data")}
    for one, state in zip(report["experiments"], listed, strict=True):
        assert (state["name"] or state["rev"]) in page.text
        for kind in ("params", "metrics"):
            files = state["data"][kind]
            assert one[kind] == {n: file["data"] for n, file in files.items() if "data" in file}
            assert one["unread"].keys() >= {n for n, file in files.items() if "error" in file}
            assert set(numbers(one[kind])) <= values


def test_experiments_alone_make_a_page(
    make_world: Callable[[], ReportParams],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_world()
    (tmp_path / "alone").mkdir()
    monkeypatch.chdir(tmp_path / "alone")
    listing = (tmp_path / "experiments.json").rename("my experiments.json")
    outcome = command("report", "--experiments=my experiments.json", "--json")
    assert outcome.code == 0, outcome.stderr
    page = Page(Path("reports/report.html"))
    check(page, json.loads(outcome.stdout), json.loads(listing.read_text()))
    assert page.text.startswith("What the experiments came to ")
    assert "2 experiments and 1 revision side by side." in page.text
    assert "dvc exp show --json > 'my experiments.json'" in page.text
    assert "--experiments 'my experiments.json'" in page.text
    assert "measured on" not in page.text
    told = command("report", "--experiments=my experiments.json").stdout
    assert "MiB, 4 experiments; open it in a browser" in told
    ids = {one["id"] for _, one in page.tags if "id" in one}
    assert {str(one["href"]).removeprefix("#") for one in page.all("a")} <= ids


@pytest.mark.slow
def test_the_demo_s_own_experiments(
    unpack: Callable[[Path], Project], command: Command, empty_project: Project
) -> None:
    """In a git checkout of the demo DVC keeps what each experiment measured."""
    project = unpack(empty_project.root / "softlabel")

    def call(*words: str) -> str:
        outcome = project.call(*words)
        assert outcome.code == 0, outcome.stderr
        return outcome.stdout

    call("git", "init", "--quiet", "--initial-branch=first")
    call("git", "config", "user.name", "somebody")
    call("git", "config", "user.email", "somebody@example.org")
    call("dvc", "repro", "--quiet", "prepare")
    call("git", "add", "--all")
    call("git", "commit", "--quiet", "--message=first")
    call(
        "dvc", "exp", "run", "--quiet", "--name=less", "-S", "prepare.validation_rows=50", "prepare"
    )
    listing = Path("experiments.json")
    listing.write_text(call("dvc", "exp", "show", "--json"))
    outcome = command("report", "--experiments=experiments.json", "--json")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    check(Page(Path("reports/report.html")), report, json.loads(listing.read_text()))
    told = {
        one["name"]: one["metrics"]["reports/data/metrics.json"] for one in report["experiments"]
    }
    assert (told["less"]["rows"]["validation"], told["first"]["rows"]["validation"]) == (50, 200)
