"""Images of a class, sampled by the model as it is and kept on disk: what prior preservation holds on to."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import folder_paths
import torch

from ....training.settings import Validation
from .. import images
from ..gradients import run_in_inference_mode
from ..progress import ProgressBar, preview_of
from .patch_key import UnknownPatch, key_of
from .trainer import sampled, side_by_side

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """Which images: `count` of the prompts in turn, `batch` at a time; `look` says how they are sampled.

    `seed` is not that of the training, which many change from run to run.
    """

    prompts: tuple[str, ...]
    count: int
    batch: int
    look: Validation
    seed: int = 0

    def prompt_of(self, number: int) -> str:
        return self.prompts[number % len(self.prompts)]


def folder(model, clip, vae, order: Order, shape: Sequence[int]) -> Path:
    """Where they are kept: what makes other images, such as another model, LoRA, prompt, size or sampler, has a folder of its own.

    Raises UnknownPatch where that cannot be told.
    """
    look = {k: v for k, v in asdict(order.look).items() if k in ("steps", "cfg", "sampler_name", "scheduler")}
    key = key_of(model, clip, vae, [clip.tokenize(prompt) for prompt in order.prompts], order.prompts, look, order.seed, shape)
    return Path(folder_paths.get_output_directory()) / "controlled_diffusion" / "class_images" / key


def made(model, clip, vae, order: Order, shape: Sequence[int]) -> list[torch.Tensor]:
    """Images (1, H, W, 3) of latents of `shape` (C, ..., h, w): those on disk, and the missing ones sampled now.

    A stop by the user is passed on; what is made by then stays on disk and the next run goes on from there.
    """
    try:
        place = folder(model, clip, vae, order, shape)
    except UnknownPatch as reason:
        log.warning("The class images are not kept, and sampled again in each run: %s.", reason)
        with tempfile.TemporaryDirectory() as place:
            return _completed(Path(place), model, clip, vae, order, shape)
    return _completed(place, model, clip, vae, order, shape)


def _completed(place: Path, model, clip, vae, order: Order, shape: Sequence[int]) -> list[torch.Tensor]:
    """The images in a folder, with the missing ones sampled."""
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"{i:05d}.png" for i in range(order.count)]
    progress, empty = ProgressBar({"Sampling class images": order.count}, done=sum(file.exists() for file in files)), None

    def encoded(text: str) -> list:
        return run_in_inference_mode(clip.encode_from_tokens_scheduled, clip.tokenize(text))

    for prompt in order.prompts:
        missing = [i for i, file in enumerate(files) if order.prompt_of(i) == prompt and not file.exists()]
        if not missing:
            continue
        empty, given = empty or encoded(""), encoded(prompt)
        for numbers in (missing[i : i + order.batch] for i in range(0, len(missing), order.batch)):
            size = torch.Size([len(numbers), *shape])
            batch = sampled(model, vae, size, (given, empty), order.look, order.seed + numbers[0])
            images.write({files[number]: image for number, image in zip(numbers, batch)})
            progress.advance(len(numbers), preview=lambda shown=batch: preview_of(side_by_side(shown)))
    return [images.read(file) for file in files]
