"""Stores on this machine: an S3 server (moto), a web server that answers ranges, and faults in front of either."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

Answer = tuple[int, dict[str, str], bytes]
CODES = {"403": b"AccessDenied", "503": b"SlowDown", "500": b"InternalError", "404": b"NoSuchKey"}
DROPPED = {"transfer-encoding", "connection", "content-length", "server", "date"}


@dataclass
class Fault:
    """What becomes of the next `times` requests whose line has `match` in it.

    `kind`: cut (the body breaks off half-way), short (less than was asked for, honestly declared), flip (a bit in the
    middle is another), slow (the answer waits `seconds`), silent (no answer), or a status.
    """

    kind: str
    match: str = "GET"
    times: int = 1
    seconds: float = 0.0


@dataclass
class Gate:
    """An HTTP server over a folder, or before another (`upstream`, host and port); notes requests, makes faults."""

    folder: Path | None = None
    upstream: tuple[str, int] | None = None
    ranges: bool = True
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)  # "GET /path bytes=0-9"
    sent: int = 0  # bytes of bodies
    latency: float = 0.0  # seconds before every answer
    rate: float = 0.0  # bytes a second of an answer; 0: as fast as it goes

    def __post_init__(self) -> None:
        gate, self._lock = self, threading.Lock()

        class Handler(_Handler):
            at = gate

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def gets(self, part: str = "") -> list[str]:
        """The requests for bytes whose path has this part."""
        return [line for line in self.seen if line.startswith("GET") and part in line]

    def fault_of(self, line: str) -> Fault | None:
        with self._lock:
            self.seen.append(line)
            for fault in self.faults:
                if fault.match in line and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        if self.upstream is not None:
            link = http.client.HTTPConnection(*self.upstream, timeout=60)
            link.request(method, target, body, headers)
            found = link.getresponse()
            return found.status, dict(found.getheaders()), found.read()
        assert self.folder is not None
        path = self.folder / unquote(urlsplit(target).path).lstrip("/")
        if not path.is_file():
            return 404, {}, b"not here"
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
        if not asked or not self.ranges:
            return 200, {"Accept-Ranges": "bytes"} if self.ranges else {}, data
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        return 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    at: Gate

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = f"{self.command} {self.path} {self.headers.get('Range') or ''}".rstrip()
        fault = self.at.fault_of(line)
        time.sleep(self.at.latency + (fault.seconds if fault else 0.0))
        if fault and fault.kind == "silent":
            self.close_connection = True
            self.connection.close()
            return
        if fault and fault.kind.isdigit():
            status, headers, data = int(fault.kind), {}, b"<Error><Code>%s</Code></Error>" % CODES.get(fault.kind, b"")
        else:
            status, headers, data = self.at.answer(self.command, self.path, dict(self.headers), body)
        if fault and fault.kind == "short":
            data = data[: len(data) // 2]
        if fault and fault.kind == "flip":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        declared = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in DROPPED:
                self.send_header(name, value)
        self.send_header("Content-Length", declared)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.kind == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            self.connection.close()
            return
        if self.at.rate:
            time.sleep(len(data) / self.at.rate)
        self.wfile.write(data)
        self.at.sent += len(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do


@dataclass
class Store:
    """An S3 server behind a gate, which this process's s3:// URLs lead to; one empty bucket."""

    gate: Gate
    bucket: str = "lab"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    def client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.gate.url, region_name="us-east-1")

    def names(self, prefix: str = "") -> list[str]:
        """The objects below a prefix."""
        found = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(row["Key"] for page in found for row in page.get("Contents", []))

    def files(self, prefix: str) -> dict[str, bytes]:
        """What lies below a prefix."""
        client, start = self.client(), prefix.rstrip("/") + "/"
        read = {n: client.get_object(Bucket=self.bucket, Key=n)["Body"].read() for n in self.names(start)}
        return {name.removeprefix(start): data for name, data in read.items()}

    def upload(self, folder: Path, prefix: str) -> str:
        """Put a folder there; returns its URL."""
        client = self.client()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder).as_posix()}"
                client.put_object(Bucket=self.bucket, Key=key, Body=path.read_bytes())
        return f"{self.url}/{prefix}"


@contextmanager
def s3_store(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[Store]:
    """A store; `cache` is where copies go."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    link = http.client.HTTPConnection(*moto.get_host_and_port())
    link.request("POST", "/moto-api/reset")  # servers of one process have one content
    assert link.getresponse().status == 200
    gate = Gate(upstream=moto.get_host_and_port())
    given = {
        "AWS_ENDPOINT_URL": gate.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # bodies without trailers, which the gate passes on
        "XWAM_FT_CACHE": str(cache),
    }
    for name, value in given.items():
        patch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    store = Store(gate, environment=given)
    try:
        store.client().create_bucket(Bucket=store.bucket)
        yield store
    finally:
        S3FileSystem.clear_instance_cache()
        gate.close()
        moto.stop()
