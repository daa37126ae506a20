"""A source whose shards are tables: what its columns hold is what the source has."""

from __future__ import annotations

from collections.abc import Sequence

from softlabel.pipeline.sources.label_columns import TableColumns
from softlabel.pipeline.sources.number_columns import NumberColumns
from softlabel.pipeline.sources.picture_columns import PictureColumns
from softlabel.pipeline.sources.shard import SourceShard
from softlabel.pipeline.sources.source import Source
from softlabel.schemas.location import Location


def table_source(path: Location, shards: Sequence[SourceShard], columns: TableColumns) -> Source:
    """The source of these shards, which agree in `columns`. Raises DataError without samples."""
    others = columns.others
    return Source(
        path,
        shards,
        others.classes,
        numbers=columns.numbers if isinstance(columns, NumberColumns) else None,
        listed=others.listed,
        masked=isinstance(columns, PictureColumns) and columns.mask is not None,
    )
