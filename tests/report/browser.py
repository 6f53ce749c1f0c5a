"""Headless Chromium over its DevTools pipe: one process, pages opened as a phone, in the dark, or printed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for place, end in enumerate(ends, start=3):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads commands from descriptor 3 and answers on 4."""
TIMEOUT = 60.0


@dataclass
class Opened:
    """A page that has loaded; ``complaints`` are console errors, exceptions and refused loads."""

    browser: Browser
    session: str
    complaints: list[str] = field(default_factory=list)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.browser.call(
            "Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True}, self.session
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def document(self) -> str:
        """The whole document after all scripts ran."""
        return str(self.evaluate("document.documentElement.outerHTML"))

    def screenshot(self, path: Path, *, whole: bool = True) -> Path:
        options = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.browser.call("Page.getLayoutMetrics", {}, self.session)["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        path.write_bytes(base64.b64decode(self.browser.call("Page.captureScreenshot", options, self.session)["data"]))
        return path

    def close(self) -> None:
        """Free the page's process."""
        self.browser.call("Page.close", {}, self.session)

    def pdf(self) -> bytes:
        """The page as it prints on A4."""
        options = {"printBackground": True, "paperWidth": 8.27, "paperHeight": 11.69}
        return base64.b64decode(self.browser.call("Page.printToPDF", options, self.session)["data"])


class Browser:
    """Raises FileNotFoundError where no browser is installed. Use it as a context manager."""

    def __init__(self, profile: Path) -> None:
        program = next(filter(None, map(shutil.which, BROWSERS)), None)
        if program is None:
            raise FileNotFoundError(f"no browser is installed (looked for {', '.join(BROWSERS)})")
        flags = [*FLAGS, f"--user-data-dir={profile}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses its sandbox to root
        to_browser, from_browser = os.pipe(), os.pipe()
        command = [sys.executable, "-c", LAUNCHER, str(to_browser[0]), str(from_browser[1]), program, *flags]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=(to_browser[0], from_browser[1]),
        )  # fmt: skip
        os.close(to_browser[0])
        os.close(from_browser[1])
        self._out, self._in = to_browser[1], from_browser[0]
        self._number, self._rest = 0, b""
        self._pages: dict[str, Opened] = {}
        self._loaded: set[str] = set()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def open(self, url: str, *, width: int = 1280, height: int = 900, media: Mapping[str, str] | None = None) -> Opened:
        """Load a page in a window of its own; ``media`` are media features, such as the colour scheme."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Opened(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", {}, session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", size, session)
        features = [{"name": name, "value": value} for name, value in (media or {}).items()]
        self.call("Emulation.setEmulatedMedia", {"features": features}, session)
        self.call("Page.navigate", {"url": url}, session)
        deadline = time.monotonic() + TIMEOUT
        while session not in self._loaded:
            self._handle(self._receive(deadline))
        page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        return page

    def call(self, method: str, params: Mapping[str, Any], session: str | None = None) -> Any:
        """Send a command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._handle(answer)

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, "the browser gave no answer"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _handle(self, event: dict[str, Any]) -> None:
        page, params = self._pages.get(event.get("sessionId", "")), event.get("params", {})
        if page is None:
            return
        match event.get("method"):
            case "Page.loadEventFired":
                self._loaded.add(page.session)
            case "Runtime.exceptionThrown":
                page.complaints.append(json.dumps(params["exceptionDetails"])[:2000])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                page.complaints.append(json.dumps(params["args"])[:2000])
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                page.complaints.append(params["entry"]["text"])
            case "Network.loadingFailed":
                page.complaints.append(f"not loaded: {params['errorText']}")
