"""An HTTP proxy in front of an S3 server, on real sockets: it counts requests, and fails some of them on purpose."""

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

Fault = Literal[
    "slow down",  # 503 before anything is done
    "error",  # 500 before anything is done
    "error after",  # done, but told 500
    "reset",  # RST before anything is done
    "reset after",  # done, but RST instead of an answer
    "reset in body",  # the answer's first half, then RST
    "cut off",  # the answer's first half, then an orderly end
    "short",  # the answer's first half as if it were all of it
    "stall",  # silence, then RST
    "stall in body",  # the answer's first half, silence, then RST
    "forbidden",  # 403
]
# Those that cost a client no waiting beside its own between two tries.
QUICK: Sequence[Fault] = (
    "slow down", "error", "error after", "reset", "reset after", "reset in body", "cut off",
)  # fmt: skip
_STATUS = {
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "error after": (500, "InternalError", "We encountered an internal error. Please try again."),
    "forbidden": (403, "AccessDenied", "Access Denied"),
}


class Request(NamedTuple):
    """One request as the store sees it."""

    kind: str  # GET, GET range, HEAD, LIST, PUT, PUT new, PUT part, POST ..., DELETE
    key: str  # below the bucket; of LIST, the prefix
    fault: Fault | None


Choose = Callable[[str, str], Fault | None]
"""From a request's kind and key to what befalls it."""


def at_random(rate: float, seed: int, faults: Sequence[Fault] = QUICK) -> Choose:
    """Each request fails with probability ``rate``, in one of the ways of ``faults``."""
    generator = random.Random(seed)
    return lambda kind, key: generator.choice(faults) if generator.random() < rate else None


def first(fault: Fault, times: int = 1, *, kind: str = "") -> Choose:
    """The first requests fail; of one kind alone, where it is named."""
    left = [times]

    def choose(of: str, key: str) -> Fault | None:
        if left[0] == 0 or (kind and of != kind):
            return None
        left[0] -= 1
        return fault

    return choose


def always(fault: Fault, *kinds: str) -> Choose:
    """Every request fails, or every one of the kinds."""
    return lambda kind, key: fault if not kinds or kind in kinds else None


@dataclass
class FaultProxy:
    """What the proxy has seen, and does from now on.

    Attributes:
        url: its address, for clients.
        requests: all so far.
        choose: what befalls the next ones.
        stall_seconds: how long silence lasts.
        page_keys: the most keys of an answer to LIST.
    """

    url: str
    requests: list[Request]
    choose: Choose | None = None
    stall_seconds: float = 3.0
    page_keys: int = 1000

    def counts(self) -> Counter[str]:
        """Requests by kind."""
        return Counter(request.kind for request in self.requests)

    def faults(self) -> Counter[str]:
        """Requests that failed on purpose, by how."""
        return Counter(request.fault for request in self.requests if request.fault)


def _kind(method: str, target: str, headers: http.client.HTTPMessage) -> tuple[str, str]:
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    key = unquote(parts.path).lstrip("/").partition("/")[2]
    if method == "GET" and "list-type" in query:
        return "LIST", query.get("prefix", [""])[0]
    if method == "GET" and "Range" in headers:
        return "GET range", key
    if method == "PUT" and "partNumber" in query:
        return "PUT part", key
    if method == "PUT" and "If-None-Match" in headers:
        return "PUT new", key
    if method == "POST":
        return f"POST {next(iter(query), '')}", key
    return method, key


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy in front of the server at ``upstream``; it passes everything on until it is told to ``choose``."""
    lock = threading.Lock()
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: the proxy's counts are the log."""

        def answer(self) -> None:
            body = self.body()
            kind, key = _kind(self.command, self.path, self.headers)
            with lock:
                fault = proxy.choose(kind, key) if proxy.choose else None
                proxy.requests.append(Request(kind, key, fault))
            if fault == "reset":
                return self.reset()
            if fault == "stall":
                ended.wait(proxy.stall_seconds)
                return self.reset()
            if fault in ("slow down", "error", "forbidden"):
                return self.refuse(fault)
            paged = f"&max-keys={proxy.page_keys}" if kind == "LIST" else ""
            status, headers, content = self.forward(self.path + paged, body)
            if fault == "reset after":
                return self.reset()
            if fault == "error after":
                return self.refuse(fault)
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("connection", "transfer-encoding", "server", "date", "content-length"):
                    self.send_header(name, value)
            length = {name.lower(): value for name, value in headers}.get("content-length")
            if fault == "short":
                content, fault = content[: len(content) // 2], None
            # Of a HEAD the length is that of a body that does not come.
            self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
            self.end_headers()
            if fault is None:
                self.wfile.write(content)
                return None
            # Without a body there is no half of it: the answer is whole, and the connection ends.
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if fault == "stall in body":
                ended.wait(proxy.stall_seconds)
            if fault == "cut off":
                self.close_connection = True
                return None
            return self.reset()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def body(self) -> bytes:
            """What came with the request; passed on in one piece, also where it came in chunks (RFC 9112, 7.1)."""
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline() not in (b"\r\n", b""):
                pass  # trailers
            del self.headers["Transfer-Encoding"]
            return b"".join(parts)

        def forward(self, target: str, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=60)
            try:
                connection.request(self.command, target, body or None, dict(self.headers))
                answer = connection.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            finally:
                connection.close()

        def refuse(self, fault: Fault) -> None:
            status, code, message = _STATUS[fault]
            said = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
            content = b"" if self.command == "HEAD" else said.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def reset(self) -> None:
            self.wfile.flush()
            # No lingering: closing sends RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that gave up first is no error here."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy = FaultProxy(f"http://127.0.0.1:{server.server_address[1]}", [])
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield proxy
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
