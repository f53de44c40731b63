"""A small web server on this machine that serves one content in all the ways servers go wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import re
import threading
from collections.abc import Generator


@dataclasses.dataclass
class Site:
    """What the server serves, and what it was asked."""

    content: bytes
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    """Whether Range is honoured."""
    cut: int | None = None
    """Bytes of a body after which the connection is closed."""
    cuts: int = 10**9
    """How many bodies are cut."""
    stall: float = 0.0
    """Seconds of silence in the middle of a body."""
    statuses: list[int] = dataclasses.field(default_factory=list)
    """Answers given first, one a request."""
    content_type: str = "application/octet-stream"
    redirect: str = ""
    length: bool = True
    """Whether Content-Length is sent."""
    liar: bool = False
    """Answers any Range with the first bytes of the file."""
    asked: list[str] = dataclasses.field(default_factory=list)
    """The Range of every request, empty without."""
    url: str = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    site: Site
    stopped: threading.Event

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        site = self.site
        site.asked.append(self.headers.get("Range", ""))
        if site.redirect:
            self.send_response(302)
            self.send_header("Location", site.redirect)
            self.end_headers()
        elif site.statuses:
            self.send_error(site.statuses.pop(0))
        else:
            self._send(self._start())

    def _start(self) -> int:
        """Sends the headers; returns the first byte of the body."""
        site, size = self.site, len(self.site.content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", "") in (site.etag, site.modified)
        start = int(asked[1]) if asked and site.ranges and same else 0
        if start > size:
            self.send_error(416)
            return size
        self.send_response(206 if start else 200)
        if start:
            first = 0 if site.liar else start
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        if site.length:
            self.send_header("Content-Length", str(size - start))
        self.send_header("Content-Type", site.content_type)
        for name, value in (("ETag", site.etag), ("Last-Modified", site.modified)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        return start

    def _send(self, start: int) -> None:
        site, body = self.site, self.site.content[start:]
        with contextlib.suppress(OSError):
            if site.stall:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.stopped.wait(site.stall)
                body = body[len(body) // 2 :]
            if site.cut is not None and site.cuts > 0:
                site.cuts -= 1
                body = body[: site.cut]
            self.wfile.write(body)


@contextlib.contextmanager
def serving(site: Site) -> Generator[Site]:
    """Serves a site while the context lasts; its `url` ends in `/`."""
    stopped = threading.Event()
    handler = type("Handler", (_Handler,), {"site": site, "stopped": stopped})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        yield site
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
