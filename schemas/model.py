"""The base of every record and parameter section: frozen, and an unknown key is an error."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen pydantic model that refuses unknown keys and keeps NaN and infinity out."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


def report_json(record: Record) -> bytes:
    """The record as UTF-8 JSON for people and tools: sorted keys, nulls shown, final newline."""
    document = record.model_dump(mode="json")
    return (json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()
