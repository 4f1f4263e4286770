"""`xwam-ft serve`: what is served, the API key, and signals."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.consoles import marked
from xwam_ft.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.policy.messages import Servable


def serve_bundle(
    bundle: Path,
    *,
    host: str,
    port: int,
    device: str = "auto",
    compile: bool = False,
    settings: dict[str, Any] | None = None,
    with_future: bool = False,
    replay: int | None = None,
    api_key_file: Path | None = None,
    looks: Path | None = None,
    console: Console,
) -> None:
    """Serve a bundle, or with `replay` an episode of a shard set, until SIGTERM or Ctrl-C.

    Requests that were read are answered before the server ends; a second signal ends it at once.

    Args:
        settings: fields of `Settings` that replace the bundle's; those that are None do not.
        with_future: see `Policy.show_future`.
        looks: a folder for a picture of each client's first observation beside a recorded one.

    Raises:
        UserError: the bundle, the key file or the address is not usable.
    """
    from xwam_ft.policy.from_hub import bundle_at
    from xwam_ft.policy.look import expected
    from xwam_ft.policy.server import PolicyServer

    api_key = None if api_key_file is None else read_api_key(api_key_file)
    named, bundle = bundle, bundle if replay is not None else bundle_at(bundle, console)
    _log_to(console)
    chosen = {name: value for name, value in (settings or {}).items() if value is not None}
    server = PolicyServer(_loader(bundle, device, compile, chosen, with_future, replay), api_key, looks=looks)

    def listening(address: str) -> None:
        console.print(marked(address, f" loads {named}", "bold"), soft_wrap=True)
        if api_key is None and not _loopback(host):
            console.print("Anyone who reaches this address can ask it: --api-key-file keeps others out.")

    def ready(policy: Servable) -> None:
        timing = policy.contract.timing
        for line in expected(policy.contract, policy.prompts):
            console.print(line, soft_wrap=True)
        takes, lasts = server.answer_seconds, timing.action_steps * timing.action_period
        console.print(
            f"ready: {timing.action_steps} commands an answer, {timing.action_period:.4g} s apart; an answer takes "
            f"{takes:.2g} s; Ctrl-C stops it",
            soft_wrap=True,
        )
        if takes > lasts:
            console.print(
                f"An answer takes longer than its commands last ({lasts:.2g} s), so a robot has to stop between them: "
                "ask for fewer --action-steps, or serve from a faster device.",
                soft_wrap=True,
            )

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def at_once(which: signal.Signals) -> None:
            _leave(console, "stopped at once", 128 + which)  # a network at work cannot be interrupted

        def stop(which: signal.Signals) -> None:
            if not server.warm:
                _leave(console, "stopping: it was still loading", 0)  # nothing was asked
            console.print("stopping: what was asked is answered first")
            for again in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(again, at_once, again)
            server.stop()

        for which in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(which, stop, which)
        await server.run(host, port, listening=listening, ready=ready)

    asyncio.run(run())


def _log_to(console: Console) -> None:
    """What failed, with a traceback, and what is strange goes to stderr; what clients send first to the console."""
    log, strange, first = (
        logging.getLogger("xwam_ft.serve"),
        logging.StreamHandler(),
        logging.StreamHandler(console.file),
    )
    strange.setLevel(logging.WARNING)
    first.addFilter(lambda record: record.levelno < logging.WARNING)
    log.handlers = [strange, *([] if console.quiet else [first])]
    log.setLevel(logging.INFO)


def _leave(console: Console, said: str, code: int) -> None:
    """End the process without waiting for the thread that works, as an ordinary exit would."""
    console.print(said)
    console.file.flush()
    os._exit(code)


def read_api_key(path: Path) -> str:
    """The key a file holds, in one line.

    Raises:
        UserError: no such file, or not one line of at least 16 printable characters.
    """
    fix = "write one line of at least 16 letters and digits, for example with `openssl rand -hex 32`"
    try:
        key = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", path, fix) from None
    except UnicodeDecodeError:
        raise UserError("is not plain text", path, fix) from None
    if len(key) < 16 or not key.isprintable() or " " in key:
        raise UserError("does not hold an API key", path, fix)
    return key


def _loader(
    bundle: Path, device: str, compile: bool, settings: dict[str, Any], with_future: bool, replay: int | None
) -> Callable[[], Servable]:
    def load() -> Servable:
        if replay is not None:
            from xwam_ft.policy.replay import ReplayPolicy

            return ReplayPolicy(bundle, replay)
        from xwam_ft.policy.policy import Policy

        policy = Policy.load(bundle, device, compile=compile)
        policy.settings = replace(policy.settings, **settings)
        if with_future:
            policy.show_future()
        return policy

    return load


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
