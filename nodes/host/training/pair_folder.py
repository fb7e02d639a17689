"""Pairs of images before and after an edit, kept in a folder: what InstructPix2Pix Pairs writes, and trainers read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import folder_paths
import torch

from ....training.instruct_pix2pix import PromptPair
from .. import images
from ..fingerprint import stamp
from ..model_folder import check_name, numbered

log = logging.getLogger(__name__)
IF_EXISTS = ("continue", "number it", "refuse")


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
    captions beside them. progress.jsonl says which prompt pairs are done. No image is overwritten.
    """

    def __init__(self, name: str):
        self.name = check_name(name)
        self.path = Path(folder_paths.get_output_directory()) / "controlled_diffusion" / "pairs" / self.name

    @classmethod
    def choose(cls, name: str, if_exists: str) -> PairFolder:
        """The folder to write into: where one of this name exists it is continued, or another with a number is made, or ValueError raised."""
        if if_exists not in IF_EXISTS:
            raise ValueError(f"Unknown if_exists '{if_exists}'; choose one of {', '.join(IF_EXISTS)}.")
        folder = cls(name)
        if if_exists == "continue" or not folder.path.exists():
            return folder
        if if_exists == "number it":
            return cls(numbered(name, lambda other: cls(other).path.exists()))
        raise ValueError(f"'{name}' exists: {folder.path}. Choose another name, or set if_exists to 'continue' or 'number it'.")

    def _lines(self, file: str) -> list[dict]:
        path = self.path / file
        return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()] if path.exists() else []

    def _append(self, file: str, line: dict) -> None:
        """Writes the file anew with a line more, so that a run that breaks off leaves no half line."""
        partial = self.path / f".{file}.partial"
        partial.write_text("".join(f"{json.dumps(one)}\n" for one in (*self._lines(file), line)), "utf-8")
        os.replace(partial, self.path / file)

    def done(self) -> dict[PromptPair, dict]:
        """The prompt pairs that are done, with the settings that they were drawn by."""
        return {PromptPair(**line["pair"]): line["settings"] for line in self._lines("progress.jsonl")}

    def finish(self, pair: PromptPair, tried: int, kept: int, settings: dict) -> None:
        """Notes that a prompt pair is done."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._append("progress.jsonl", {"pair": asdict(pair), "tried": tried, "kept": kept, "settings": settings})

    def add(self, both: torch.Tensor, pair: PromptPair, facts: dict[str, float]) -> None:
        """Saves images (2, H, W, 3), before and after, with what is known of them. The line that lists them comes first: one whose images
        are not there does not count, so nothing is in the folder twice when a run breaks off in between."""
        for side in ("before", "after"):
            (self.path / side).mkdir(parents=True, exist_ok=True)
        named = [*self.path.glob("*/*.*"), *(Path(m["edited_image"]) for m in self._lines("metadata.jsonl"))]
        number = 1 + max((int(p.stem) for p in named if p.stem.isdigit()), default=0)
        before, after = (f"{side}/{number:05d}.png" for side in ("before", "after"))
        captions = {"original_prompt": pair.before, "edited_prompt": pair.after, "edit_prompt": pair.instruction}
        self._append("metadata.jsonl", {"original_image": before, "edited_image": after, **captions, **facts})
        (self.path / after).with_suffix(".txt").write_text(pair.instruction, "utf-8")
        images.write({self.path / file: image for file, image in zip((before, after), both)})

    def _kept(self) -> list[dict]:
        """The lines of all pairs whose images are there: a user may take bad ones out."""
        lines = self._lines("metadata.jsonl")
        there = [m for m in lines if all(self._file(m[f"{side}_image"]).is_file() for side in ("original", "edited"))]
        if len(there) < len(lines):
            log.info("%d pairs that %s lists are not there any more.", len(lines) - len(there), self.path / "metadata.jsonl")
        return there

    def fingerprint(self) -> str:
        """Changes when pairs are added or taken out."""
        there = sorted(f"{p.parent.name}/{p.name}" for p in self.path.glob("*/*.png"))
        return f"{stamp(self.path / 'metadata.jsonl')} {hashlib.sha256(chr(10).join(there).encode()).hexdigest()[:12]}"

    def seeds(self, pair: PromptPair) -> set[int]:
        """Which candidates of a prompt pair are kept already."""
        return {m["seed"] for m in self._kept() if _pair_of(m) == pair and "seed" in m}

    def read(self, pairs: set[PromptPair] | None = None, most: int = 0) -> tuple[OnDisk, OnDisk, list[str]]:
        """(before, after, instructions), images (1, H, W, 3); of some prompt pairs, at most so many (0 = all)."""
        lines = [m for m in self._kept() if pairs is None or _pair_of(m) in pairs]
        lines = lines[:most] if most else lines
        before, after = (OnDisk(tuple(self._file(m[f"{side}_image"]) for m in lines)) for side in ("original", "edited"))
        return before, after, [m["edit_prompt"] for m in lines]

    def _file(self, name: str) -> Path:
        path = (self.path / name).resolve()
        if not path.is_relative_to(self.path.resolve()):
            raise ValueError(
                f"metadata.jsonl of '{self.name}' names '{name}', which is outside of its folder. Remove that line, or name another folder."
            )
        return path


def _pair_of(line: dict) -> PromptPair:
    return PromptPair(*(line[k] for k in ("original_prompt", "edited_prompt", "edit_prompt")))


def training_pairs(folder: str, before: Sequence, after: Sequence, instructions: Sequence[str]) -> tuple[Sequence, Sequence, Sequence[str]]:
    """(before, after, instructions) to train on: those of a folder, or those that are connected."""
    if not folder.strip():
        return before, after, instructions
    if before or after or instructions:
        raise ValueError(f"Pairs are connected, and the folder '{folder}' is named too. Empty one of them.")
    kept = PairFolder(folder.strip())
    found = kept.read()
    if not found[0]:
        raise ValueError(f"There are no pairs in {kept.path}. Give the name under which InstructPix2Pix Pairs keeps them.")
    return found
