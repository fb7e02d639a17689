"""IP-Adapter inside ComfyUI's sampling: its files, its image encoder, and its part in the cross-attention.

A patched model carries two wrappers. When a sampling run starts, one learns from the run's conditionings which of them sees the
images and which the empty one. At every call of the network the other replaces the cross-attentions, on top of what other nodes put
there.
"""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import comfy.clip_vision
import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP

from ....attention.ip_adapter import Adapter, ImagePrompt, Pair, decoupled, image_prompt, layer_weights, mask_tokens, recognize
from ....attention.layers import Place
from ....attention.run_cache import RunCache
from ....guidance.errors import quoted
from ..conditionings import is_positive, origin
from ..evaluation_order import leave_uncompiled
from ..model_folder import ModelFolder, load_tensors
from ..noise_levels import Level, NoiseScale, run_noise_scale
from .unet import BaseAttention, cross_attentions, is_unet, with_attention

KEY = "controlled_diffusion.ip_adapter"
ADAPTERS = ModelFolder(
    "ipadapter", "adapter", own=True,
    advice=" Only .safetensors files are read; where a .bin was published there is a safetensors version beside it.",
)  # fmt: skip


def load(name: str) -> Adapter:
    """The adapter of a name in its folder."""
    return recognize(load_tensors(ADAPTERS.find(name))[0], name)


def _hidden_of_nothing(encoder) -> torch.Tensor:
    """The hidden states (1, L, F) of an image that is zero after the encoder's normalization, as in training."""
    comfy.model_management.load_model_gpu(encoder.patcher)
    zeros = torch.zeros(1, 3, encoder.image_size, encoder.image_size, device=encoder.load_device)
    return encoder.model(pixel_values=zeros, intermediate_output=-2)[1]


