"""Where a source lies: a path on this machine, or a URL that fsspec reads."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import quote, unquote, urlsplit

from pydantic import PlainValidator

_URL = re.compile(r"(?:[a-z0-9]+::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class Url(str):
    """A URL that fsspec reads, with those members of `Path` that are of names alone.

    It may be a chain, such as `filecache::s3://bucket/train.tar`. What a web address has behind `?`
    is no part of the names, and stays with its neighbours.
    """

    __slots__ = ()

    @property
    def protocol(self) -> str:
        """What stands before `://`; of a chain the last, where the bytes come from."""
        return self.partition("://")[0].rpartition("::")[2].lower()

    @property
    def is_web(self) -> bool:
        """Whether a web server gives it: there `?` begins a query."""
        return self.protocol in ("http", "https")

    @property
    def name(self) -> str:
        """The last part of the path, as the file is called where it lies."""
        raw = self._raw_name()
        return unquote(raw) if self.is_web else raw

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The name from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Url:
        """The folder that holds it."""
        path, query = self._halves()
        return Url(path.rstrip("/").removesuffix(self._raw_name()) + query)

    def with_name(self, name: str) -> Url:
        """The neighbour of this name."""
        return self.parent / name

    def __truediv__(self, name: str) -> Url:
        path, query = self._halves()
        end = quote(name) if self.is_web else name
        return Url(path + ("" if path.endswith("/") else "/") + end + query)

    @property
    def path(self) -> str:
        """The address without a query, as the file and its folders are called where they lie."""
        return unquote(self.without_query) if self.is_web else self.without_query

    @property
    def without_query(self) -> str:
        """The address up to a query."""
        return self._halves()[0]

    def _raw_name(self) -> str:
        path = self._halves()[0].partition("://")[2]
        return path.rstrip("/").rpartition("/")[2]

    def _halves(self) -> tuple[str, str]:
        path, mark, query = self.partition("?") if self.is_web else (str(self), "", "")
        return path, mark + query


def located(value: object) -> Path | Url:
    """The location that a text spells; `file://` is a path as any other. Raises ValueError."""
    if isinstance(value, Path | Url):
        return value
    if not isinstance(value, str):
        raise ValueError("input is not a valid path or URL")
    if value.lower().startswith("file://"):
        return _local(value)
    return Url(value) if _URL.match(value) else Path(value)


def _local(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ValueError("a file:// URL names a file of this machine: write file:///FOLDER/FILE")
    return Path(unquote(url.split("://", 1)[1].removeprefix(parts.netloc)))


Location = Path | Url
# As a field of settings and reports: a text that `located` reads.
GivenLocation = Annotated[Location, PlainValidator(located, json_schema_input_type=str)]
