"""ComfyUI's adapters on a clone of a MODEL, trained beside its weights, and their files in its LoRA format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import comfy.sd
import torch
import torch.nn.functional as F
from comfy.weight_adapter import adapter_maps
from comfy.weight_adapter.lora import LoraDiff

from ....guidance.errors import quoted
from ....training.instruct_pix2pix import Whole
from ..model_folder import ModelFolder

LORAS = ModelFolder("loras", "LoRA")
ALGORITHMS = tuple(adapter_maps)
ATTENTION = "attn, attention, single_blocks"
Words = dict[str, dict[str, torch.Tensor]]


class Delta(Whole):
    """A whole weight's difference, as ComfyUI's adapters are; `diff` in a LoRA file."""

    def move_to(self, device: torch.device) -> int:
        """For ComfyUI, which moves adapters with their weight; gives the number of bytes."""
        self.to(device)
        return self.diff.nbytes


class Adapters:
    """Adapters by the name of their layer, `parts` by that of the weight they change; `parameters` are the trained weights, by name.

    `folder` is that of their files.
    """

    folder: ClassVar = LORAS

    def __init__(self, layers: dict[str, torch.nn.Module]):
        self.layers, self.parts = layers, {f"{layer}.weight": part for layer, part in layers.items()}
        named = {f"{layer}.{name}": p for layer, part in layers.items() for name, p in part.named_parameters()}
        self.fixed = {k: p.requires_grad_(False) for k, p in named.items() if k.endswith(".alpha")}
        self.parameters = {k: p.requires_grad_(True) for k, p in named.items() if k not in self.fixed}
        self.alphas = {k: float(p) for k, p in self.fixed.items()}

    def put_on(self, model) -> None:
        """Lets them act on a MODEL; only through that patcher."""
        for weight, part in self.parts.items():
            part.to(model.load_device)
            model.add_weight_wrapper(weight, part)

    def take_off(self, model) -> None:
        """ComfyUI takes them off when it loads the weights for another MODEL; this is for what holds the weights until then."""
        for weight, part in self.parts.items():
            layer, _, kind = weight.rpartition(".")
            functions = getattr(model.model.get_submodule(layer), f"{kind}_function", [])
            functions[:] = [f for f in functions if f is not part]

    def act_at(self, strength: float) -> None:
        """Lets LoRAs act at a strength, as ComfyUI's loader does. Their file is to be written at 1."""
        for name, alpha in self.alphas.items():
            self.fixed[name].fill_(alpha * strength)

    @contextmanager
    def as_forward_hooks(self, model) -> Iterator[None]:
        """Inside, LoRAs act as forward hooks on the layers of a loaded MODEL and not through the weights, with the same result: autograd then
        keeps no changed weights, and the gradient of a whole weight is never made."""
        found = [(model.model.get_submodule(name), part) for name, part in self.layers.items()]
        found = [(layer, part, list(layer.weight_function)) for layer, part in found if _hookable(layer, part)]
        handles = [layer.register_forward_hook(partial(_add_lora, part)) for layer, part, _ in found]
        for layer, part, functions in found:
            layer.weight_function[:] = [f for f in functions if f is not part]
        try:
            yield
        finally:
            for handle, (layer, _, functions) in zip(handles, found):
                handle.remove()
                layer.weight_function[:] = functions

    @staticmethod
    def save(model, name: str, tensors: dict[str, torch.Tensor], words: Words, about: dict[str, str]) -> None:
        """Writes the trained weights of a MODEL."""
        save(name, tensors, words, {**about, "format": "lora"})

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a LoRA file holds of them, on the CPU."""
        return {k: p.detach().float().cpu().clone() for k, p in (self.parameters | self.fixed).items()}


@dataclass(frozen=True)
class Design:
    """What kind of adapter: its `algorithm`, `rank`, `alpha` (0 = the rank, so that it acts in full), and on which layers."""

    algorithm: str = "LoRA"
    rank: int = 8
    alpha: float = 0.0
    layers: str = ATTENTION
    home: ClassVar = Adapters  # which files are made of it

    def adapters(self, model, seed: int) -> Adapters:
        """Adapters on the chosen layers of a MODEL that change nothing yet, not put on."""
        layers = chosen(model, self.layers)
        for name, shape in layers.items():
            least = min(shape[0], shape[1:].numel())
            if not 1 <= self.rank <= least:
                raise ValueError(
                    f"Rank {self.rank} does not fit the layer {name} ({shape[0]} x {shape[1:].numel()}); give 1 to {least}, or leave this "
                    f"layer out with '-{name.rsplit('.', 1)[1]}'."
                )
        alpha = 0.0 if self.algorithm == "OFT" and not self.alpha else self.alpha or float(self.rank)
        make = adapter_maps[self.algorithm].create_train
        with torch.random.fork_rng(devices=[]):  # which draw their start values from the common generator
            torch.random.default_generator.manual_seed(seed % 2**63)
            return Adapters({n: make(torch.empty(1).expand(shape), rank=self.rank, alpha=alpha) for n, shape in layers.items()})


def _hookable(layer: torch.nn.Module, part: torch.nn.Module) -> bool:
    known = isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and getattr(layer, "groups", 1) == 1
    return known and isinstance(part, LoraDiff) and part in layer.weight_function


def _add_lora(lora: LoraDiff, layer: torch.nn.Module, given: tuple, output: torch.Tensor) -> torch.Tensor:
    """A forward hook: what a layer gives, and what its LoRA adds."""
    x, scale = given[0], lora.alpha / lora.rank
    down, up = (part.weight.to(x.dtype) for part in (lora.lora_down, lora.lora_up))
    if isinstance(layer, torch.nn.Linear):
        return output + F.linear(F.linear(x, down) * scale, up)
    low = F.conv2d(x, down.reshape(-1, *layer.weight.shape[1:]), None, layer.stride, layer.padding, layer.dilation)
    return output + F.conv2d(low * scale, up[:, :, None, None])


def weights_of(model) -> dict[str, torch.Size]:
    """The layers of a denoiser that adapters fit on: those with a weight of two or more dimensions, by name."""
    return {
        name: part.weight.shape
        for name, part in model.model.named_modules()
        if name.startswith("diffusion_model.") and hasattr(part, "weight_function") and getattr(part, "weight", None) is not None
        and part.weight.ndim > 1
    }  # fmt: skip


def chosen(model, layers: str) -> dict[str, torch.Size]:
    """The layers whose name holds any of the comma-separated parts and none of those after a '-'; all of them for no parts."""
    parts = [part.strip() for part in layers.split(",") if part.strip()]
    wanted, unwanted = [p for p in parts if p[0] != "-"], [p[1:].strip() for p in parts if p[0] == "-"]
    known = weights_of(model)
    found = {
        name: shape
        for name, shape in known.items()
        if (not wanted or any(p in name for p in wanted)) and not any(p in name for p in unwanted if p)
    }
    if not found:
        some = ", ".join(list(known)[:: max(1, len(known) // 6)][:6])
        raise ValueError(f"No layer's name fits {quoted(layers)}. This model's layers are called, for example, {some}. Empty = all layers.")
    return found


def save(name: str, tensors: dict[str, torch.Tensor], words: Words, about: dict[str, str]) -> None:
    """Writes a LoRA file; `words`, the vectors of new words by their names and by encoder, go into it too, as A1111 bundles them."""
    bundled = {f"bundle_emb.{word.rsplit('/', 1)[-1]}.{key}": rows for word, own in words.items() for key, rows in own.items()}
    LORAS.save(name, tensors | bundled, about)


def patched(model, tensors: Iterable) -> object:
    """A MODEL with a LoRA on it, as ComfyUI's loader does it."""
    return comfy.sd.load_lora_for_models(model, None, dict(tensors), 1.0, 0.0)[0]
