"""A headless Chromium on a page, spoken to through its debugging pipe: no other package is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1200,1600",
    "--remote-debugging-pipe",
]


class Browser:
    """A page in a browser of its own.

    Args:
        page: an HTML file, or the URL of a page.
        profile: an empty folder.

    Attributes:
        problems: errors that the page has put on the console or thrown.
        requests: URLs that it has asked for, the page itself left out.
    """

    def __init__(self, page: Path | str, profile: Path) -> None:
        assert CHROMIUM is not None
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4.
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec "$@" 3<&{to_read} 4>&{to_write}',
                "bash",
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._number = b"", 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        url = page if isinstance(page, str) else page.as_uri()
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + 60
        while not self.evaluate(f"location.href === {json.dumps(url)} && document.readyState === 'complete'"):
            assert time.monotonic() < deadline, "The page did not load."
            time.sleep(0.05)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        """Press and release the mouse over the middle of the first element that a CSS selector finds."""
        found = json.dumps(selector)
        box = None
        # A page that is still being laid out moves what is to be hit.
        for _ in range(50):
            self.evaluate(f"document.querySelector({found}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
            before, box = (
                box,
                self.evaluate(
                    f"(() => {{ const b = document.querySelector({found}).getBoundingClientRect();"
                    "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
                ),
            )
            if box == before:
                break
            time.sleep(0.1)
        place = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **place)

    def type(self, selector: str, text: str) -> None:
        """Click on an input and type."""
        self.click(selector)
        self.call("Input.insertText", text=text)

    def upload(self, selector: str, *files: Path) -> None:
        """Give files to the first file input that a CSS selector finds."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.call("DOM.setFileInputFiles", files=[str(path) for path in files], objectId=found["result"]["objectId"])

    def wait(self, expression: str, seconds: float = 60.0) -> Any:
        """The value of a JavaScript expression as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, (expression, self.problems, self.evaluate("document.body.innerText"))
            time.sleep(0.1)
        return value

    def look(self, width: int, scheme: str = "light") -> None:
        """Be a screen of a width in pixels, in light or dark colours."""
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def texts(self, selector: str) -> list[str]:
        """The texts of what a CSS selector finds and is visible."""
        return self.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].filter(e => e.checkVisibility())"
            ".map(e => e.textContent.trim())"
        )

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._in, 1 << 16)
            assert chunk, "The browser is gone."
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(params["args"]))
            case "Log.entryAdded":
                self.problems.append(params["entry"]["text"])
            case "Network.requestWillBeSent" if not params["request"]["url"].startswith("data:"):
                if params["request"]["url"] != params["documentURL"]:
                    self.requests.append(params["request"]["url"])
