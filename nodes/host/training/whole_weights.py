"""Training all weights of a denoiser: a difference of every weight, and the model file that holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from . import adapters, instruct_models
from .memory import check_numbers

DIFFERENCES = {"weight": "diff", "bias": "diff_b"}  # a layer's tensors, and what ComfyUI's LoRA files call their differences


def weights_of(model) -> dict[str, torch.Tensor]:
    """The weights and biases of a denoiser's layers, by name: all that ComfyUI lets a clone change while it runs."""
    found = {}
    for name, layer in model.model.named_modules():
        for kind in DIFFERENCES:
            weight = getattr(layer, kind, None)
            if name.startswith("diffusion_model.") and hasattr(layer, f"{kind}_function") and weight is not None:
                found[f"{name}.{kind}"] = weight
    return found


def check_fine(model, otherwise: str = "") -> None:
    """Refuses weights that are too coarse to hold their training: they are saved in their own precision."""
    coarse = {str(w.dtype).removeprefix("torch.") for w in weights_of(model).values() if not w.is_floating_point() or w.element_size() < 2}
    if coarse:
        raise ValueError(
            f"The model's weights are quantized ({', '.join(sorted(coarse))}), too coarse to be trained themselves. Load it in fp16, bf16 or "
            f"fp32{otherwise}."
        )


class Differences(adapters.Adapters):
    """Differences of all weights, by the weight's name. The weights themselves are not touched."""

    folder: ClassVar = instruct_models.MODELS

    def __init__(self, weights: dict[str, torch.Size]):
        self.parts = {name: adapters.Delta(shape) for name, shape in weights.items()}
        names = {name: name.rpartition(".") for name in weights}
        self.parameters = {f"{names[n][0]}.{DIFFERENCES[names[n][2]]}": part.diff for n, part in self.parts.items()}
        self.layers, self.fixed = {}, {}

    @staticmethod
    def save(model, name: str, tensors: dict[str, torch.Tensor], words: adapters.Words, about: dict[str, str]) -> None:
        """Writes the denoiser with its patches and the trained weights, as ComfyUI's Load Diffusion Model reads it."""
        weights = instruct_models.weights_of(adapters.patched(model, tensors))
        instruct_models.save(model, weights, name, {**about, "format": "diffusion model"})


@dataclass(frozen=True)
class WholeWeights:
    """Which weights are trained, as `adapters.Design` for adapters."""

    home: ClassVar = Differences

    def adapters(self, model, seed: int) -> Differences:
        return Differences({name: w.shape for name, w in weights_of(model).items()})

    def check(self, model, optimizer: str, average: float) -> None:
        """Refuses weights that are too coarse to be trained, more of them than memory holds, and what would not be in the file."""
        instruct_models.check_injections(model)
        check_fine(model, ", or train an adapter")
        numbers = sum(w.numel() for w in weights_of(model).values())
        check_numbers(numbers, optimizer, average, model.load_device, "Train an adapter, or use 'adafactor'.")
