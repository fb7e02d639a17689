"""The real ComfyUI server with the pack installed, in a process and a folder of its own, reachable from this machine only."""

import asyncio
import collections
import contextlib
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import aiohttp
import psutil
from PIL import Image

from .comfyui import find_comfyui
from .environment import ROOT, SetupError

PACK_FOLDER = "ComfyUI-Controlled-Diffusion"
NOT_IN_A_COPY = shutil.ignore_patterns(".git", ".venv", ".host", "demo_output", "tests", "__pycache__")
LOOPBACK = "127.0.0.1"
TEXT = 3  # protocol.BinaryEventTypes.TEXT
PAUSE = 0.2  # seconds between two looks at a server that is starting
PATIENCE = 900.0  # seconds without any sign of progress after which a prompt is given up
ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # never through a proxy: the server is on this machine


class WorkflowError(Exception):
    """A prompt was refused or failed; ``node_id``, ``node_type`` and ``message`` say where and why."""

    def __init__(self, message: str, node_id: str | None = None, node_type: str | None = None):
        self.message, self.node_id, self.node_type = message, node_id, node_type
        super().__init__(f"node {node_id} ({node_type}): {message}" if node_id else message)


class Server:
    """``with Server() as server: history = server.run(prompt); images = server.images(history)``

    ``base`` holds its models, inputs and outputs; by default a temporary folder. ``port`` 0 takes any free port.
    ``threads`` limits what torch uses on a CPU.
    """

    def __init__(self, base: Path | None = None, port: int = 0, start_timeout: float = 240.0, threads: int | None = None):
        self.port = free_port(port)
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.start_timeout = start_timeout
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else None
        self._own_base = base is None
        self.base = Path(tempfile.mkdtemp(prefix="controlled-diffusion-")) if base is None else Path(base)
        self.log = self.base / "server.log"
        self._process = None
        self._object_info = None

    def __enter__(self) -> "Server":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it answers."""
        install_pack(self.base / "custom_nodes")
        install_images(self.base / "input")
        skip_first_visit(self.base / "user" / "default" / "comfy.settings.json")
        with open(self.log, "wb") as log:
            pipes = dict(stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=self.environment)
            self._process = subprocess.Popen(self.command(), cwd=self.base, start_new_session=os.name != "nt", **pipes)
        deadline = time.monotonic() + self.start_timeout
        while not self.answers():
            if self._process.poll() is not None:
                raise SetupError(f"ComfyUI stopped while starting (exit code {self._process.returncode}):\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise SetupError(f"ComfyUI did not answer within {self.start_timeout:.0f} s:\n{self.log_tail()}")
            time.sleep(PAUSE)
        self.check_pack()

    def check_pack(self) -> None:
        """ComfyUI goes on without a pack that does not import; here that is an error."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if PACK_FOLDER in line]
        if any("IMPORT FAILED" in line for line in lines):
            raise SetupError("The pack did not load in ComfyUI:\n" + "\n".join(lines))

    def command(self) -> list[str]:
        from .host import device_arguments

        return [
            *(sys.executable, str(Path(__file__).with_name("inside.py")), "serve"),
            *("--listen", LOOPBACK, "--port", str(self.port), "--base-directory", str(self.base)),
            *("--database-url", f"sqlite:///{self.base / 'comfyui.db'}"),
            *("--disable-auto-launch", "--disable-api-nodes", *device_arguments()),
        ]

    def stop(self) -> None:
        """End the process and, if it was ours, remove its folder."""
        if self._process is not None:
            end(self._process)
            self._process = None
        if self._own_base:
            shutil.rmtree(self.base, ignore_errors=True)

    def kill(self) -> None:
        """End the process at once, as a crash does."""
        self._process.kill()
        self._process.wait()

    def answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def log_tail(self, lines: int = 20) -> str:
        with open(self.log, errors="replace") as log:
            return "".join(collections.deque(log, lines))

    def cpu_seconds(self) -> float:
        """What the process has computed so far; unlike the clock, the same on a busy machine."""
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def memory(self) -> int:
        """Bytes that the process holds."""
        return psutil.Process(self._process.pid).memory_info().rss

    def get(self, path: str) -> bytes:
        with ask(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, data: bytes, content_type: str = "application/json") -> bytes:
        request = urllib.request.Request(self.url + path, data, {"Content-Type": content_type})
        with ask(request, timeout=60) as answer:
            return answer.read()

    def object_info(self, anew: bool = False) -> dict:
        """Every node type that the server knows, with its inputs and outputs; asked for once, and `anew` where files were added."""
        if anew or self._object_info is None:
            self._object_info = json.loads(self.get("/object_info"))
        return self._object_info

    def run(self, prompt: dict) -> dict:
        """Run a prompt in API format and return its history entry. Raises WorkflowError."""
        entry, refused = self.execute(prompt)
        if refused:
            raise refused
        raise_execution_error(entry)
        return entry

    def execute(
        self, prompt: dict, on_event: Callable[[str, dict], None] | None = None, patience: float = PATIENCE
    ) -> tuple[dict, WorkflowError | None]:
        """The history entry of a prompt however it ended, and why the server left some of its outputs out.

        It may take any time as long as ComfyUI reports progress; WorkflowError after ``patience`` seconds without.
        ``on_event(kind, data)`` gets every message of the server, for example "progress" with its value and max, or "text" with the
        node that shows it.
        """
        return asyncio.run(self._execute(prompt, on_event or (lambda kind, data: None), patience))

    async def _execute(self, prompt: dict, on_event, patience: float) -> tuple[dict, WorkflowError | None]:
        client = uuid.uuid4().hex
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as events:
            prompt_id, refused = self.submit(prompt, client)
            try:
                ended = False
                while not ended:
                    kind, data = await self._next_event(events, patience)
                    on_event(kind, data)
                    ended = kind == "executing" and data["node"] is None and data.get("prompt_id") == prompt_id
            except BaseException:
                with contextlib.suppress(OSError):
                    self.interrupt()
                raise
            return self.history(prompt_id), refused

    async def _next_event(self, events: aiohttp.ClientWebSocketResponse, patience: float) -> tuple[str, dict]:
        try:
            message = await events.receive(timeout=patience)
        except asyncio.TimeoutError:
            raise WorkflowError(f"nothing has moved for {patience:.0f} s") from None
        if message.type == aiohttp.WSMsgType.TEXT:
            event = json.loads(message.data)
            return event["type"], event["data"]
        if message.type != aiohttp.WSMsgType.BINARY:
            self.explain_end()
        return binary_event(message.data)

    def interrupt(self) -> None:
        """Stop what is running, as the user's Cancel does."""
        self.post("/interrupt", b"{}")

    def submit(self, prompt: dict, client: str = "") -> tuple[str, WorkflowError | None]:
        """The prompt's id, and why the server left some of its outputs out while it runs the others."""
        body = json.dumps({"prompt": prompt, "client_id": client or uuid.uuid4().hex}).encode()
        try:
            answer = json.loads(self.post("/prompt", body))
        except urllib.error.HTTPError as refusal:
            raise validation_error(json.loads(refusal.read()), prompt) from None
        return answer["prompt_id"], validation_error(answer, prompt) if answer.get("node_errors") else None

    def history(self, prompt_id: str) -> dict | None:
        """What a prompt gave; None as long as it runs."""
        return json.loads(self.get(f"/history/{prompt_id}")).get(prompt_id)

    def explain_end(self) -> None:
        """Raise: the connection to the server has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self.check_alive()
        raise WorkflowError("ComfyUI closed the connection")

    def check_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise SetupError(f"ComfyUI ended while it was working:\n{self.log_tail()}")

    def images(self, history: dict) -> list[Image.Image]:
        """Every image that a finished prompt saved or previewed, node by node."""
        return [image for images in self.images_by_node(history).values() for image in images]

    def images_by_node(self, history: dict) -> dict[str, list[Image.Image]]:
        outputs = sorted(history["outputs"].items(), key=lambda item: (len(item[0]), item[0]))
        return {node: [self.image(place) for place in output["images"]] for node, output in outputs if output.get("images")}

    def image(self, place: dict) -> Image.Image:
        data = self.get("/view?" + urllib.parse.urlencode(place))
        image = Image.open(io.BytesIO(data))
        image.load()
        return image

    def upload_image(self, image: Image.Image | Path, name: str) -> str:
        """Put an image into the server's input folder; returns the name for a LoadImage node."""
        data = Path(image).read_bytes() if isinstance(image, (str, Path)) else png(image)
        self._object_info = None  # loaders list the image from now on
        return self.upload("/upload/image", name, data)

    def upload(self, path: str, name: str, data: bytes) -> str:
        boundary = uuid.uuid4().hex
        body = b"".join(
            [
                f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'.encode(),
                f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode(),
                data,
                f"\r\n--{boundary}--\r\n".encode(),
            ]
        )
        return json.loads(self.post(path, body, f"multipart/form-data; boundary={boundary}"))["name"]


