"""A real browser for tests: headless Chromium, driven by the W3C WebDriver protocol.

The protocol is JSON over HTTP, so the standard library is enough. Debian's packages `chromium` and
`chromium-driver` bring both programs.
"""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "Chromium is not installed (apt-get install chromium chromium-driver)"

KEYS = {"Enter": "\ue007", "Tab": "\ue004", "ArrowRight": "\ue014", "ArrowLeft": "\ue012"}
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # how the protocol marks a reference
_SECONDS = 60


class Browser:
    """One window."""

    def __init__(self, url: str) -> None:
        """Open a session with the driver at `url`."""
        arguments = ["--headless", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options = {
            "goog:chromeOptions": {"binary": BROWSER, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self._url = url
        answer = self._send("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self._url = f"{url}/session/{answer['sessionId']}"

    def _send(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return json.load(answer)["value"]

    def close(self) -> None:
        """Close the window."""
        self._send("DELETE", "")

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Send a command of Chromium's own protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, path: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Load a file in a window of a size in CSS pixels."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        self._send("POST", "/url", {"url": path.as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body returns in the page; elements among the arguments are passed on."""
        content = {"script": script, "args": arguments}
        return self._send("POST", "/execute/sync", content)

    def find(self, selector: str) -> dict[str, str]:
        """The first element of a CSS selector."""
        return self._send("POST", "/element", {"using": "css selector", "value": selector})

    def click(self, selector: str) -> None:
        """Click into the middle of an element, as a mouse does."""
        self._send("POST", f"/element/{self.find(selector)[_ELEMENT]}/click", {})

    def tap(self, selector: str) -> None:
        """Touch the middle of an element."""
        origin = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", origin)
        self._act(
            "pointer",
            [
                {"type": "pointerMove", "x": 0, "y": 0, "origin": origin},
                {"type": "pointerDown", "button": 0},
                {"type": "pointerUp", "button": 0},
            ],
            parameters={"pointerType": "touch"},
        )

    def press(self, *keys: str) -> None:
        """Press keys, by character or by a name of `KEYS`, wherever the focus is."""
        codes = [KEYS.get(key, key) for key in keys]
        self._act("key", [{"type": t, "value": c} for c in codes for t in ("keyDown", "keyUp")])

    def _act(self, kind: str, actions: Sequence[dict[str, Any]], **more: Any) -> None:
        source = {"type": kind, "id": kind, "actions": actions, **more}
        self._send("POST", "/actions", {"actions": [source]})

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a <select>."""
        self.click(f'{selector} option[value="{value}"]')

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def console(self) -> list[str]:
        """What the console has been told since the last call: errors, warnings and more."""
        return [one["message"] for one in self._send("POST", "/se/log", {"type": "browser"})]


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """A browser with its driver; both end with the block."""
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        browser = Browser(f"http://127.0.0.1:{_port_of(driver)}")
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait()


def _port_of(driver: subprocess.Popen) -> int:
    """The port that the driver says it has taken."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and (line := driver.stdout.readline()):
        if "started successfully on port" in line:
            return int(line.rstrip(".\n").rpartition(" ")[2])
    raise RuntimeError(f"{DRIVER} did not start")
