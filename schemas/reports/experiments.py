"""What DVC says of experiments: revisions and what grew from them, with parameters and metrics."""

from __future__ import annotations

from pydantic import JsonValue

from softlabel.schemas.model import Record


class Experiment(Record):
    """One row of `dvc exp show`: the workspace, a revision, or an experiment that grew from one.

    rev: its commit, or `workspace`. name: of its branch, tag or experiment. baseline: the commit
    that an experiment grew from; null for the other two. state: of one that DVC queued, such as
    `queued` or `failed`. error: why DVC has nothing of it. params, metrics: by file, nested as they
    stand there; NaN and infinity as text. unread: by file, why DVC could not read it.
    """

    rev: str
    name: str | None
    baseline: str | None
    state: str | None
    error: str | None
    params: dict[str, JsonValue]
    metrics: dict[str, JsonValue]
    unread: dict[str, str]