def _features(adapter: Adapter, encoder, image: torch.Tensor | None, crop: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The features that the adapter takes, of the images (N, ...) and of no image (1, ...)."""
    ready = isinstance(encoder, comfy.clip_vision.Output)
    if ready and image is not None:
        raise ValueError(
            "clip_vision is a CLIP_VISION_OUTPUT, which holds its image already, and image is connected too. Disconnect one of the two."
        )
    if not ready and (image is None or not len(image)):
        raise ValueError("There is no image. Connect an IMAGE, or a CLIP_VISION_OUTPUT instead of the CLIP_VISION.")
    if ready and adapter.hidden:
        raise ValueError(
            f"{adapter.name} is a {quoted(adapter.kind)} adapter: its unconditional needs the encoding of an empty image, which a "
            "CLIP_VISION_OUTPUT does not hold. Connect the CLIP_VISION and the image."
        )
    output = encoder if ready else encoder.encode_image(image, crop=crop)
    if not adapter.hidden:
        return output["image_embeds"], torch.zeros_like(output["image_embeds"][:1])
    return output["penultimate_hidden_states"], _hidden_of_nothing(encoder)


def prompt_of(adapter: Adapter, encoder, image: torch.Tensor | None, combine: str = "concat", crop: bool = True) -> ImagePrompt:
    """The keys and values of images for an adapter, in float32 on ComfyUI's device for results.

    Sampling needs nothing else of the adapter, so that it takes no memory beside the model. One layer at a time goes through
    the graphics card. They are ordinary tensors: gradients of other nodes pass.
    """
    found = _features(adapter, encoder, image, crop)
    away, kept = comfy.model_management.get_torch_device(), comfy.model_management.intermediate_device()
    with torch.inference_mode(False), torch.no_grad():
        features, empty = (f.to(away, torch.float32, copy=True) for f in found)
        prompt = image_prompt(adapter, features, empty, combine)
        images, nothing = (tuple((k.to(kept), v.to(kept)) for k, v in pairs) for pairs in (prompt.images, prompt.nothing))
    return ImagePrompt(images, nothing, combine)


def transformers(network: UNetModel) -> list[tuple[Place, torch.nn.Module]]:
    """The cross-attentions of a UNet in the order of the published adapters."""
    return sorted(cross_attentions(network).items(), key=lambda found: ("input", "output", "middle").index(found[0].block))


def layers_of(model) -> dict[Place, torch.nn.Module]:
    """The same of a model. Raises ValueError that names any other network."""
    network, name = model.get_model_object("diffusion_model"), type(model.model).__name__
    found = dict(transformers(network)) if is_unet(model) else {}
    if not found:
        raise ValueError(
            f"{name} ({type(network).__name__}) has no cross-attention of the UNet kind (attn2), for which IP-Adapters are made. Use an SD1.5 or "
            "SDXL model; models such as Flux Kontext, Flux.2 and Qwen-Image-Edit take reference images themselves."
        )
    if any(isinstance(m, host_attention.SpatialVideoTransformer) for m in network.modules()):
        raise ValueError(f"{name} is a video model whose layers over time would see the image too. Use an SD1.5 or SDXL model.")
    return found


@dataclass(frozen=True)
class Part:
    """What one conditioning of a run sees: the images (True), the empty one (False) or neither (None); and its area (h, w, y, x)."""

    image: bool | None
    area: tuple[int, ...] | None = None


@dataclass
class IPAdapterRun:
    """One sampling run: its noise levels, the size of its latent, what its conditionings see, and tensors that its layers need again.

    `cache` holds by what they depend on keys and values, rows and masks, on the device. `strength` is that of schedules at a `level`.
    """

    scale: NoiseScale
    size: tuple[int, int]
    parts: dict[uuid.UUID, Part]
    cache: RunCache = field(default_factory=RunCache)
    level: Level = field(default_factory=Level)
    strength: float = 0.0


@dataclass(frozen=True)
class ImagePatch:
    """Images that act on the cross-attention of a model while it samples.

    `weights` has a factor for each layer, times `weight` and each of `schedules` (sigma, noise axis) -> factor. `mask` (M, H, W) in [0, 1]
    says where, for each image of the batch or for all. `only_marked`: acts on conditionings from `marked` alone; otherwise positive ones
    see the images and negative ones the empty image.
    """

    prompt: ImagePrompt
    layers: tuple[tuple[str, int, int], ...]
    weights: tuple[float, ...]
    weight: float = 1.0
    schedules: tuple[Callable[[float, NoiseScale], float], ...] = ()
    mask: torch.Tensor | None = None
    only_marked: bool = False
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def install(self, model):
        """A clone of the model on which the images act."""
        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self.begin)
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, self.predict)
        return patched

    def marked(self, conditioning: list, image: bool) -> list:
        """The conditioning, which now sees the images, or the empty one, through this patch."""
        return [[text, {**values, KEY: (*values.get(KEY, ()), (self.token, image))}] for text, values in conditioning]

    def begin(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        """SAMPLER_SAMPLE: finds out what each of the run's conditionings sees."""
        run = IPAdapterRun(run_noise_scale(guider), tuple(noise.shape[-2:]), self._parts(guider.conds))
        options = extra_args["model_options"]["transformer_options"]
        options[f"{KEY}/{self.token}"] = run
        leave_uncompiled(options["wrappers"], "IP-Adapter Patch")
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)

    def _parts(self, conds: dict[str, list[dict]]) -> dict[uuid.UUID, Part]:
        """What each conditioning sees, by its uuid; a copy that ComfyUI made from another list gets a uuid of its own, once for all patches."""
        parts, count = {}, Counter(given["uuid"] for listed in conds.values() for given in listed)
        for name, listed in conds.items():
            for given in listed:
                own = origin(given, listed)
                if own is not given and count[given["uuid"]] > 1:
                    given["uuid"] = uuid.uuid4()
                parts[given["uuid"]] = Part(self._sees(name, own), given.get("area"))
        return parts

    def _sees(self, name: str, given: dict) -> bool | None:
        if self.only_marked:
            return dict(given.get(KEY, ())).get(self.token)
        return is_positive(name, given)

    def predict(self, executor, x, timesteps=None, context=None, y=None, control=None, transformer_options={}, **kwargs):
        """DIFFUSION_MODEL: one call of the network, with the replacements where the images act."""
        call = self._call(x, transformer_options)
        if call is not None:
            layers = enumerate(zip(self.layers, self.weights))
            attends = {key: partial(call.attend, i) for i, (key, weight) in layers if weight != 0.0}
            transformer_options = with_attention(transformer_options, attends)
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    def _call(self, x: torch.Tensor, options: dict) -> AttentionCall | None:
        """What the images do in one call of the network; None where none acts."""
        run, numbers = options[f"{KEY}/{self.token}"], zip(options["uuids"], options["cond_or_uncond"])
        parts = tuple(run.parts.get(u) or Part(None if self.only_marked else index == 0) for u, index in numbers)
        strength = self._strength(run, options["sigmas"]) if self.schedules else self.weight
        if strength == 0.0 or all(part.image is None for part in parts):
            return None
        return AttentionCall(self, run, strength, parts, len(x) // len(parts))

    def _strength(self, run: IPAdapterRun, timestep: torch.Tensor) -> float:
        """Found once for all calls of a prediction, which have the same timestep: reading it waits for the GPU."""
        level = run.level.at(timestep)
        if level is not run.level:
            run.level, run.strength = level, self.weight * math.prod(schedule(level.sigma, run.scale) for schedule in self.schedules)
        return run.strength


@dataclass(frozen=True)
class AttentionCall:
    """One call of the network: what each part of its batch sees, and how many images a part holds."""

    patch: ImagePatch
    run: IPAdapterRun
    strength: float
    parts: tuple[Part, ...]
    size: int

    def attend(self, layer: int, base: BaseAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict) -> torch.Tensor:
        """The attention of a layer: the text's, by `base`, plus the images'."""

        def attention(q, k, v):
            return host_attention.optimized_attention(q, k, v, options["n_heads"], attn_precision=options["attn_precision"])

        text, own = base(q, k, v), (self.parts, self.size, q.device)
        terms = self.run.cache.get(("terms", layer, *own, q.dtype), partial(self._terms, layer, q))
        rows = self.run.cache.get(("rows", *own), partial(self._rows, q.device))
        mask = None
        if self.patch.mask is not None:
            height, width = options["activations_shape"][-2:]
            mask = self.run.cache.get(("mask", *own, q.dtype, height, width), lambda: self._mask(height, width).to(q))
        return decoupled(text, q, terms, self.strength * self.patch.weights[layer], attention, rows, mask)

    def _terms(self, layer: int, q: torch.Tensor) -> list[Pair]:
        prompt, shown = self.patch.prompt, [part.image for part in self.parts if part.image is not None]
        images, nothing = (tuple(t.to(q.device, q.dtype) for t in pairs[layer]) for pairs in (prompt.images, prompt.nothing))
        return prompt.terms(images, nothing, shown, self.size)

    def _rows(self, device: torch.device) -> torch.Tensor | None:
        """The batch's rows on which the images act; None where that is all."""
        shown = [part.image is not None for part in self.parts for _ in range(self.size)]
        return None if all(shown) else torch.tensor([row for row, acts in enumerate(shown) if acts], device=device)

    def _mask(self, height: int, width: int) -> torch.Tensor:
        """The mask (R, height * width, 1) of the rows on which the images act, each cut to its conditioning's area."""
        mask = self.patch.mask
        if self.size % len(mask):
            raise ValueError(f"The mask holds {len(mask)} images but {self.size} are sampled; give one mask, or one for each image.")
        cut = [_cut(mask, part.area, self.run.size) for part in self.parts if part.image is not None]
        return torch.cat([mask_tokens(own, height, width).repeat(self.size // len(mask), 1, 1) for own in cut])


def _cut(mask: torch.Tensor, area: tuple[int, ...] | None, size: tuple[int, int]) -> torch.Tensor:
    """The part of a mask (M, H, W) that is in an area (h, w, y, x) of a latent of `size`."""
    if area is None:
        return mask
    (height, width), (top, left) = area[len(area) // 2 - 2 : len(area) // 2], area[-2:]
    scale_y, scale_x = mask.shape[-2] / size[0], mask.shape[-1] / size[1]
    rows, columns = (
        slice(round(a * s), max(round((a + n) * s), round(a * s) + 1)) for a, n, s in ((top, height, scale_y), (left, width, scale_x))
    )
    return mask[:, rows, columns]


def patch_for(model, adapter: Adapter, prompt: ImagePrompt, layers_text: str = "", **settings) -> ImagePatch:
    """The patch of a prompt for a model; `settings` are fields of `ImagePatch`. Raises ValueError where the adapter does not fit."""
    found = layers_of(model)
    widths = [attention.to_k.weight.shape[0] for attention in found.values()]
    text_width = next(iter(found.values())).to_k.weight.shape[1]
    adapter.check_fits(type(model.model).__name__, widths, text_width)
    return ImagePatch(prompt, tuple(p.key for p in found), tuple(layer_weights(layers_text, list(found))), **settings)
