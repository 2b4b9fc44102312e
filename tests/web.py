"""A web server as databases are read from: files, or ranges of them, without listings."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class WebServer(ThreadingHTTPServer):
    """Serves the files of a folder, or ranges of them, but no listings; counts the bytes of each path."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), WebHandler)
        self.folder = folder
        self.served: Counter[str] = Counter()
        self.failures = 0  # how many of the next requests are answered with 503
        self.address = f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def running(self) -> Iterator[WebServer]:
        """Answer requests while the block runs."""
        with self:
            threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
            yield self
            self.shutdown()


class WebHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: WebServer

    def do_GET(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        fails, self.server.failures = self.server.failures > 0, max(0, self.server.failures - 1)
        if fails or not path.is_file():
            self.answer(503 if fails else 404, b"")
            return
        content = path.read_bytes()
        if "Range" not in self.headers:
            self.answer(200, content)
            return
        first, last = (int(place) for place in self.headers["Range"].removeprefix("bytes=").split("-"))
        self.answer(206, content[first : last + 1], f"bytes {first}-{last}/{len(content)}")

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, content: bytes, content_range: str = "") -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(content)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self.command == "GET":
            self.server.served[self.path] += len(content)
            self.wfile.write(content)
