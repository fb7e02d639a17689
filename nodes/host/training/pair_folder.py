"""Pairs of images before and after an edit, kept in a folder: what InstructPix2Pix Pairs writes, and trainers read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import comfy.model_management
import folder_paths
import torch

from ....guidance.errors import quoted
from ....training.files import whole_file
from ....training.instruct_pix2pix import PromptPair, Shard
from .. import images
from ..fingerprint import stamp
from ..model_folder import check_name, check_portable, numbered

log = logging.getLogger(__name__)
IF_EXISTS = ("continue", "number it", "refuse")
LISTED, DONE = "metadata.jsonl", "progress.jsonl"
_OF_SHARD = r"(-\d+of\d+)?"
_TEXTS = {  # what a line of each holds as texts
    LISTED: ("original_image", "edited_image", "original_prompt", "edited_prompt", "edit_prompt"),
    DONE: (),
}
_PAIR = ("before", "after", "instruction")


@dataclass(frozen=True)
class OnDisk(Sequence):
    """Images (1, H, W, 3) of a folder, each read when it is asked for."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        return images.read(self.paths[number])


class PairFolder:
    """Pairs among ComfyUI's outputs: before/00001.png, after/00001.png with its instruction in after/00001.txt, and metadata.jsonl.

    So it is also what trainers of editors with reference latents read: `before` holds the control images, `after` the targets with
    captions beside them. progress.jsonl says which prompt pairs are done. No image is overwritten. Several servers may write into one
    folder: the names of their files end with their shard, and all lists are read as one.
    """

    def __init__(self, name: str, shard: Shard = Shard()):
        self.name, self.shard = check_name(name), shard
        self.path = Path(folder_paths.get_output_directory()) / "controlled_diffusion" / "pairs" / self.name

    @classmethod
    def choose(cls, name: str, if_exists: str, shard: Shard = Shard()) -> PairFolder:
        """The folder to write into: where one of this name exists it is continued, or another with a number is made, or ValueError raised."""
        folder = cls(name, shard)
        if shard.count > 1 and if_exists != "continue":
            raise ValueError(f"{shard.count} shards share one folder, but if_exists is {quoted(if_exists)}. Set it to 'continue', or shards to 1.")
        if if_exists == "continue" or not folder.path.exists():
            return folder
        if if_exists == "number it":
            return cls(numbered(name, lambda other: cls(other).path.exists()))
        raise ValueError(f"{quoted(name)} exists: {folder.path}. Choose another name, or set if_exists to 'continue' or 'number it'.")

    def _own(self, file: str) -> Path:
        """The list that this shard writes."""
        return (self.path / file).with_stem(f"{Path(file).stem}{self.shard.suffix}")

    def _lists(self, file: str) -> list[Path]:
        """The lists of all shards."""
        stem = Path(file).stem
        return sorted(p for p in self.path.glob(f"{stem}*.jsonl") if re.fullmatch(_OF_SHARD, p.stem.removeprefix(stem)))

    def _text(self, path: Path) -> str:
        try:
            return path.read_text("utf-8") if path.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read: {error}. Repair it, or name another folder.") from error

    def _lines(self, file: str) -> list[dict]:
        """The lines of a list, of all shards; the user's Cancel stops it. Raises ValueError, with its number, for one that is not ours."""
        found = []
        for path in self._lists(file):
            for number, text in enumerate(self._text(path).split("\n"), 1):
                comfy.model_management.throw_exception_if_processing_interrupted()
                if text.strip():
                    found.append(_parsed(text, file, f"Line {number} of {path}"))
        return found

    def _append(self, file: str, line: dict) -> None:
        """Writes the file anew with a line more, so that a run that breaks off leaves no half line."""
        text = self._text(self._own(file))
        with whole_file(self._own(file)) as partial:
            partial.write_text(f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{json.dumps(line)}\n", "utf-8")

    def done(self) -> dict[PromptPair, dict]:
        """The prompt pairs that are done, with the settings that they were drawn by."""
        return {PromptPair(*(line["pair"][k] for k in _PAIR)): line["settings"] for line in self._lines(DONE)}

    def finish(self, pair: PromptPair, tried: int, kept: int, settings: dict) -> None:
        """Notes that a prompt pair is done."""
        self._append(DONE, {"pair": asdict(pair), "tried": tried, "kept": kept, "settings": settings})

    def add(self, both: torch.Tensor, pair: PromptPair, facts: dict[str, float]) -> None:
        """Saves images (2, H, W, 3), before and after, with what is known of them. The line that lists them comes first: one whose images
        are not there does not count, so nothing is in the folder twice when a run breaks off in between."""
        named = [*self.path.glob("*/*.*"), *(Path(m["edited_image"]) for m in self._lines(LISTED))]
        own = [p.stem.removesuffix(self.shard.suffix) for p in named if p.stem.endswith(self.shard.suffix)]
        number = 1 + max((int(stem) for stem in own if stem.isdecimal() and len(stem) < 10), default=0)
        before, after = (f"{side}/{number:05d}{self.shard.suffix}.png" for side in ("before", "after"))
        places = [self._file(file) for file in (before, after)]  # refused where a link leads outside
        captions = {"original_prompt": pair.before, "edited_prompt": pair.after, "edit_prompt": pair.instruction}
        self._append(LISTED, {"original_image": before, "edited_image": after, **captions, **facts})
        with whole_file(places[1].with_suffix(".txt")) as partial:
            partial.write_text(pair.instruction, "utf-8")
        images.write(dict(zip(places, both)))

    def _kept(self) -> list[dict]:
        """The lines of all pairs whose images are there: a user may take bad ones out."""
        lines, there = self._lines(LISTED), []
        present = self._present()
        for line in lines:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if all(name in present or self._file(name).is_file() for name in (line["original_image"], line["edited_image"])):
                there.append(line)
        if len(there) < len(lines):
            log.info("%d pairs that %s lists are not there any more.", len(lines) - len(there), self.path / LISTED)
        return there

    def _present(self) -> set[str]:
        """Names of the images of both sides; without links, which have to be looked at one by one."""
        sides = [side for side in ("before", "after") if (self.path / side).is_dir() and not (self.path / side).is_symlink()]
        return {f"{side}/{e.name}" for side in sides for e in os.scandir(self.path / side) if e.is_file(follow_symlinks=False)}

    def removed(self) -> str:
        """Changes when the user takes out pairs, and not when a run adds some: "" where all that are listed are there."""
        gone = sorted({m["edited_image"] for m in self._lines(LISTED)} - {m["edited_image"] for m in self._kept()})
        return f"{len(gone)} {hashlib.sha256(chr(10).join(gone).encode()).hexdigest()[:12]}" if gone else ""

    def fingerprint(self) -> str:
        """Changes when pairs are added or taken out."""
        there = sorted(f"{p.parent.name}/{p.name}" for p in self.path.glob("*/*.png"))
        return f"{' '.join(map(stamp, self._lists(LISTED)))} {hashlib.sha256(chr(10).join(there).encode()).hexdigest()[:12]}"

    def seeds(self, pair: PromptPair) -> set[int]:
        """Which candidates of a prompt pair are kept already."""
        return {m["seed"] for m in self._kept() if _pair_of(m) == pair and isinstance(m.get("seed"), int)}

    def read(self, pairs: set[PromptPair] | None = None, most: int = 0) -> tuple[OnDisk, OnDisk, list[str]]:
        """(before, after, instructions), images (1, H, W, 3); of some prompt pairs, at most so many (0 = all)."""
        lines = [m for m in self._kept() if pairs is None or _pair_of(m) in pairs]
        lines = lines[:most] if most else lines
        before, after = (OnDisk(tuple(self._file(m[f"{side}_image"]) for m in lines)) for side in ("original", "edited"))
        return before, after, [m["edit_prompt"] for m in lines]

    def _file(self, name: str) -> Path:
        check_portable(name, f"{self.path / LISTED} names an image that cannot be:")
        path = (self.path / name).resolve()
        if not path.is_relative_to(self.path.resolve()):
            raise ValueError(
                f"{quoted(name)} of the folder {quoted(self.name)} is outside of it, by its name or by a link. Remove that line of {LISTED} or that "
                "link, or name another folder."
            )
        return path


def _parsed(text: str, file: str, where: str) -> dict:
    """A line of a file of ours. Raises ValueError for any other."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}. Remove or repair it.") from error
    wrong = [k for k in _TEXTS[file] if not isinstance(line, dict) or not isinstance(line.get(k), str)]
    if not isinstance(line, dict):
        wrong = ["an object"]
    elif file == DONE and not (isinstance(line.get("pair"), dict) and all(isinstance(line["pair"].get(k), str) for k in _PAIR)):
        wrong = ["pair"]
    elif file == DONE and not isinstance(line.get("settings"), dict):
        wrong = ["settings"]
    if wrong:
        raise ValueError(f"{where} lacks {quoted(wrong[0])}, or holds it as something else than this pack wrote. Remove or repair it.")
    return line


def _pair_of(line: dict) -> PromptPair:
    return PromptPair(*(line[k] for k in ("original_prompt", "edited_prompt", "edit_prompt")))


def training_pairs(folder: str, before: Sequence, after: Sequence, instructions: Sequence[str]) -> tuple[Sequence, Sequence, Sequence[str]]:
    """(before, after, instructions) to train on: those of a folder, or those that are connected."""
    if not folder.strip():
        return before, after, instructions
    if before or after or instructions:
        raise ValueError(f"Pairs are connected, and the folder {quoted(folder)} is named too. Empty one of them.")
    kept = PairFolder(folder.strip())
    found = kept.read()
    if not found[0]:
        raise ValueError(f"There are no pairs in {kept.path}. Give the name under which InstructPix2Pix Pairs keeps them.")
    return found
