"""Headless Chromium over its debugging pipe: real keys and clicks, any screen, time, axe, print.

No package is needed: messages are JSON, divided by zero bytes, on file descriptors 3 and 4.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.browser import CHROMIUM, FLAGS

KEYS = {
    **{f"Arrow{n}": c for n, c in (("Left", 37), ("Up", 38), ("Right", 39), ("Down", 40))},
    **{"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36},
}
TIMEOUT = 150.0


class Page:
    """One tab."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._rest, self._count = send, receive, b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        self.call("Performance.enable", timeDomain="threadTicks")  # what else runs does not count

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; what happens meanwhile goes to `events`."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._receive, 1 << 20)
            if not data:
                raise RuntimeError("Chromium ended")
            self._rest += data
        line, self._rest = self._rest.split(b"\0", 1)
        return json.loads(line)

    def screen(self, width: int, height: int, *, dark: bool = False) -> None:
        """Size of the window in pixels, and the colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Load a page and wait until its scripts ran, those that unpack data included."""
        self.call("Page.navigate", url=url)
        self.wait(
            f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'"
            " && !document.querySelector('script[type=\"application/x-deflate\"]')"
        )

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:800])
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = TIMEOUT) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.03)

    def key(self, name: str, *, shift: bool = False) -> None:
        """Press a key."""
        code = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name]}
        code["modifiers"] = 8 if shift else 0
        if name == "Enter":
            code["text"] = "\r"
        self.call("Input.dispatchKeyEvent", type="keyDown", **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def type(self, text: str) -> None:
        """Type into the focused field."""
        self.call("Input.insertText", text=text)

    def point(self, selector: str, *, click: bool = False) -> None:
        """Move the mouse to the middle of an element, and click it."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getClientRects()[0];"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.call(
                    "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
                )

    def photograph(self, png: Path, *, whole: bool = False) -> None:
        """A picture of the window, or of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        png.write_bytes(base64.b64decode(data))

    def print(self, pdf: Path) -> None:
        """The page as PDF."""
        data = self.call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)["data"]
        pdf.write_bytes(base64.b64decode(data))

    def busy_seconds(self) -> float:
        """CPU time that the main thread spent in tasks so far."""
        metrics = self.call("Performance.getMetrics")["metrics"]
        return next(m["value"] for m in metrics if m["name"] == "TaskDuration")

    def requests(self) -> list[str]:
        """Addresses that were asked for."""
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in sent]

    def violations(self, axe: str) -> list[dict[str, Any]]:
        """What axe-core (its source) finds: rule, impact, nodes."""
        self.call("Page.setBypassCSP", enabled=True)
        self.run(f"{axe}; 0")
        found = self.run("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
        return [
            {
                "id": each["id"],
                "impact": each["impact"],
                "nodes": [n["html"][:200] for n in each["nodes"]],
            }
            for each in found
        ]


@contextmanager
def browser_page() -> Iterator[Page]:
    """A tab of a Chromium of its own, ended afterwards."""
    to_browser, from_us = os.pipe()
    from_browser, to_us = os.pipe()
    flags = [f for f in FLAGS if "virtual-time" not in f]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [CHROMIUM, *flags, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        command = f"exec {shlex.join(words)} 3<&{to_browser} 4>&{to_us}"
        process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(to_browser, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(to_us)
        try:
            yield Page(from_us, from_browser)
        finally:
            process.terminate()
            process.wait(20)
            os.close(from_us)
            os.close(from_browser)
