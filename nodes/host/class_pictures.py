"""Pictures of a class, sampled by the model as it is and kept on disk: what prior preservation holds on to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import comfy.utils
import folder_paths
import numpy as np
import torch
from PIL import Image

from .fingerprint import Weights
from .gradients import hosted
from .trainers import Validation, sampled, side_by_side


@dataclass(frozen=True)
class Order:
    """Which pictures: `count` of the prompts in turn, `batch` at a time; `look` says how they are sampled."""

    prompts: tuple[str, ...]
    count: int
    batch: int
    look: Validation
    seed: int

    def prompt_of(self, number: int) -> str:
        return self.prompts[number % len(self.prompts)]


def folder(model, order: Order, shape: Sequence[int]) -> Path:
    """Where they are kept: another model, prompt, seed, size or way of sampling has a folder of its own."""
    weights = Weights.of(model)
    sampling = {k: v for k, v in asdict(order.look).items() if k in ("steps", "cfg", "sampler_name", "scheduler")}
    facts = [
        weights.layout,
        weights.signs,
        order.prompts,
        sampling,
        order.seed,
        list(shape),
        str(model.patches_uuid) if model.patches else "",
    ]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return Path(folder_paths.get_output_directory()) / "controlled_diffusion" / "class_pictures" / name


def _read(path: Path) -> torch.Tensor:
    with Image.open(path) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def made(model, clip, vae, order: Order, shape: Sequence[int]) -> list[torch.Tensor]:
    """Pictures (1, H, W, 3) of latents of `shape` (C, ..., h, w): those on disk, and the missing ones sampled now.

    A stop by the user is passed on; what is made by then stays on disk and the next run goes on from there.
    """
    place = folder(model, order, shape)
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"{i:05d}.png" for i in range(order.count)]
    bar, empty = comfy.utils.ProgressBar(order.count), None

    def told(text: str) -> list:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    for prompt in order.prompts:
        missing = [i for i, file in enumerate(files) if order.prompt_of(i) == prompt and not file.exists()]
        for numbers in (missing[i : i + order.batch] for i in range(0, len(missing), order.batch)):
            empty, given = empty or hosted(told, ""), hosted(told, prompt)
            size = torch.Size([len(numbers), *shape])
            pictures = sampled(model, vae, size, (given, empty), order.look, order.seed + numbers[0])
            for number, picture in zip(numbers, pictures):
                side_by_side(picture[None]).save(files[number])
            done = sum(file.exists() for file in files)
            bar.update_absolute(done, order.count, ("JPEG", side_by_side(pictures), 512))
    return [_read(file) for file in files]
