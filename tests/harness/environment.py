"""The private Python environment of the checkout, made on first use and reused afterwards. Standard library only.

It counts only when its stamp names the pins that it was made from; a set-up that was stopped half-way starts again.
"""

import collections
import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PRIVATE = ROOT / ".host"
PINS = Path(__file__).with_name("requirements.txt")
PINS_WITHOUT_DEPENDENCIES = Path(__file__).with_name("requirements-no-deps.txt")
STAMP = "controlled-diffusion.stamp"
UNFINISHED = "unfinished"
GIGABYTES_NEEDED = 3
DISK_ADVICE = f"Free some space ({GIGABYTES_NEEDED} GB are needed, 7 GB with a CUDA build of torch) and run it again."

REASONS = f"""\
This failed: {{command}}
Usual reasons: no network (check the connection or the proxy settings); a full disk ({GIGABYTES_NEEDED} GB are needed, 7 GB with a CUDA \
build of torch); a Python without builds of these packages (3.10 to 3.13 have them, this is {platform.python_version()}); \
on Debian and Ubuntu, a missing package python3-venv. Correct it and run this again: it goes on from here."""


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


def ensure_environment(venv: Path = VENV) -> Path:
    """Make the private environment at ``venv`` unless it stands already; return its Python."""
    stamp = expected_stamp()
    if read_stamp(venv) != stamp:
        with lock(venv.with_name(venv.name + ".lock")):
            if read_stamp(venv) != stamp:  # another run may have finished it meanwhile
                build(venv, stamp)
    return python_of(venv)


def python_of(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def expected_stamp() -> str:
    """What the environment is made from: the pins, this Python, this machine."""
    pins = PINS.read_bytes() + PINS_WITHOUT_DEPENDENCIES.read_bytes()
    return f"python {sys.version_info[0]}.{sys.version_info[1]} {platform.machine()} pins {hashlib.sha256(pins).hexdigest()}"


def read_stamp(venv: Path) -> str | None:
    try:
        return (venv / STAMP).read_text()
    except FileNotFoundError:
        return None


def write_stamp(venv: Path, text: str) -> None:
    draft = venv / (STAMP + ".draft")
    draft.write_text(text)
    os.replace(draft, venv / STAMP)


def build(venv: Path, stamp: str) -> None:
    found = read_stamp(venv)
    refuse_foreign(venv, found)
    refuse_full_disk(venv)
    same_python = found is not None and found.startswith(stamp.split("pins", maxsplit=1)[0])
    if not same_python:
        shutil.rmtree(venv, ignore_errors=True)
    venv.mkdir(parents=True, exist_ok=True)
    write_stamp(venv, UNFINISHED)
    with progress("[1/3] creating the environment"):
        call([sys.executable, "-m", "venv", str(venv)])
    with progress("[2/3] installing torch and what ComfyUI needs (the first time: a few minutes)") as show:
        pip(python_of(venv), "install", "-r", str(PINS), show=show)
    with progress("[3/3] installing the rest") as show:
        pip(python_of(venv), "install", "--no-deps", "-r", str(PINS_WITHOUT_DEPENDENCIES), show=show)
    write_stamp(venv, stamp)


def refuse_foreign(venv: Path, stamp: str | None) -> None:
    """Never delete an environment that somebody else made."""
    if stamp is None and venv.is_dir() and any(venv.iterdir()):
        raise SetupError(f"{venv} exists and was not made by this command. Move it away and run it again.")


def refuse_full_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder.parent).free / 1e9
    if free < GIGABYTES_NEEDED:
        raise SetupError(f"There is too little disk for {folder}: {free:.1f} GB are free. {DISK_ADVICE}")


def pip(python: Path, *arguments: str, show=None) -> None:
    quiet = ["--disable-pip-version-check", "--no-input", "--retries", "2", "--progress-bar", "off"]
    call([str(python), "-m", "pip", *arguments, *quiet], show)


def call(command: list[str], show=None) -> None:
    """Run a set-up command; keep its output to ourselves unless it fails."""
    tail = collections.deque(maxlen=8)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout:
            tail.append(line.rstrip())
            if show:
                show(line.strip())
    if process.returncode:
        last = "\n".join("    " + line[:300] for line in tail)
        raise SetupError(f"{last}\n{REASONS.format(command=' '.join(command))}")


@contextlib.contextmanager
def progress(title: str):
    """Write the title, then the seconds that the body took; yields a function that shows a detail meanwhile."""
    start = time.monotonic()
    live = sys.stderr.isatty()

    def write(detail: str, end: str = "") -> None:
        line = f"{title} ... {time.monotonic() - start:.0f} s {detail}"
        sys.stderr.write(f"\r\x1b[K{line[:110]}{end}" if live else f"{detail}{end}")
        sys.stderr.flush()

    sys.stderr.write(f"{title} ... ")
    sys.stderr.flush()
    try:
        yield write if live else lambda detail: None
    except BaseException:
        write("failed", "\n")
        raise
    write("" if live else f"{time.monotonic() - start:.0f} s", "\n")


@contextlib.contextmanager
def lock(path: Path):
    """Hold ``path`` against other runs in this checkout; the system lets go of it when this process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        if not try_lock(file):
            sys.stderr.write("waiting for another run that is setting up ...\n")
            while not try_lock(file):
                time.sleep(0.5)
        yield


def try_lock(file) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def running_python_is_enough() -> bool:
    """Whether this very Python already has what ComfyUI and the tests need, as the Python of an installed ComfyUI has."""
    needed = ("torch", "torchvision", "torchsde", "transformers", "aiohttp", "comfy_kitchen", "comfyui_frontend_package", "PIL", "pytest")
    return all(importlib.util.find_spec(name) for name in needed)
