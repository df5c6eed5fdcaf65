"""An S3-compatible server on this machine, and one before it that is slow or fails."""

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "bucket"
_OF_THE_HOP = {
    *("connection", "transfer-encoding", "content-length", "date", "server", "expect"),
}


@dataclass(slots=True)
class Trouble:
    """What the server in front does with each request; ``fails`` answers 500."""

    fails: bool = False
    delay_seconds: float = 0.0
    n_failed: int = 0


@contextlib.contextmanager
def s3() -> Iterator[Trouble]:
    """Serve an empty bucket where the environment now says that AWS is."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    trouble = Trouble()
    front = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    front.daemon_threads = True
    front.behind, front.trouble = f"{host}:{port}", trouble  # type: ignore[attr-defined]
    thread = threading.Thread(target=front.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.setenv(name, "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{front.server_port}")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield trouble
    front.shutdown()
    front.server_close()
    thread.join()
    server.stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        trouble: Trouble = self.server.trouble  # type: ignore[attr-defined]
        body = self._body()
        time.sleep(trouble.delay_seconds)
        if trouble.fails:
            trouble.n_failed += 1
            self._say(500, [], b"")
            return
        behind: str = self.server.behind  # type: ignore[attr-defined]
        onward = http.client.HTTPConnection(behind, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _OF_THE_HOP}
        onward.request(self.command, self.path, body, headers | {"Host": behind})
        answer = onward.getresponse()
        self._say(answer.status, answer.getheaders(), answer.read())
        onward.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while n_bytes := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(n_bytes))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def _say(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        with contextlib.suppress(OSError):  # the client may have gone
            self.send_response(status)
            length = dict(headers).get("Content-Length") if self.command == "HEAD" else None
            for name, value in headers:
                if name.lower() not in _OF_THE_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _pass_on
