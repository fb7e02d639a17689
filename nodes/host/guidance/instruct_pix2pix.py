"""Instruction-tuned models of ComfyUI: how the image enters them, and a guider with a scale for it and one for the text."""

import math

import comfy.model_base
import comfy.samplers
import node_helpers
import torch

from ....guidance.instruct_pix2pix import Conditions, Scales, around_the_image, coefficients, excess
from ....guidance.schedules import NoiseScale
from ..conditionings import check_conditionings, is_active
from ..latents import check_latent_channels, samples_of
from ..progress import keep
from .diffedit import MaskedImage
from .guidance_run import GuidanceRun
from .multi_cfg import MultiCFG, MultiCFGWrapper

CONCAT, REFERENCE = "concat_latent_image", "reference_latents"
WITH_REFERENCE = (REFERENCE, "reference_latents_text_embeds")


def image_key(model) -> str:
    """Where the model's conditioning carries the image: beside the noisy latent, or as reference latents."""
    network = model.model
    if isinstance(network, (comfy.model_base.IP2P, comfy.model_base.HiDream)):
        return CONCAT
    # Chroma inherits Flux's handling of references, but its network leaves them out.
    if not isinstance(network, comfy.model_base.Chroma) and network.extra_conds_shapes(reference_latents=[torch.zeros(1, 1, 2, 2)]):
        return REFERENCE
    raise ValueError(
        f"{type(network).__name__} cannot be shown an image: it has neither the extra input channels of an InstructPix2Pix model nor "
        "reference latents. Load an instruction-tuned model (InstructPix2Pix, CosXL Edit, HiDream-E1, Flux Kontext, Flux.2, "
        "Qwen-Image-Edit, OmniGen2), or edit with the SDEdit Sampler instead."
    )


def _latent(model, image, vae) -> torch.Tensor:
    """The latent (B, C, ...) of a LATENT or an IMAGE, unscaled as the VAE gives it."""
    if isinstance(image, dict) and image.get("noise_mask") is not None:
        keep("the latent's noise mask is not used: connect it as the mask of this node")
    samples = samples_of(vae, image, "image")
    check_latent_channels(model, samples)
    return samples


def _with_image(conditioning: list, key: str, value) -> list:
    """The conditioning, with the image where it carries none."""
    return [[text, values if values.get(key) is not None else {**values, key: value}] for text, values in conditioning]


class SourceImage:
    """The image to edit as a model takes it: from `image`, a LATENT or an IMAGE, or as `positive` carries it already."""

    def __init__(self, model, positive: list, image=None, vae=None):
        self.model, self.key = model, image_key(model)
        carried = next((values[self.key] for _, values in positive if values.get(self.key) is not None), None)
        if (image is None) == (carried is None):
            raise ValueError(
                f"'positive' carries no image ({self.key}) and 'image' is not connected. Connect the image to edit."
                if image is None
                else f"'positive' already carries an image ({self.key}), and 'image' is connected as well. Disconnect one of the two."
            )
        if carried is None:
            latent = _latent(model, image, vae)
            carried = latent if self.key == CONCAT else [latent]
        self.value = carried

    def latent(self, mask: torch.Tensor | None = None) -> dict:
        """A LATENT of the image's size to sample from noise: empty, or with a mask (1 = may change) the image and its noise mask.

        ComfyUI then holds what the mask leaves out on the image, noised at every step and as the prediction, whatever samples.
        """
        samples = self.value if self.key == CONCAT else self.value[0]
        if mask is None:
            return {"samples": torch.zeros_like(samples)}
        masked = MaskedImage(self.model, None, {"samples": samples}, mask, soft=False)
        return {"samples": masked.latent, "noise_mask": masked.mask}

    def conditions(self, model, positive: list, negative: list, unconditional: list | None = None) -> Conditions:
        """Nothing, the image alone, and the image with the instruction."""
        check_conditionings(model, {"positive": positive, "negative": negative})
        gone = WITH_REFERENCE if self.key == REFERENCE else (self.key,)
        without = negative if unconditional is None else unconditional
        bare = [[text, {k: v for k, v in values.items() if k not in gone}] for text, values in without]
        check_conditionings(model, {"unconditional": bare})
        nothing = node_helpers.conditioning_set_values(bare, {"prompt_type": "negative"})
        image = node_helpers.conditioning_set_values(_with_image(negative, self.key, self.value), {"prompt_type": "negative"})
        return Conditions(nothing, image, _with_image(positive, self.key, self.value))


class InstructPix2Pix(MultiCFG):
    """Plain CFG by the instruction, image in both halves, and the image's excess as a channel. So its cfg is the text scale, other nodes'
    CFG functions act on the instruction, and at image scale 1 it is ComfyUI's CFG. Where the image alone has no share in the equation, it
    is CFG from nothing to the edit, and the excess rests."""

    def __init__(self, model, conditions: Conditions, scales: Scales):
        super().__init__(model, conditions.image, around_the_image(conditions, scales))
        (image,) = self.channels
        self.scales, self.nothing = scales, image.null

    def begin_guidance(self, scale: NoiseScale) -> GuidanceRun:
        run = super().begin_guidance(scale)
        run.own.rests = self.without_image
        return run

    def without_image(self, x: torch.Tensor, timestep: torch.Tensor) -> bool:
        """Whether the prediction of the image alone counts 0 in the equation and both others are active."""
        run = GuidanceRun.of(self)
        sigma = run.level.at(timestep).sigma if self.scales.vary else math.nan
        _, image_scale = self.scales.at(sigma, run.scale)
        active = all(is_active(self.conds[k], x, timestep) for k in (self.nothing, "negative", "positive"))
        return active and coefficients(self.cfg_at(timestep), image_scale)["image"] == 0.0

    def pair(self, x, timestep) -> tuple:
        if not self.without_image(x, timestep):
            return super().pair(x, timestep)
        nothing, cfg = self.conds[self.nothing], self.cfg_at(timestep)
        return (self.conds["positive"], nothing, cfg) if cfg != 0.0 else (nothing, nothing, 1.0)


def patched(model, conditions: Conditions, scales: Scales):
    """A clone of the model that adds the image's excess to any sampler with the image in positive and negative."""
    return MultiCFGWrapper([excess(conditions, scales)]).install(model)
