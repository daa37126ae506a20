"""Samples that a label set leaves out: their file, and row ranges without them."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from softlabel.schemas.errors import DataError
from softlabel.schemas.labelset import (
    REJECTS_FILE,
    Manifest,
    Reject,
    Rejects,
    Segment,
    sha256_of,
)


class RejectedRows:
    """The source rows of samples that are left out."""

    def __init__(self, rejects: Iterable[Reject]) -> None:
        self._rows: dict[str, list[int]] = {}
        for reject in rejects:
            self._rows.setdefault(reject.source, []).append(reject.row)
        for rows in self._rows.values():
            rows.sort()

    def count(self, segment: Segment) -> int:
        """How many rows of `segment` are left out."""
        return len(self._inside(segment))

    def left(self, segments: Iterable[Segment]) -> tuple[Segment, ...]:
        """The row ranges of `segments` between these rows, in their order."""
        parts = []
        for segment in segments:
            first, end = segment.first, segment.first + segment.rows
            for row in [*self._inside(segment), end]:
                if row > first:
                    part = Segment(source=segment.source, first=first, rows=row - first)
                    parts.append(part)
                first = row + 1
        return tuple(parts)

    def _inside(self, segment: Segment) -> list[int]:
        rows = self._rows.get(segment.source, [])
        end = segment.first + segment.rows
        return rows[bisect_left(rows, segment.first) : bisect_left(rows, end)]


def rejects_bytes(rejects: Sequence[Reject]) -> bytes:
    """The content of rejects.jsonl: a sample a line, as JSON with sorted keys."""
    lines = [
        json.dumps(reject.model_dump(), sort_keys=True, ensure_ascii=False) for reject in rejects
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def summary(rejects: Sequence[Reject]) -> Rejects | None:
    """What the manifest says of them; None where there are none."""
    if not rejects:
        return None
    return Rejects(samples=len(rejects), sha256=sha256_of(rejects_bytes(rejects)))


def read_rejects(folder: Path, manifest: Manifest) -> tuple[Reject, ...]:
    """The samples that the set leaves out, in the order of its shards.

    Raises DataError where the file is not the one of the manifest.
    """
    if manifest.rejects is None:
        return ()
    path = folder / REJECTS_FILE
    try:
        data = path.read_bytes()
        if sha256_of(data) != manifest.rejects.sha256:
            raise ValueError("it changed")
        # By line feeds alone: a key may hold other characters that break lines.
        return tuple(Reject.model_validate_json(line) for line in data.split(b"\n")[:-1])
    except (OSError, ValueError, ValidationError) as error:
        raise DataError(
            f"{path}: is missing or not the one in the manifest; run "
            f"'{manifest.making.command}' again, which writes it anew"
        ) from error
