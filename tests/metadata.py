"""A stand-in for the service by which EC2 tells a machine about itself."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def metadata(known: Mapping[str, str]) -> Iterator[str]:
    """Serve these values below ``/latest/meta-data``, to who asks with a token alone."""

    class Metadata(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.say(200, "a-token")

        def do_GET(self) -> None:
            said = known.get(self.path.removeprefix("/latest/meta-data/"))
            if self.headers["X-aws-ec2-metadata-token"] != "a-token":
                self.say(401, "")
            else:
                self.say(200 if said else 404, said or "")

        def say(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
