"""A headless Chromium, driven over its DevTools protocol: open a page, evaluate JavaScript, read the console, take an image."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)
SEVERE = ("error", "assert")


def find() -> str | None:
    """The browser to use: ``CHROMIUM``, or the first known name on the path."""
    return os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, NAMES) if path), None)


class JavaScriptError(Exception):
    """An expression evaluated in the page threw."""


class Page:
    """``with Page(executable) as page: page.open(url); page.evaluate("1 + 1")``. One page of one browser."""

    def __init__(self, executable: str, width: int = 1600, height: int = 1000):
        self.profile = Path(tempfile.mkdtemp(prefix="controlled-diffusion-chromium-"))
        self.errors: list[str] = []  # what the console reported as an error since the last `take_errors`
        self._reached: set[str] = set()  # how far the page has loaded: names of its lifecycle events
        self._command = [executable, *FLAGS, f"--window-size={width},{height}", f"--user-data-dir={self.profile}", "about:blank"]
        self._loop = asyncio.new_event_loop()
        self._process = self._session = self._socket = None
        self._count = 0

    def __enter__(self) -> "Page":
        try:
            self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self._loop.run_until_complete(self._connect(self._debugging_port()))
            for domain in ("Page", "Runtime", "Log"):
                self.send(f"{domain}.enable")
            self.send("Page.setLifecycleEventsEnabled", enabled=True)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        if self._session is not None:
            self._loop.run_until_complete(self._session.close())
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=20)
        self._loop.close()
        shutil.rmtree(self.profile, ignore_errors=True)

    def _debugging_port(self, timeout: float = 60.0) -> int:
        announced = self.profile / "DevToolsActivePort"
        deadline = time.monotonic() + timeout
        while not (announced.exists() and announced.read_text().strip()):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"{self._command[0]} did not start (exit code {self._process.poll()})")
            time.sleep(0.2)
        return int(announced.read_text().split()[0])

    async def _connect(self, port: int) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            targets = await answer.json()
        address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        self._socket = await self._session.ws_connect(address, max_msg_size=0)

    def send(self, method: str, timeout: float = 120.0, **parameters) -> dict:
        """Send one protocol command and wait for its answer; events that arrive meanwhile are looked at."""
        return self._loop.run_until_complete(asyncio.wait_for(self._send(method, parameters), timeout))

    async def _send(self, method: str, parameters: dict) -> dict:
        self._count += 1
        number = self._count
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self._note(message)

    def _note(self, event: dict) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Page.lifecycleEvent":
                self._reached.add(parameters["name"])
            case "Runtime.consoleAPICalled" if parameters["type"] in SEVERE:
                self.errors.append(" ".join(str(part.get("value", part.get("description", ""))) for part in parameters["args"]))
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in SEVERE:
                self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    def take_errors(self) -> list[str]:
        """The console errors since the last call."""
        self.evaluate("0")  # events that are on their way arrive before this answer
        taken, self.errors = self.errors, []
        return taken

    def open(self, url: str) -> None:
        self._reached.clear()
        self.send("Page.navigate", url=url)

    def wait_for_network(self, timeout: float = 90.0) -> None:
        """Wait until the opened page has had no request under way for half a second."""
        self._loop.run_until_complete(asyncio.wait_for(self._reach("networkIdle"), timeout))

    async def _reach(self, name: str) -> None:
        while name not in self._reached:
            self._note(json.loads((await self._socket.receive()).data))

    def evaluate(self, expression: str):
        """The value of a JavaScript expression; a promise is awaited."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise JavaScriptError(details.get("exception", {}).get("description", details["text"]))
        return result["result"].get("value")

    def wait_until(self, condition: str, timeout: float = 90.0) -> None:
        """Wait until a JavaScript condition holds."""
        deadline = time.monotonic() + timeout
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout:.0f} s this does not hold in the page: {condition}")
            time.sleep(0.2)

    def type(self, text: str) -> None:
        """Text for the field that has the focus."""
        self.send("Input.insertText", text=text)

    def press_enter(self) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def screenshot(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
        return path
