"""A policy at a WebSocket, by the protocol openpi's clients speak.

On connecting a client gets one binary msgpack map, the metadata (messages.py); then every binary observation it sends
is answered by a binary map with `actions`. An error is a text frame of one sentence, after which the connection closes
with code 1011. `GET /healthz` says 200 once the policy has warmed up and 503 before; `GET /metrics` speaks Prometheus.

The event loop only moves bytes: requests are read, answered and packed one after the other, in the order they came, on
one thread of their own. A client that connects early gets its metadata when the policy is warm.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from xwam_ft.errors import UserError, require
from xwam_ft.policy import look, messages, wire
from xwam_ft.policy.metrics import Metrics
from xwam_ft.policy.watch import ObservationWatch, watch_of

try:
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosed
    from websockets.frames import CloseCode
    from websockets.protocol import State
except ImportError:
    raise require("websockets", "serve", "serving") from None

if TYPE_CHECKING:
    from pathlib import Path

    from websockets.http11 import Request, Response

    from xwam_ft.policy.messages import Servable
    from xwam_ft.policy.request import PolicyOutput

LOG = logging.getLogger("xwam_ft.serve")
_QUIET = logging.getLogger("xwam_ft.serve.websockets")  # logs every broken handshake with a traceback
_QUIET.setLevel(logging.CRITICAL)
LONGEST_ERROR = 2000
_T = TypeVar("_T")


@dataclass(frozen=True)
class ServerLimits:
    """What a server takes on.

    Args:
        message_bytes: the largest request.
        waiting: requests not yet answered, of all clients; one more is refused.
        connections: clients at a time; one more gets 503.
    """

    message_bytes: int = 64 * 2**20
    waiting: int = 16
    connections: int = 32


class PolicyServer:
    """Serves one policy.

    Args:
        load: makes the policy; called on the thread that will answer, while /healthz says 503.
        api_key: clients must send `Authorization: Api-Key KEY`; None: anyone may connect.
        looks: a folder for a picture of each client's first observation.
    """

    def __init__(
        self,
        load: Callable[[], Servable],
        api_key: str | None = None,
        limits: ServerLimits | None = None,
        looks: Path | None = None,
    ) -> None:
        self.load, self.limits, self.metrics, self.looks = load, limits or ServerLimits(), Metrics(), looks
        self.answer_seconds = 0.0  # what an answer takes, once it is warm
        self._expected = None if api_key is None else f"Api-Key {api_key}".encode()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(
        self,
        host: str,
        port: int,
        *,
        listening: Callable[[str], None] = lambda address: None,
        ready: Callable[[Servable], None] = lambda policy: None,
    ) -> None:
        """Serve until `stop`; then answer what was asked, and close.

        Args:
            port: 0 takes a free one.
            listening: told the address as soon as it is bound.
            ready: told when the policy is warm.

        Raises:
            UserError: the address cannot be bound; whatever `load` raises.
        """
        self._loop = asyncio.get_running_loop()
        self._stop, self._warm = asyncio.Event(), asyncio.Event()
        self._worker = ThreadPoolExecutor(1, "policy")
        server = await self._bind(host, port)
        try:
            listening(_address(host, server.sockets[0].getsockname()[1]))
            preparing = self._loop.run_in_executor(self._worker, self._prepare)
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({preparing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if preparing.done():
                self.policy, self._metadata = preparing.result()
                self._warm.set()
                ready(self.policy)
            await stopping
        finally:
            self._stop.set()
            server.close(close_connections=False)
            await server.wait_closed()
            self._worker.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """End `run`, from any thread or a signal handler: no new request is read, those that were are answered."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    @property
    def warm(self) -> bool:
        """Whether it answers: the policy is loaded, and a first request was made of it."""
        return self._warm.is_set()

    async def _bind(self, host: str, port: int) -> Any:
        try:
            return await serve(
                self._handle,
                host,
                port,
                process_request=self._http,
                create_connection=_Connection,
                origins=[None],  # browsers name one: a page somewhere must not command a robot
                compression=None,
                max_size=self.limits.message_bytes,
                max_queue=1,
                logger=_QUIET,
            )
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot be served at ({reason})", f"{host}:{port}", "choose --host and --port") from None

    def _prepare(self) -> tuple[Servable, bytes]:
        policy = self.load()
        if getattr(policy, "watch", None) is not None:
            setattr(policy, "watch", None)  # noqa: B010  (every client has its own)
        self.answer_seconds = min(policy.warm_up() for _ in range(2))  # the first call sets things up
        return policy, wire.pack(messages.metadata(policy))

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP; None goes on to the WebSocket."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            if not self._warm.is_set():
                return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "loading\n")
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._expected is not None:
            given = request.headers.get_all("Authorization")
            # Compared in constant time, so that how long a refusal takes tells nothing.
            if len(given) != 1 or not hmac.compare_digest(given[0].encode(errors="replace"), self._expected):
                said = "the API key is wrong; " if given else "an API key is needed; "
                said += "send the header Authorization: Api-Key KEY with the key the server was started with\n"
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, said)
        if path == "/metrics":
            return connection.respond(http.HTTPStatus.OK, self.metrics.text())
        if self.metrics.connections >= self.limits.connections:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        """One client, from metadata to goodbye."""
        self.metrics.connections += 1
        try:
            await self._unless_stopped(self._warm.wait())
            await connection.send(self._metadata)
            before: float | None = None
            watch = watch_of(self.policy)
            while True:
                message = await self._unless_stopped(connection.recv())
                started = time.perf_counter()
                answer, infer, news = await self._answer(connection, message, before, watch)
                for sentence in news:
                    LOG.warning("%s: %s", _peer(connection), sentence)
                await connection.send(answer)
                before = time.perf_counter() - started
                self.metrics.requests["answered"] += 1
                self.metrics.infer.add(infer)
                self.metrics.whole.add(before)
        except _Stopped:
            await connection.close(CloseCode.GOING_AWAY, "the server is stopping")
        except (_Left, ConnectionClosed):
            pass
        except UserError as error:
            self.metrics.requests["refused"] += 1
            await _refuse(connection, str(error))
        except Exception:
            self.metrics.requests["failed"] += 1
            LOG.exception("a request failed")
            await _refuse(connection, "the server failed at this request; its log says why")
        finally:
            self.metrics.connections -= 1

    async def _answer(
        self, connection: ServerConnection, message: str | bytes, before: float | None, watch: ObservationWatch
    ) -> tuple[bytes, float, list[str]]:
        """Ask the policy on its thread; a client that leaves while it waits is not answered."""
        assert self._loop is not None
        if self.metrics.waiting >= self.limits.waiting:
            raise UserError(
                f"has {self.limits.waiting} requests waiting", "the server", "ask again later, or run another server"
            )
        self.metrics.waiting += 1
        job = self._worker.submit(self._infer, message, before, watch, _peer(connection))
        job.add_done_callback(self._answered)
        answer = asyncio.wrap_future(job)
        left = asyncio.create_task(connection.wait_closed())
        try:
            await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise _Left
            return answer.result()
        finally:
            left.cancel()
            answer.cancel()

    def _answered(self, job: Future[Any]) -> None:
        def count() -> None:
            self.metrics.waiting -= 1

        assert self._loop is not None
        with suppress(RuntimeError):  # the loop has gone
            self._loop.call_soon_threadsafe(count)

    def _infer(
        self, message: str | bytes, before: float | None, watch: ObservationWatch | None = None, peer: str = ""
    ) -> tuple[bytes, float, list[str]]:
        """A message -> the answer's bytes, the policy's seconds, and what the log has not said of this client yet.

        Runs on the policy's thread.
        """
        if isinstance(message, str):
            raise UserError("is text", wire.WHERE, "send observations as binary msgpack")
        request = wire.unpack(message)
        if not isinstance(request, Mapping):
            raise UserError(f"is a {type(request).__name__}", wire.WHERE, "send an observation, which is a map")
        started = time.perf_counter()
        with np.errstate(all="ignore"):  # numbers as large as a stranger likes; what is not finite is refused later
            output = self.policy.infer(request)  # pyright: ignore[reportUnknownArgumentType]
        infer = time.perf_counter() - started
        timing = {"infer_ms": 1e3 * infer}
        timing |= {f"{name}_ms": 1e3 * seconds for name, seconds in output.seconds.items() if name != "total"}
        if before is not None:
            timing["prev_total_ms"] = 1e3 * before
        news: list[str] = []
        if watch is not None:
            if not watch.looked:
                self._show(peer, output)
            said = watch.sentences(output)
            news = [*watch.first_of(output.warnings), *said]
            output = replace(output, warnings=(*output.warnings, *said))
        return wire.pack(messages.answer(self.policy.contract, output, timing)), infer, news

    def _show(self, peer: str, output: PolicyOutput) -> None:
        """A client's first observation, for a person to compare with the recordings."""
        if output.seen is None:
            return
        shown = ""
        if self.looks is not None:
            path = self.looks / f"{peer.replace(':', '-')}.png"
            try:
                look.picture(self.policy.contract, output.seen, getattr(self.policy, "recorded", None), path)
                shown = f"; {path}"
            except OSError as error:  # a full disk is no reason to leave a robot without an answer
                LOG.warning("%s: cannot be written (%s)", path, error.strerror)
        LOG.info("%s: first observation: %s%s", peer, look.sent(self.policy.contract, output.seen), shown)

    async def _unless_stopped(self, awaited: Awaitable[_T]) -> _T:
        task = asyncio.ensure_future(awaited)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise _Stopped
        finally:
            task.cancel()
            stopping.cancel()