def binary_event(data: bytes) -> tuple[str, dict]:
    """A message in ComfyUI's binary form: its kind, for a text the length of the node's id, then both."""
    kind, length = struct.unpack_from(">II", data)
    if kind != TEXT:
        return "preview", {}
    return "text", {"node": data[8 : 8 + length].decode(), "text": data[8 + length :].decode()}


def free_port(port: int) -> int:
    """``port`` if it is free, any free port for 0."""
    with socket.socket() as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise SetupError(f"Port {port} cannot be used: {error.strerror}. Give another one, or 0 for any free one.") from None
        return probe.getsockname()[1]


def install_pack(custom_nodes: Path) -> None:
    """Make the pack a custom node: a link to the checkout, or a copy where links are not allowed."""
    custom_nodes.mkdir(parents=True, exist_ok=True)
    place = custom_nodes / PACK_FOLDER
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
    try:
        place.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        shutil.copytree(ROOT, place, ignore=NOT_IN_A_COPY)


def install_images(folder: Path) -> None:
    """The image that ComfyUI brings, and that templates load."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(find_comfyui() / "input" / "example.png", folder)


def skip_first_visit(settings: Path) -> None:
    """Keep the frontend from opening its template browser over an empty page."""
    if not settings.exists():
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text('{"Comfy.TutorialCompleted": true}')


def end(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError):
        process.stdin.close()  # it ends by itself when this pipe does
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def validation_error(answer: dict, prompt: dict) -> WorkflowError:
    """What the server said when it refused a prompt; of several faulty nodes, the first."""
    for node_id, report in answer.get("node_errors", {}).items():
        reasons = "; ".join(f"{error['message']}: {error['details']}" for error in report["errors"])
        return WorkflowError(reasons, node_id, prompt[node_id]["class_type"])
    error = answer["error"]
    where = error.get("extra_info", {})
    return WorkflowError(f"{error['message']} {error.get('details') or ''}".strip(), where.get("node_id"), where.get("class_type"))


def raise_execution_error(entry: dict) -> None:
    for kind, message in entry["status"]["messages"]:
        if kind == "execution_error":
            reason = f"{message['exception_type']}: {message['exception_message'].strip()}"
            raise WorkflowError(reason, message["node_id"], message["node_type"])
        if kind == "execution_interrupted":
            raise WorkflowError("interrupted", message["node_id"], message["node_type"])
