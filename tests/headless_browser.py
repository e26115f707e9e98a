"""A headless Chromium that a test drives over two pipes: what a page asks for, prints and shows."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
FLAGS += ("--no-first-run", "--disable-extensions", "--disable-background-networking")
FLAGS += ("--hide-scrollbars", "--disable-dev-shm-usage")


def browser() -> str | None:
    """Return the browser of this machine, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


START = """\
import fcntl, os, sys
pipes = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]]
for pipe, place in zip(pipes, (3, 4)):  # where a browser looks for them
    os.dup2(pipe, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Tab:
    """A tab; `events` is everything that the browser has reported of it."""

    def __init__(self, writer, reader):
        self._writer, self._reader, self._next = writer, reader, 0
        self._rest, self._session = b"", None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._next += 1
        message = {"id": self._next, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._writer.write(json.dumps(message).encode() + b"\0")
        self._writer.flush()
        while True:
            found = self._read()
            if found.get("id") == self._next:
                assert "error" not in found, found
                return found["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._reader, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(message)
        if "method" in found:
            self.events.append(found)
        return found

    def open(self, page: Path, width: int, *, dark: bool = False, script: bool = True) -> None:
        """Open a file at a width in CSS pixels."""
        self.events.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Page.navigate", url=page.resolve().as_uri())
        end = time.monotonic() + 60
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < end, "the page does not load"
            self._read()

    def value(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def picture(self, path: Path, height: int | None = None, top: int = 0) -> None:
        """Write a screenshot, of the page from `top` on."""
        width = self.value("innerWidth")
        height = height or self.value("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        found = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def requests(self) -> list[str]:
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Return what the page has printed to the console, and its errors."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event) for event in self.events if event["method"] in kinds]


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """Start a browser with a profile of its own; end it afterwards."""
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()
    pipes = [str(to_browser), str(from_browser)]
    command = [sys.executable, "-c", START, *pipes, browser(), *FLAGS, f"--user-data-dir={profile}"]
    kept = {"pass_fds": (to_browser, from_browser), "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, **kept) as process:
        os.close(to_browser)
        os.close(from_browser)
        with os.fdopen(commands, "wb") as writer:
            try:
                yield Tab(writer, answers)
            finally:
                process.terminate()
                os.close(answers)
