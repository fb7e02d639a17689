"""A denoiser learnt whole: a difference of every weight, and the model file in which it is kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import comfy.model_management
import torch

from . import adapters, instruct_models
from .memory import check_numbers

LEARNT = {"weight": "diff", "bias": "diff_b"}  # a layer's tensors, and what the host's LoRA files call their differences


def weights_of(model) -> dict[str, torch.Tensor]:
    """The weights and biases of a denoiser's layers, by name: all that the host lets a clone change while it runs."""
    found = {}
    for name, layer in model.model.named_modules():
        for kind in LEARNT:
            weight = getattr(layer, kind, None)
            if name.startswith("diffusion_model.") and hasattr(layer, f"{kind}_function") and weight is not None:
                found[f"{name}.{kind}"] = weight
    return found


def check_fine(model, otherwise: str = "") -> None:
    """Refuses weights that would round away what is learnt: they are saved as they are, with it in them."""
    coarse = {str(w.dtype).removeprefix("torch.") for w in weights_of(model).values() if not w.is_floating_point() or w.element_size() < 2}
    if coarse:
        raise ValueError(
            f"The model's weights are quantised ({', '.join(sorted(coarse))}), too coarse to be trained themselves. Load it in fp16, bf16 or "
            f"fp32{otherwise}."
        )


class Differences(adapters.Adapters):
    """Differences of all weights, by the weight's name. The weights themselves are not touched."""

    folder: ClassVar = instruct_models.MODELS

    def __init__(self, weights: dict[str, torch.Size]):
        self.parts = {name: adapters.Delta(shape) for name, shape in weights.items()}
        names = {name: name.rpartition(".") for name in weights}
        self.parameters = {f"{names[n][0]}.{LEARNT[names[n][2]]}": part.diff for n, part in self.parts.items()}
        self.layers, self.fixed = {}, {}

    def put_on(self, model) -> None:
        for name, part in self.parts.items():
            part.to(model.load_device)
            model.add_weight_wrapper(name, part)

    def take_off(self, model) -> None:
        for name, part in self.parts.items():
            layer, _, kind = name.rpartition(".")
            functions = getattr(model.model.get_submodule(layer), f"{kind}_function")
            functions[:] = [f for f in functions if f is not part]

    def beside(self, model):
        return nullcontext()

    @staticmethod
    def save(model, name: str, tensors: dict[str, torch.Tensor], words: adapters.Words, about: dict[str, str]) -> None:
        """Writes the denoiser with its patches and what is learnt, as the host's Load Diffusion Model reads it."""
        weights = instruct_models.weights_of(adapters.patched(model, tensors))
        instruct_models.save(model, weights, name, {**about, "format": "diffusion model"})


@dataclass(frozen=True)
class WholeWeights:
    """What is learnt, as `adapters.Design` for adapters."""

    home: ClassVar = Differences

    def adapters(self, model, seed: int) -> Differences:
        return Differences({name: w.shape for name, w in weights_of(model).items()})

    def check(
        self, model, optimizer: str, average: float, free: Callable[[torch.device], float] = comfy.model_management.get_free_memory
    ) -> None:
        """Refuses weights that are too coarse to be trained, more of them than memory holds, and what would not be in the file."""
        instruct_models.check_injections(model)
        check_fine(model, ", or train an adapter")
        numbers = sum(w.numel() for w in weights_of(model).values())
        check_numbers(numbers, optimizer, average, model.load_device, "Train an adapter, or use 'adafactor'.", free)
