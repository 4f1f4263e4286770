"""The robot's side: asks a server for commands. Needs numpy, msgpack and websockets; neither torch nor lightning.

client = PolicyClient("ws://gpu-box:8000", api_key=key)
client.metadata["example_observation"]            # what an observation looks like
answer = client.infer({"images": ..., "state": ..., "prompt": ...}, timeout=0.5)
answer["actions"]                                 # [H, D] absolute commands, columns client.columns
chunk = client.follow(observation, chunk)         # the next chunk, going on from the one under way (real-time chunking)
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.errors import require
from xwam_ft.policy import wire

try:
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
    from websockets.sync.client import ClientConnection, connect
except ImportError:
    raise require("websockets", "serve", "asking a server") from None

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Contract

RETRY = 0.5
"""Seconds between attempts to reach a server."""
GOODBYE = 0.5
COUNTED = ("quantiles", "prompts", "recorded", "prompt_form")
"""Of a contract: what another training of the same robot changes, and no command's meaning."""
MEASURED = 10
"""Answers whose time is remembered; the longest of them is what the next may take."""


class Refused(RuntimeError):
    """The server said why it does not answer; the message is its sentence."""


@dataclass(frozen=True)
class RunningChunk:
    """A chunk that a robot executes.

    Args:
        actions: commands, columns as `PolicyClient.columns`.
        start: when the first was due, `time.monotonic`.
        period: seconds between two.
        prefix: how many of the first are the chunk's before it; 0: it begins anew.
        lacking: by how many more commands the answer was late than this bundle can go on from.
        answer: all the server said.
    """

    actions: Float[ndarray, "h d"]
    start: float
    period: float
    prefix: int
    lacking: int
    answer: Mapping[str, Any]

    def step(self, now: float) -> int:
        """The command that is due; beyond the last where the chunk has run out."""
        return math.floor((now - self.start) / self.period + 1e-9)


