"""IP-Adapter inside the host's sampling: its files, its image encoder, and the replacements of cross-attention.

A patched model carries two wrappers. When a sampling run starts, one learns from the run's conditionings which of them sees the
images and which the empty one. At every call of the network the other puts replacements of the `attn2` attentions on top of those
that are there, whoever set them and when; each calls the one below as its base.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import comfy.clip_vision
import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP

from ....attention.ip_adapter import Adapter, ImagePrompt, Pair, decoupled, image_prompt, layer_weights, mask_tokens, recognise
from ....attention.layers import Place
from ....guidance.schedules import ALWAYS, NoiseScale, Schedule
from ..conditionings import origin
from ..model_folder import ModelFolder
from ..noise_levels import run_noise_scale
from .unet import cross_attentions, is_unet

KEY = "controlled_diffusion.ip_adapter"
ADAPTERS = ModelFolder(
    "ipadapter", "adapter", own=True,
    advice=" Only .safetensors files are read; where a .bin was published there is a safetensors version beside it.",
)  # fmt: skip


def load(name: str) -> Adapter:
    """The adapter of a name in its folder."""
    return recognise(comfy.utils.load_torch_file(str(ADAPTERS.find(name)), safe_load=True), name)






def _hidden_of_nothing(encoder) -> torch.Tensor:
    """The hidden states (1, L, F) of an image that is zero after the encoder's normalisation, as in training."""
    comfy.model_management.load_model_gpu(encoder.patcher)
    zeros = torch.zeros(1, 3, encoder.image_size, encoder.image_size, device=encoder.load_device)
    return encoder.model(pixel_values=zeros, intermediate_output=-2)[1]


