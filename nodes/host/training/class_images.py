"""Images of a class, sampled by the model as it is and kept on disk: what prior preservation holds on to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import comfy.utils
import folder_paths
import torch

from ....training.settings import Validation
from .. import images
from ..fingerprint import Weights
from ..gradients import run_in_inference_mode
from .patch_key import traits
from .trainer import sampled, side_by_side


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
    """Where they are kept: what makes other images, such as another model, LoRA, prompt, size or way of sampling, has a folder of its
    own."""
    patchers = (model, clip.patcher, vae.patcher)
    weights = [Weights.of(patcher, prefix) for patcher, prefix in zip(patchers, ("diffusion_model.", "", ""))]
    sampling = model.get_model_object("model_sampling")
    facts = [
        [(w.layout, w.signs) for w in weights],
        [traits(patcher.patches) for patcher in patchers],
        [_beside(patcher) for patcher in patchers],
        traits([clip.apply_hooks_to_conds, clip.tokenizer_options, [clip.tokenize(prompt) for prompt in order.prompts]]),
        [c.__name__ for c in type(sampling).__mro__],
        [float(sampling.percent_to_sigma(p)) for p in (0.1, 0.5, 0.9)],
        sorted(model.object_patches),
        clip.layer_idx,
        order.prompts,
        {k: v for k, v in asdict(order.look).items() if k in ("steps", "cfg", "sampler_name", "scheduler")},
        order.seed,
        list(shape),
    ]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return Path(folder_paths.get_output_directory()) / "controlled_diffusion" / "class_images" / name


def _beside(patcher):
    """What acts on a model beside its weights, such as other nodes' guidance and attention patches; none of a model as it is loaded."""
    parts = {k: getattr(patcher, k, None) for k in ("model_options", "injections", "wrappers", "callbacks", "forced_hooks")}
    return traits({k: v for k, v in parts.items() if v}, coarse=True)


def made(model, clip, vae, order: Order, shape: Sequence[int]) -> list[torch.Tensor]:
    """Images (1, H, W, 3) of latents of `shape` (C, ..., h, w): those on disk, and the missing ones sampled now.

    A stop by the user is passed on; what is made by then stays on disk and the next run goes on from there.
    """
    place = folder(model, clip, vae, order, shape)
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"{i:05d}.png" for i in range(order.count)]
    bar, empty = comfy.utils.ProgressBar(order.count), None

    def told(text: str) -> list:
        return run_in_inference_mode(clip.encode_from_tokens_scheduled, clip.tokenize(text))

    for prompt in order.prompts:
        missing = [i for i, file in enumerate(files) if order.prompt_of(i) == prompt and not file.exists()]
        if not missing:
            continue
        empty, given = empty or told(""), told(prompt)
        for numbers in (missing[i : i + order.batch] for i in range(0, len(missing), order.batch)):
            size = torch.Size([len(numbers), *shape])
            batch = sampled(model, vae, size, (given, empty), order.look, order.seed + numbers[0])
            images.write({files[number]: image for number, image in zip(numbers, batch)})
            done = sum(file.exists() for file in files)
            bar.update_absolute(done, order.count, ("JPEG", side_by_side(batch), 512))
    return [images.read(file) for file in files]
