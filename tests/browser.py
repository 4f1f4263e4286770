"""Chromium without a window, driven by its own DevTools protocol over a web socket: no driver to install."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--mute-audio",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
]


class Browser:
    """One tab; keeps what the console said and which addresses were asked for."""

    def __init__(self, profile: Path) -> None:
        from websockets.sync.client import connect

        assert CHROMIUM is not None
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        ports = profile / "DevToolsActivePort"
        for _ in range(600):
            if ports.is_file() and len(ports.read_text().splitlines()) == 2:
                break
            assert self.process.poll() is None, "chromium ended"
            time.sleep(0.1)
        port, place = ports.read_text().splitlines()
        self.socket = connect(f"ws://127.0.0.1:{port}{place}", max_size=None, open_timeout=60, ping_interval=None)
        self.numbers = itertools.count(1)
        self.session: str | None = None
        self.console: list[str] = []
        self.asked: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Do something; events that come meanwhile are noted."""
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        self.socket.send(json.dumps(message if self.session is None else message | {"sessionId": self.session}))
        while True:
            said = json.loads(self.socket.recv(timeout=120))
            if said.get("id") == number:
                assert "error" not in said, said["error"]
                return said["result"]
            self._note(said)

    def _note(self, said: dict[str, Any]) -> None:
        told = said.get("params", {})
        match said.get("method"):
            case "Network.requestWillBeSent":
                self.asked.append(told["request"]["url"])
            case "Runtime.exceptionThrown":
                self.console.append(json.dumps(told["exceptionDetails"])[:2000])
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.console.append(json.dumps(told["args"])[:2000])
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.console.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
            case _:
                pass

    def open(self, address: str) -> None:
        self.send("Page.navigate", url="about:blank")  # so that another fragment of one page is loaded anew too
        self.send("Page.navigate", url=address)

    def run(self, code: str) -> Any:
        """The value of an expression of JavaScript, awaited."""
        found = self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, code: str, seconds: float = 60.0) -> Any:
        """Once an expression is true, its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(code)):
            assert time.monotonic() < end, f"never came true: {code}"
            time.sleep(0.05)
        return value

    def size(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, name: str) -> None:
        """light or dark"""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def key(self, name: str) -> None:
        text = {"text": " "} if name == " " else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=name)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        (x, y), (to_x, to_y) = start, end
        self.send("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", buttons=1, clickCount=1)
        for step in range(1, 6):
            at = {"x": x + (to_x - x) * step / 5, "y": y + (to_y - y) * step / 5}
            self.send("Input.dispatchMouseEvent", type="mouseMoved", **at, button="left", buttons=1)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", x=to_x, y=to_y, button="left", clickCount=1)

    def screenshot(self, *, whole: bool = False) -> bytes:
        """PNG of what is seen, or of the whole page."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def pixels(self, selector: str) -> np.ndarray:
        """What a video, picture or canvas of the page shows, [h, w, 3]."""
        url = self.run(
            f"""(() => {{
            const shown = document.querySelector({json.dumps(selector)}), copy = document.createElement("canvas");
            copy.width = shown.videoWidth || shown.naturalWidth || shown.width;
            copy.height = shown.videoHeight || shown.naturalHeight || shown.height;
            copy.getContext("2d").drawImage(shown, 0, 0);
            return copy.toDataURL();
            }})()"""
        )
        png = base64.b64decode(url.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

    def foreign(self, address: str) -> list[str]:
        """What was asked of anybody but the server at `address`."""
        ours = re.compile(re.escape(address) + "|data:|blob:|about:|chrome:")
        return [url for url in self.asked if not ours.match(url)]

    def close(self) -> None:
        self.session = None
        with suppress(Exception):  # the socket may be gone before the answer
            self.send("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