class _Stopped(Exception):
    """The server is asked to stop."""


class _Left(Exception):
    """A client went away before its answer was there."""


class _Connection(ServerConnection):
    """A connection that says a message is too large before it closes."""

    def __init__(self, protocol: Any, server: Any, **options: Any) -> None:
        super().__init__(protocol, server, **options)
        fail = protocol.fail

        def fail_in_words(code: int, reason: str = "") -> None:
            if code == CloseCode.MESSAGE_TOO_BIG and protocol.state is State.OPEN:
                said = UserError(f"is too large ({reason})", wire.WHERE, "send smaller pictures")
                protocol.send_text(str(said).encode())
                code = CloseCode.INTERNAL_ERROR
            fail(code, reason)

        protocol.fail = fail_in_words


async def _refuse(connection: ServerConnection, sentence: str) -> None:
    with suppress(ConnectionClosed):
        await connection.send(sentence[:LONGEST_ERROR].encode(errors="replace").decode())
        await connection.close(CloseCode.INTERNAL_ERROR, "the text before this says why")


def _peer(connection: ServerConnection) -> str:
    """A client, for the log."""
    found: Any = connection.remote_address
    return f"{found[0]}:{found[1]}" if found else "a client that left"


def _address(host: str, port: int) -> str:
    return f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"


@contextmanager
def serving(
    policy: Servable,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    api_key: str | None = None,
    limits: ServerLimits | None = None,
    looks: Path | None = None,
) -> Generator[str]:
    """Serve a policy from a thread while the `with` lasts; gives the address, once it is warm.

    The policy answers on a thread of the server's, so it must not have been compiled with CUDA graphs on another;
    `PolicyServer` loads where it answers.

    Raises:
        UserError: the address cannot be bound, or the policy cannot answer.
    """
    server = PolicyServer(lambda: policy, api_key, limits, looks)
    warm: Future[str] = Future()
    address: list[str] = []

    def run() -> None:
        try:
            asyncio.run(
                server.run(host, port, listening=address.append, ready=lambda policy: warm.set_result(address[0]))
            )
        except BaseException as error:
            if warm.done():
                raise
            warm.set_exception(error)

    thread = threading.Thread(target=run, name="policy server")
    thread.start()
    try:
        yield warm.result()
    finally:
        server.stop()
        thread.join()
