"""A server between a client and another server that answers late and keeps a list of what came."""

import contextlib
import http.client
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_ANSWER_SECONDS = 60


@dataclass(slots=True)
class SlowServer:
    """``address`` answers for another server ``delay_seconds`` after that one did.

    ``requests`` are ``METHOD /path`` in the order they came. After ``dies_after`` of them it
    passes on no further one, and the answer to the last is lost.
    """

    address: str
    delay_seconds: float
    dies_after: float = math.inf
    requests: list[str] = field(default_factory=list)


@contextlib.contextmanager
def slowed(
    target: str, delay_seconds: float, *, dies_after: float = math.inf
) -> Iterator[SlowServer]:
    """Stand before the server at the address ``target``, on a free port of this machine."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    listener.daemon_threads = True
    slow = SlowServer(f"http://127.0.0.1:{listener.server_port}", delay_seconds, dies_after)
    listener.target, listener.slow = target, slow  # type: ignore[attr-defined]
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield slow
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        slow: SlowServer = self.server.slow  # type: ignore[attr-defined]
        slow.requests.append(f"{self.command} {urlsplit(self.path).path}")
        if len(slow.requests) > slow.dies_after:
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        host = urlsplit(self.server.target).netloc  # type: ignore[attr-defined]
        onward = http.client.HTTPConnection(host, timeout=_ANSWER_SECONDS)
        # whole answers alone: no compression and no chunks to take apart
        headers = {k: v for k, v in self.headers.items() if k.lower() != "accept-encoding"}
        try:
            onward.request(self.command, self.path, body, headers | {"Host": host})
            answer = onward.getresponse()
            content = answer.read()
        except OSError:
            self.send_error(503)
            return
        finally:
            onward.close()
        time.sleep(slow.delay_seconds)
        if len(slow.requests) >= slow.dies_after:
            self.close_connection = True
            return
        self._answer(answer, content)

    def _answer(self, answer: http.client.HTTPResponse, content: bytes) -> None:
        with contextlib.suppress(OSError):  # the client may have gone
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on
