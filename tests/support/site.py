"""A web site on this machine."""

from __future__ import annotations

import contextlib
import http.server
import mimetypes
import threading
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def site(files: Mapping[str, bytes], asked: list[str] | None = None) -> Iterator[str]:
    """Its URL; it has these files, by their paths, and answers 404 to all else.

    ``files`` may change meanwhile. What is got of it is noted in ``asked``.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> bytes:
            path = self.path.partition("?")[0]
            data, kind = files.get(path), mimetypes.guess_type(path)[0]
            self.send_response(404 if data is None else 200)
            if kind:
                self.send_header("Content-Type", kind)
            self.end_headers()
            return data or b""

        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            self.wfile.write(self.do_HEAD())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