class PolicyClient:
    """A connection to a policy server. Any server of openpi's protocol answers; ours says more in its metadata.

    After an error the connection is closed, and the next call makes another: so a late answer is never taken for that
    to a later request. A server that then serves a bundle whose commands mean something else is refused: a loop holds
    columns, units and period from the first time.

    Args:
        address: "ws://host:port", or "host:port".
        api_key: what the server's --api-key-file holds.
        timeout: seconds a call of `infer` waits, where it names none itself.
        patience: seconds to keep trying to reach a server that is not there yet, its loading included.

    Raises:
        ConnectionError: not reached within `patience`, or not a server of this protocol.
        Refused: the API key is wrong, or the server takes no more clients.
    """

    def __init__(
        self, address: str, api_key: str | None = None, *, timeout: float = 10.0, patience: float = 60.0
    ) -> None:
        self.address = address if "://" in address else f"ws://{address}"
        if not self.address.startswith(("ws://", "wss://")):
            raise ConnectionError(f"{address}: is no address of a policy server. Fix: give ws://host:port")
        self.timeout, self.patience = timeout, patience
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self._connection: ClientConnection | None = None
        self.metadata: dict[str, Any] = {}
        self._took: deque[float] = deque(maxlen=MEASURED)
        self.connect()

    @property
    def contract(self) -> Contract:
        """The contract the server's policy was trained under."""
        from xwam_ft.contract import Contract

        return Contract.model_validate(self.metadata["contract"])

    @property
    def columns(self) -> list[str]:
        """Names of the numbers of `actions`, "slot.number"."""
        return list(self.metadata["action_columns"])

    @property
    def delay(self) -> float | None:
        """Seconds from an observation to its commands, the longest of the last answers; None before the first."""
        return max(self._took, default=None)

    def connect(self, patience: float | None = None) -> None:
        """Reach the server and read its metadata; nothing where that is done."""
        if self._connection is not None:
            return
        until = time.monotonic() + (self.patience if patience is None else patience)
        while True:
            left = max(0.1, until - time.monotonic())
            try:
                connection = connect(
                    self.address, additional_headers=self._headers, compression=None, max_size=None,
                    open_timeout=left, close_timeout=GOODBYE,
                )  # fmt: skip
            except (InvalidURI, ValueError) as error:  # ValueError: a port that is no number
                raise ConnectionError(f"{self.address}: is no address ({error}). Fix: give ws://host:port") from None
            except InvalidHandshake as error:
                response = getattr(error, "response", None)
                said = (getattr(response, "body", None) or b"").decode(errors="replace").strip() or str(error)
                raise Refused(f"{self.address}: {said}") from None
            except OSError as error:  # TimeoutError too
                if time.monotonic() + RETRY >= until:
                    raise ConnectionError(f"{self.address}: no server answers ({error})") from None
                time.sleep(RETRY)
                continue
            try:
                said = connection.recv(timeout=max(0.1, until - time.monotonic()))
            except (TimeoutError, ConnectionClosed) as error:
                _close(connection)
                raise ConnectionError(f"{self.address}: sent no metadata ({error or 'timed out'})") from None
            if isinstance(said, str):
                _close(connection)
                raise Refused(said)
            told = wire.unpack(said, bounded=False)
            if differing := _differing(self.metadata, told):
                _close(connection)
                raise Refused(
                    f"{self.address}: serves another bundle than when this client first connected (its {differing} "
                    "differs), so commands would be misread. Fix: hold the robot, and make a new PolicyClient"
                )
            self._connection, self.metadata = connection, told
            return

    def infer(self, observation: Mapping[str, Any], *, timeout: float | None = None, **options: Any) -> dict[str, Any]:
        """One observation -> the server's answer: `actions` [H, D], `commands`, `clamped`, `warnings`, `server_timing`.

        Args:
            observation: {"images": {camera: uint8 [H, W, 3]}, "state": {slot: numbers}, "prompt": text}.
            timeout: seconds until a TimeoutError, connecting again included.
            options: seed, action_steps, guidance, chunk, prefix or future of this request.

        Raises:
            TimeoutError: no answer in time. What the server answers later is thrown away.
            ConnectionError: the connection broke.
            Refused: the observation does not fit, the server is too busy, or it serves another bundle since it was
                started again; the message says which.
        """
        seconds = self.timeout if timeout is None else timeout
        began = time.monotonic()
        until = began + seconds
        self.connect(seconds)
        assert self._connection is not None
        given = observation.get("options") or {}
        request = {**observation, "options": {**given, **options}} if options else observation
        dropped = threading.Event()
        late = threading.Timer(max(0.0, until - time.monotonic()), _drop, (self._connection, dropped))
        late.daemon = True
        late.start()  # sending to a server that stands still would wait without end
        try:
            self._connection.send(wire.pack(request))
            answer = self._connection.recv()
        except (ConnectionClosed, OSError) as error:
            self.close()
            if dropped.is_set():
                raise TimeoutError(f"{self.address}: no answer within {seconds:g} s") from None
            raise ConnectionError(f"{self.address}: the connection closed ({error})") from None
        except BaseException:
            self.close()
            raise
        finally:
            late.cancel()
        if dropped.is_set():  # just after the answer
            self.close()
        if isinstance(answer, str):
            self.close()
            raise Refused(answer)
        unpacked = wire.unpack(answer, bounded=False)
        self._took.append(time.monotonic() - began)
        return unpacked

    def follow(
        self,
        observation: Mapping[str, Any],
        running: RunningChunk | None = None,
        *,
        seen: float | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> RunningChunk:
        """The chunk that follows the one under way.

        Where the bundle takes prefixes, the new chunk is asked to begin with the commands that will be executed until
        it is there, as many as the measured `delay` lasts, so that nothing jumps where it takes over.

        Args:
            running: the chunk that the robot executes; None: it stands still.
            seen: when the observation was made, `time.monotonic`; default now.
            timeout, options: as `infer`.

        Raises:
            TimeoutError, ConnectionError, Refused: as `infer`.
        """
        seen = time.monotonic() if seen is None else seen
        period = float(self.metadata["action_period"])
        rows, start, lacking = np.zeros((0, len(self.columns))), seen, 0
        longest = int(self.metadata.get("action_prefix", 0))
        if running is not None and longest:
            step = max(0, running.step(seen))
            left = running.actions[step:]
            # Before anything was measured: as many as can be gone on from.
            needed = longest if self.delay is None else math.ceil(self.delay / period) + 1
            rows = left[: min(longest, needed)]
            lacking = max(0, min(needed, len(left)) - longest)
        if len(rows):
            assert running is not None
            start = running.start + max(0, running.step(seen)) * period  # the prefix's first command is due then
            options["prefix"] = rows
        answer = self.infer(observation, timeout=timeout, **options)
        return RunningChunk(np.asarray(answer["actions"]), start, period, len(rows), lacking, answer)

    def close(self) -> None:
        """Close the connection; the next call makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _close(connection)

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing by which commands of two servers' metadata mean something else; None where nothing does."""
    ours, theirs = (dict(told.get("contract") or {}) for told in (before, now))
    if not ours:  # the first time, or a server that is not ours
        return None
    return next((name for name in ours if name not in COUNTED and ours[name] != theirs.get(name)), None)


def _drop(connection: ClientConnection, dropped: threading.Event) -> None:
    """End a connection at once, without a word to the server."""
    dropped.set()
    with suppress(OSError):
        connection.socket.shutdown(socket.SHUT_RDWR)


def _close(connection: ClientConnection) -> None:
    with suppress(OSError):
        connection.close()
