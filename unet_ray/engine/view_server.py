"""An HTTP server on loopback for zarr groups and a page; browsers of other sites and hosts get nothing."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from unet_ray.errors import ConfigError, UnetRayError
from unet_ray.storage.served_zarr import ServedZarr, is_safe_key

HOST = "127.0.0.1"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_PIECE_BYTES = 4 << 20
_IDLE_SECONDS = 60
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_DATA = "application/octet-stream"
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """Body of an answer and its media type."""

    body: bytes
    media_type: str
    headers: tuple[tuple[str, str], ...] = ()


Answers = Callable[[Sequence[str]], Answer | None]
"""What is at the parts of a path, or None; may raise `UnetRayError` where it cannot be read."""


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and number of bytes of an object of ``size`` bytes that a Range header asks for.

    Returns:
        0 bytes where the range lies outside the object; None where the whole is to be given: there is no header, or
        one that is none, or it asks for several ranges.

    >>> byte_range("bytes=2-5", 10), byte_range("bytes=-3", 10), byte_range("bytes=8-", 10)
    ((2, 4), (7, 3), (8, 2))
    >>> byte_range("bytes=10-", 10), byte_range("bytes=0-1,4-5", 10)
    ((10, 0), None)

    Source: RFC 9110, section 14.
    """
    asked = _RANGE.fullmatch(header) if header else None
    if asked is None or not any(asked.groups()):
        return None
    first, last = asked.groups()
    if not first:
        length = min(int(last), size)
        return size - length, length
    if last and int(last) < int(first):
        return None
    start = min(int(first), size)
    return start, (min(int(last) + 1, size) if last else size) - start if start < size else 0


class ViewServer(ThreadingHTTPServer):
    """Serves at 127.0.0.1 until it is closed.

    Args:
        port: 0: any free one.
        groups: zarr groups by the first part of their path.
        answers: everything else.
        origins: web sites, as scheme and host, that may read the groups from another origin.

    Raises:
        ConfigError: the port cannot be had.
    """

    daemon_threads = True

    def __init__(
        self, port: int, groups: Mapping[str, ServedZarr], answers: Answers, origins: Sequence[str] = ()
    ) -> None:
        self.groups, self.answers, self.origins = groups, answers, frozenset(origins)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"--port {port} cannot be served at ({error.strerror}); choose another, or 0 for any free one"
            ) from error

    @property
    def url(self) -> str:
        """Address of the page, without a slash at its end."""
        return f"http://{HOST}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no error, nor is an interrupt, which closes what just came in."""
        if not isinstance(sys.exception(), ConnectionError) and request.fileno() != -1:
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_GET

    def do_OPTIONS(self) -> None:
        if self._is_for_us():
            self._send(204)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # one line per chunk would bury the links

    def _is_for_us(self) -> bool:
        """Whether the request names this machine; a name that was rebound to it is another's page asking."""
        if _is_loopback(self.headers.get("Host", "")):
            return True
        self._send(403, Answer(b"only 127.0.0.1 and localhost are served\n", "text/plain"))
        return False

    def _answer(self) -> None:
        if not self._is_for_us():
            return
        path = self.path.partition("?")[0].removeprefix("/")
        key = unquote(path)
        # A slash inside a part, however it is written, would be another key.
        if path and (not is_safe_key(key) or key.count("/") != path.count("/")):
            self._send_missing()
            return
        first, _, rest = key.partition("/")
        try:
            if first in self.server.groups:
                self._send_object(self.server.groups[first], rest)
                return
            answer = self.server.answers(key.split("/"))
        except UnetRayError as error:
            self._send(500, Answer(f"{error}\n".encode(), "text/plain; charset=utf-8"))
            return
        if answer is None:
            self._send_missing()
        else:
            self._send(200, answer)

    def _send_object(self, group: ServedZarr, key: str) -> None:
        size = group.size(key) if key else None
        if size is None:
            self._send_missing()
            return
        get = self.command == "GET"
        asked = byte_range(self.headers.get("Range"), size) if get else None
        if asked is not None and asked[1] == 0:
            self._send(416, Answer(b"", _DATA, (("Content-Range", f"bytes */{size}"),)))
            return
        start, length = asked or (0, size)
        pieces = _pieces(group, key, start, length)
        first = next(pieces, b"") if get else b""  # what cannot be read at all is answered with the reason
        headers = [("Accept-Ranges", "bytes")]
        if asked is not None:
            headers.append(("Content-Range", f"bytes {start}-{start + length - 1}/{size}"))
        self._send_head(200 if asked is None else 206, length, _media_type(key), headers)
        if get:
            self._send_pieces(first, pieces, length)

    def _send_pieces(self, first: bytes, others: Iterator[bytes], length: int) -> None:
        self.wfile.write(first)
        sent = len(first)
        with contextlib.suppress(UnetRayError):
            for piece in others:
                self.wfile.write(piece)
                sent += len(piece)
        # The object became shorter or the store is gone: only an early end tells the client.
        self.close_connection = self.close_connection or sent < length

    def _send_missing(self) -> None:
        self._send(404, Answer(b"there is no such thing\n", "text/plain"))

    def _send(self, status: int, answer: Answer | None = None) -> None:
        body = b"" if answer is None else answer.body
        media_type, headers = (None, ()) if answer is None else (answer.media_type, answer.headers)
        self._send_head(status, None if status == 204 else len(body), media_type, headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_head(
        self, status: int, length: int | None, media_type: str | None, headers: Sequence[tuple[str, str]]
    ) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if media_type is not None:
            self.send_header("Content-Type", media_type)
        # What is shown may be written at the same time.
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Vary", "Origin")
        for name, value in (*headers, *self._cross_origin()):
            self.send_header(name, value)
        self.end_headers()

    def _cross_origin(self) -> list[tuple[str, str]]:
        """Leave for the neuroglancer that was named, and for pages of this machine, to read the answer."""
        origin = self.headers.get("Origin", "")
        if origin not in self.server.origins and not _is_loopback(origin.partition("://")[2]):
            return []
        return [
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS"),
            ("Access-Control-Allow-Headers", "Range"),
            ("Access-Control-Expose-Headers", "Content-Length, Content-Range, Accept-Ranges"),
            # Asked for by Chromium before a public page may reach this machine.
            ("Access-Control-Allow-Private-Network", "true"),
        ]


def _pieces(group: ServedZarr, key: str, start: int, length: int) -> Iterator[bytes]:
    """Bytes of an object in turn: a shard may be larger than memory is to spare."""
    for offset in range(0, length, _PIECE_BYTES):
        yield group.get_part(key, start + offset, min(length - offset, _PIECE_BYTES)) or b""


def _is_loopback(host: str) -> bool:
    """Whether ``host``, with or without a port, is a name of this machine for itself."""
    try:
        return urlsplit(f"//{host}").hostname in _LOOPBACK
    except ValueError:
        return False


def _media_type(key: str) -> str:
    return _JSON if key.rpartition("/")[2] in ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata") else _DATA