def _features(adapter: Adapter, encoder, image: torch.Tensor | None, crop: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What the adapter takes of the images (N, ...), and of no image (1, ...)."""
    ready = isinstance(encoder, comfy.clip_vision.Output)
    if ready and image is not None:
        raise ValueError(
            "clip_vision is a CLIP_VISION_OUTPUT, which holds its image already, and image is connected too. Disconnect one of the two."
        )
    if not ready and (image is None or not len(image)):
        raise ValueError("There is no image. Connect an IMAGE, or a CLIP_VISION_OUTPUT in the place of the CLIP_VISION.")
    if ready and adapter.hidden:
        raise ValueError(
            f"{adapter.name} is a '{adapter.kind}' adapter: what the unconditional sees is the encoding of an empty image, which a "
            "CLIP_VISION_OUTPUT does not hold. Connect the CLIP_VISION and the image."
        )
    output = encoder if ready else encoder.encode_image(image, crop=crop)
    if not adapter.hidden:
        return output["image_embeds"], torch.zeros_like(output["image_embeds"][:1])
    return output["penultimate_hidden_states"], _hidden_of_nothing(encoder)


def prompt_of(adapter: Adapter, encoder, image: torch.Tensor | None, combine: str = "concat", crop: bool = True) -> ImagePrompt:
    """The keys and values of images for an adapter, in float32 in the host's memory for results.

    They are all that sampling needs of the adapter, so that it takes no place beside the model. One layer at a time goes through
    the graphics card. They are ordinary tensors: gradients of other nodes pass.
    """
    found = _features(adapter, encoder, image, crop)
    away, kept = comfy.model_management.get_torch_device(), comfy.model_management.intermediate_device()
    with torch.inference_mode(False), torch.no_grad():
        features, empty = (f.to(away, torch.float32, copy=True) for f in found)
        made = image_prompt(adapter, features, empty, combine)
        images, nothing = (tuple((k.to(kept), v.to(kept)) for k, v in pairs) for pairs in (made.images, made.nothing))
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
class Row:
    """What one conditioning of a run sees: the images (True), the empty one (False) or neither (None); and its area (h, w, y, x)."""

    image: bool | None
    area: tuple[int, ...] | None = None


@dataclass
class Run:
    """One sampling run: its noise levels, the size of its latent, what its conditionings see, and keys and values on the device."""

    scale: NoiseScale
    size: tuple[int, int]
    rows: dict[uuid.UUID, Row]
    moved: dict[tuple, Pair] = field(default_factory=dict)

    def on_device(self, role: str, layer: int, pair: Pair, like: torch.Tensor) -> Pair:
        """A pair where a layer needs it, moved there once."""
        place = (role, layer, like.device, like.dtype)
        if place not in self.moved:
            with torch.inference_mode(False), torch.no_grad():
                self.moved[place] = tuple(t.to(like.device, like.dtype) for t in pair)
        return self.moved[place]


@dataclass(frozen=True)
class ImagePatch:
    """Images that act on the cross-attention of a model while it samples.

    `weights` has a factor for each layer, times `weight` and the schedule. `mask` (M, H, W) in [0, 1] says where, for each image
    of the batch or for all. `only_marked`: acts on conditionings from `marked` alone; otherwise positive ones see the images and
    negative ones the empty image.
    """

    prompt: ImagePrompt
    layers: tuple[tuple[str, int, int], ...]
    weights: tuple[float, ...]
    weight: float = 1.0
    schedule: Schedule = ALWAYS
    interval: Schedule = ALWAYS
    mask: torch.Tensor | None = None
    only_marked: bool = False
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self):
        if self.mask is not None and not (self.mask.numel() and float(self.mask.min()) >= 0 and float(self.mask.max()) <= 1):
            raise ValueError(
                f"The mask has the shape {tuple(self.mask.shape)} and values outside 0 to 1 or none at all; give a mask of 0 (off) to 1 (on)."
            )

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
        scale = run_noise_scale(guider)
        run = Run(scale, tuple(noise.shape[-2:]), self._rows(guider.conds))
        extra_args["model_options"].setdefault("transformer_options", {})[f"{KEY}/{self.token}"] = run
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)

    def _rows(self, conds: dict[str, list[dict]]) -> dict[uuid.UUID, Row]:
        """What each conditioning sees, by its uuid; one that the host copied from another list gets a uuid of its own, once for all patches."""
        rows, count = {}, Counter(given["uuid"] for listed in conds.values() for given in listed)
        for name, listed in conds.items():
            for given in listed:
                own = origin(given, listed)
                if own is not given and count[given["uuid"]] > 1:
                    given["uuid"] = uuid.uuid4()
                rows[given["uuid"]] = Row(self._sees(name, own), given.get("area"))
        return rows

    def _sees(self, name: str, given: dict) -> bool | None:
        if self.only_marked:
            return dict(given.get(KEY, ())).get(self.token)
        return not ("negative" in name or given.get("prompt_type") == "negative")

    def predict(self, executor, x, timesteps=None, context=None, y=None, control=None, transformer_options={}, **kwargs):
        """DIFFUSION_MODEL: one call of the network, with the replacements where the images act."""
        moment = self._moment(x, transformer_options)
        if moment is not None:
            replace = transformer_options.get("patches_replace", {})
            attn2 = {**replace.get("attn2", {}), **moment.replacements(replace.get("attn2", {}))}
            transformer_options = {**transformer_options, "patches_replace": {**replace, "attn2": attn2}}
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    def _moment(self, x: torch.Tensor, options: dict) -> Moment | None:
        """What is to be done at one call of the network; None where no image acts."""
        run, sigma = options[f"{KEY}/{self.token}"], float(options["sigmas"].max())
        strength = self.weight * self.schedule(sigma, run.scale) * self.interval(sigma, run.scale)
        parts = zip(options["uuids"], options["cond_or_uncond"])
        rows = [run.rows.get(u) or Row(None if self.only_marked else index == 0) for u, index in parts]
        if strength == 0.0 or all(row.image is None for row in rows):
            return None
        return Moment(self, run, strength, rows, len(x) // len(rows))


@dataclass(frozen=True)
class Moment:
    """One call of the network: what each part of its batch sees, and how many images a part holds."""

    patch: ImagePatch
    run: Run
    strength: float
    rows: Sequence[Row]
    size: int

    def replacements(self, below: dict) -> dict:
        """Replacements for the layers on which the images act, on top of those that are there."""
        layers = enumerate(zip(self.patch.layers, self.patch.weights))
        return {name: partial(self.attend, i, below.get(name, below.get(name[:2]))) for i, (name, weight) in layers if weight != 0.0}

    def attend(self, layer: int, base, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict) -> torch.Tensor:
        """The attention of a layer: the text's, by `base` or the host, plus the images'."""
        heads, precision = options["n_heads"], options["attn_precision"]
        if base is None:
            text = host_attention.optimized_attention(q, k, v, heads, attn_precision=precision, transformer_options=options)
        else:
            text = base(q, k, v, options)

        def attention(q, k, v):
            return host_attention.optimized_attention(q, k, v, heads, attn_precision=precision)

        mask = None if self.patch.mask is None else self._mask(*options["activations_shape"][-2:]).to(q.device)
        strength = self.strength * self.patch.weights[layer]
        return decoupled(text, q, self._terms(layer, q), strength, attention, self._chosen(q.device), mask)

    def _terms(self, layer: int, q: torch.Tensor) -> list[Pair]:
        prompt = self.patch.prompt
        images, nothing = (
            self.run.on_device(role, layer, pairs[layer], q) for role, pairs in (("images", prompt.images), ("nothing", prompt.nothing))
        )
        return prompt.terms(images, nothing, [row.image for row in self.rows if row.image is not None], self.size)

    def _chosen(self, device) -> torch.Tensor | None:
        """The batch's rows on which the images act; None where that is all."""
        if all(row.image is not None for row in self.rows):
            return None
        parts = torch.arange(len(self.rows) * self.size, device=device).split(self.size)
        return torch.cat([part for part, row in zip(parts, self.rows) if row.image is not None])

    def _mask(self, height: int, width: int) -> torch.Tensor:
        """The mask (R, height * width, 1) of the rows on which the images act, each cut to its conditioning's area."""
        mask = self.patch.mask
        if self.size % len(mask):
            raise ValueError(f"The mask holds {len(mask)} images but {self.size} are sampled; give one mask, or one for each image.")
        return torch.cat(
            [
                mask_tokens(_cut(mask, row.area, self.run.size), height, width).repeat(self.size // len(mask), 1, 1)
                for row in self.rows
                if row.image is not None
            ]
        )


def _cut(mask: torch.Tensor, area: tuple[int, ...] | None, size: tuple[int, int]) -> torch.Tensor:
    """The part of a mask (M, H, W) that lies in an area (h, w, y, x) of a latent of `size`."""
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
