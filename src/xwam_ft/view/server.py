"""HTTP for the page: on this machine alone unless a host is given, and for no page but our own.

A page of another site could send a browser here under a name of its own that it lets point to this machine (DNS
rebinding). So where the server listens at this machine alone, requests must name this machine; and what starts work
must be sent by our own page, as JSON, which no other page may send without being asked first.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import math
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from xwam_ft.errors import UserError

LOCAL = ("127.0.0.1", "localhost", "::1")
CHUNK = 1 << 18
LONGEST = 1 << 16  # bytes of a question
PAGE = "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Answer:
    """What is sent: bytes, or a part of a file.

    Args:
        lasting: the same address never stands for anything else, so a browser may keep it.
    """

    kind: str
    body: bytes | tuple[Path, int, int]  # file, offset, size
    status: int = 200
    lasting: bool = False

    @classmethod
    def of(cls, value: Any, status: int = 200) -> Answer:
        """A value as JSON; numbers that are not finite, of a loss that burst say, are null there."""
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except ValueError:
            text = json.dumps(_finite(value), ensure_ascii=False)
        return cls("application/json; charset=utf-8", text.encode(), status)

    @property
    def size(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.body[2]


Ask = Callable[[tuple[str, ...]], Answer | None]
Tell = Callable[[tuple[str, ...], Any], Answer | None]


class PageServer(ThreadingHTTPServer):
    """Answers requests, each in a thread, from `ask` (GET) and `tell` (POST, with JSON).

    Args:
        host: None listens at this machine alone.
        port: 0 takes a free one.

    Raises:
        UserError: nobody can listen there.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, ask: Ask, tell: Tell, host: str | None = None, port: int = 0) -> None:
        self.ask, self.tell, self.local = ask, tell, host is None
        try:
            given = host or LOCAL[0]
            family, _, _, _, place = socket.getaddrinfo(given, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__((str(place[0]), port), _Handler)
        except OSError as error:
            fix = "leave it out: a free one is taken" if not isinstance(error, socket.gaierror) else "give 127.0.0.1"
            where = f"--host {host}" if isinstance(error, socket.gaierror) else f"--port {port}"
            if error.errno == errno.EADDRNOTAVAIL:
                where, fix = f"--host {host}", "give an address of this machine, or 0.0.0.0 for all of them"
            what = "is in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
            raise UserError(what, where, fix) from None

    @property
    def address(self) -> str:
        """What to open in a browser."""
        host, port = self.server_address[:2]
        host = str(host)
        if ipaddress.ip_address(host).is_unspecified:
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def begin(self) -> None:
        """Answer in a thread, until `close`."""
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True, name="page").start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def server_bind(self) -> None:
        """As the standard library's, without its look-up of this machine's name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is nothing to tell; anything else is a bug."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "xwam-ft", ""
    timeout = 60

    def do_GET(self) -> None:
        self._answered(lambda path: self.server.ask(path))

    def do_HEAD(self) -> None:
        self._answered(lambda path: self.server.ask(path))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LONGEST:
            self.close_connection = True
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a question is a little JSON")
        body = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json" or not self._of_our_page():
            return self._refuse(HTTPStatus.FORBIDDEN, "only the page itself may ask this")
        try:
            question = json.loads(body)
        except ValueError:
            return self._refuse(HTTPStatus.BAD_REQUEST, "is no JSON")
        return self._answered(lambda path: self.server.tell(path, question))

    def _answered(self, answer: Callable[[tuple[str, ...]], Answer | None]) -> None:
        if self.server.local and _name(self.headers.get("Host", "")) not in LOCAL:
            return self._refuse(HTTPStatus.FORBIDDEN, "this page is for this machine: open it as localhost")
        try:
            path = tuple(unquote(part, errors="strict") for part in urlsplit(self.path).path.split("/")[1:])
            found = answer(path)
        except UnicodeDecodeError:
            found = None
        except UserError as error:
            return self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except Exception:
            traceback.print_exc()
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "an error of xwam-ft: see where it runs")
        if found is None:
            return self._refuse(HTTPStatus.NOT_FOUND, "is not here")
        return self._send(found)

    def _of_our_page(self) -> bool:
        origin = self.headers.get("Origin")
        return origin is None or urlsplit(origin).netloc == self.headers.get("Host")

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(Answer.of({"error": why}, status))

    def _send(self, answer: Answer) -> None:
        first, stop, status = 0, answer.size, answer.status
        asked = self.headers.get("Range") if status == HTTPStatus.OK and self.command != "POST" else None
        if asked is not None and (part := byte_range(asked, answer.size)) is not None:
            if part[0] >= part[1]:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{answer.size}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            (first, stop), status = part, HTTPStatus.PARTIAL_CONTENT
        self.send_response(status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(stop - first))
        self.send_header("Accept-Ranges", "bytes")
        if status == HTTPStatus.PARTIAL_CONTENT:
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{answer.size}")
        self.send_header("Cache-Control", "private, max-age=86400" if answer.lasting else "no-store")
        self.send_header("Content-Security-Policy", PAGE)
        for name in ("Cross-Origin-Resource-Policy", "Cross-Origin-Opener-Policy"):
            self.send_header(name, "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        if self.command != "HEAD":
            self._write(answer.body, first, stop)
        return None

    def _write(self, body: bytes | tuple[Path, int, int], first: int, stop: int) -> None:
        if isinstance(body, bytes):
            self.wfile.write(body[first:stop])
            return
        path, offset, _ = body
        with path.open("rb") as stream:
            stream.seek(offset + first)
            left = stop - first
            while left > 0 and (data := stream.read(min(CHUNK, left))):
                self.wfile.write(data)
                left -= len(data)
            self.close_connection = self.close_connection or left > 0  # a file that was cut: the browser is to notice

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page asks for hundreds of pictures."""


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the one past the last that a `Range` asks for; empty where it lies outside.

    None: it is of another form, or of several parts, and the whole is sent, as RFC 9110 allows.
    """
    unit, _, parts = header.partition("=")
    first, dash, last = parts.strip().partition("-")
    whole = unit.strip().lower() == "bytes" and dash and "," not in parts
    if (
        not whole
        or not (first or last)
        or not all(end == "" or (end.isascii() and end.isdigit()) for end in (first, last))
    ):
        return None
    if not first:
        return (max(0, size - int(last)), size) if int(last) else (size, size)
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
