"""A folder behind a URL: in fsspec's memory, or on a web server of this machine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec

# A file of this name in the folder, and its server gives errors in place of ranges.
BROKEN = "broken"


class RangeHandler(SimpleHTTPRequestHandler):
    """Gives files by ranges, as servers of data do and Python's own does not."""

    def __init__(self, *arguments: Any, ranges: bool, sent: list[int], **options: Any) -> None:
        self._ranges = ranges
        self._sent = sent
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = self.headers.get("Range")
        if asked is not None and Path(self.directory, BROKEN).exists():
            self.send_error(500)
            return
        if not self._ranges or asked is None or not path.is_file():
            super().do_GET()
            return
        first, last = asked.removeprefix("bytes=").split("-")
        data = path.read_bytes()[int(first) : int(last) + 1]
        self._sent.append(len(data))
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_HEAD(self) -> None:
        self._sent.append(0)
        super().do_HEAD()

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes" if self._ranges else "none")
        super().end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""


@contextlib.contextmanager
def web(folder: Path, ranges: bool = True) -> Iterator[tuple[str, list[int]]]:
    """The folder's address without a slash at its end, and the bytes of each answer, 0 of heads."""
    sent: list[int] = []
    handler = partial(RangeHandler, directory=str(folder), ranges=ranges, sent=sent)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def memory(folder: Path) -> Iterator[str]:
    """The folder's files in fsspec's memory, under an address without a slash at its end."""
    system = fsspec.filesystem("memory")
    url = f"memory://bucket{folder}"
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe(f"{url}/{path.relative_to(folder)}", path.read_bytes())
    try:
        yield url
    finally:
        system.rm(url, recursive=True)
