"""Null-text inversion inside ComfyUI's sampling: gradients to a conditioning, and a conditioning with an embedding for every step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import comfy.model_management
import comfy.samplers
import comfy.utils
import numpy as np
import torch

from ....inversion.method import Derivative, Trajectory
from ....inversion.null_text import Best, ImageLoss, NullText, Predictor, threshold
from ....inversion.quality import edges_apart
from .. import gradients
from ..checkpointing import blocks_of, recomputed
from ..conditionings import active_parts
from ..gradients import check_whole, trainable
from ..images import as_image, line_chart, stacked
from ..latents import decoder, latent_of
from ..model_tag import ModelTag
from ..sampling import Guidance, run, untouched
from . import lpips
from .invert import Inversion, to_cpu
from .negative_prompt import as_null

KEY = "controlled_diffusion.null_text"
SLACK = 1e-4  # of a sigma, by which the range of its embedding begins above it
_ALWAYS = 999999999.9  # ComfyUI's sigma of 0 percent
_RANGES = ("start_percent", "end_percent", "clip_start_percent", "clip_end_percent", "timestep_start", "timestep_end")
_DEPENDENT = ("control", "gligen", "mask", "area", "hooks", "default")  # with these, an image may depend on the others of its batch


def start_of(method: NullText, source: list, negative: list | None) -> list:
    """The conditioning whose embedding is optimized: one part, always active, with the source's control where that is for both."""
    if method.start == "empty" and negative is None:
        raise ValueError("start is 'empty', which needs the negative: connect an empty prompt, or choose start 'source'.")
    name, start = ("source", as_null(source)) if method.start == "source" else ("negative", negative)
    if len(start) != 1:
        other = "start 'empty' with an empty prompt as negative" if name == "source" else "one empty prompt"
        raise ValueError(f"The {name} has {len(start)} parts, but an embedding can start from one alone. Use {other}.")
    ((features, extras),) = start
    return [[features, {k: v for k, v in (_inherited(source) | extras).items() if k not in _RANGES}]]


def _inherited(source: list) -> dict:
    """What ComfyUI copies from a positive to the first part of a negative."""
    found = {}
    for _, extras in source:
        if extras.get("control_apply_to_uncond") and extras.get("control") is not None:
            found |= {"control": extras["control"], "control_apply_to_uncond": True}
        if extras.get("gligen") is not None:
            found["gligen"] = extras["gligen"]
    return found


def scheduled(start: list, embeddings: Sequence[torch.Tensor], sigmas: Sequence[float]) -> list:
    """A CONDITIONING with an embedding (B, tokens, width) for every step, each active from its sigma down to the next.

    Ranges begin a little above their sigma, so that a sampler's rounding does not matter, and no sigma is in two: ComfyUI would take the
    mean of their predictions.
    """
    ((_, extras),), parts, begin = start, [], _ALWAYS
    for i, embedding in enumerate(embeddings):
        here, following = sigmas[i : i + 2]
        edge = np.float32(min(following * (1 + SLACK), (here + following) / 2))
        end = 0.0 if i + 1 == len(embeddings) else float(np.nextafter(edge, np.float32(np.inf)))
        parts.append([embedding, {**extras, "timestep_start": begin, "timestep_end": end}])
        begin = float(edge)
    return parts


def _of_rows(part: dict, rows: torch.Tensor, images: int) -> dict:
    """A conditioning's part for some of the images; ComfyUI repeats its rows over all of them."""
    if len(rows) == images:
        return part

    def chosen(cond):
        mine = torch.is_tensor(cond.cond) and cond.cond.ndim > 1 and len(cond.cond) > 1
        return type(cond)(cond.cond[(rows % len(cond.cond)).to(cond.cond.device)]) if mine else cond

    return {**part, "model_conds": {k: chosen(c) for k, c in part["model_conds"].items()}}


def _check_embedding(guider) -> None:
    """Refuses models that change the text features before they reach the network."""
    (part,) = guider.conds["negative"]
    held, features = part["model_conds"].get("c_crossattn"), part.get("cross_attn")
    if held is None or features is None or not torch.equal(held.cond.cpu().float(), features.cpu().float()):
        raise ValueError(
            f"{type(guider.inner_model).__name__} does not take text features as they are, so there is no embedding to optimize. Use "
            "Negative-Prompt Inverter with it."
        )


class GuiderPredictor(Predictor):
    """The running guider's positive and negative predicted separately, and mixed by the guider with all that other nodes add.

    Each image's share of a batch counts as evaluations of the guider. `images` is the number of images.
    """

    def __init__(self, guider: Guidance, extra_args: dict, images: int):
        _check_embedding(guider)
        self.guider, self.extra_args, self.images = guider, extra_args, images
        self.negative = guider.conds["negative"]
        parts = [part for name in ("positive", "negative") for part in guider.conds[name]]
        dependent = any(part.get(k) is not None for part in parts for k in _DEPENDENT)
        self.plain = untouched(extra_args["model_options"]) and not dependent

    def null(self) -> torch.Tensor:
        """The negative's embedding (B, tokens, width)."""
        features = self.negative[0]["model_conds"]["c_crossattn"].cond  # ComfyUI leaves it where the text encoder made it
        return comfy.utils.repeat_to_batch_size(features.float().to(self.guider.model_patcher.load_device), self.images)

    def _predict(self, x: torch.Tensor, sigma: float, *pair: list | None) -> torch.Tensor:
        """The prediction of the last of `pair`, (positive,) or (None, negative): so other nodes see which one it is."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        level = _level(x, sigma)
        self.guider.evaluations += active_parts(pair[-1], x, level) * len(x) / self.images
        return comfy.samplers.calc_cond_batch(self.guider.inner_model, list(pair), x, level, self.extra_args["model_options"])[-1]

    @torch.no_grad()
    def conditional(self, x: torch.Tensor, sigma: float, rows: torch.Tensor) -> torch.Tensor:
        return self._predict(x, sigma, [_of_rows(part, rows, self.images) for part in self.guider.conds["positive"]])

    def unconditional(self, x: torch.Tensor, sigma: float, null: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        part = _of_rows(self.guider.conds["negative"][0], rows, self.images)
        conds = part["model_conds"]
        self.negative = [{**part, "model_conds": {**conds, "c_crossattn": type(conds["c_crossattn"])(null)}}]
        return self._predict(x, sigma, None, self.negative)

    def guided(self, x: torch.Tensor, sigma: float, conditional: torch.Tensor, unconditional: torch.Tensor, rows: torch.Tensor):
        """Other nodes see the embeddings of the last `unconditional` as the negative."""
        own, self.guider.conds["negative"] = self.guider.conds["negative"], self.negative
        try:
            denoised = self.guider.mix(x, _level(x, sigma), [conditional, unconditional], **self.extra_args)
        finally:
            self.guider.conds["negative"] = own
        if unconditional.requires_grad and not denoised.requires_grad:
            raise ValueError(
                "A node on the model makes the predictions of guidance by itself, which gradients cannot follow. Connect the model from "
                "before that node, or use Negative-Prompt Inverter, which needs no gradients."
            )
        return denoised


def _level(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.full([len(x)], sigma, dtype=torch.float32, device=x.device)


def image_loss_for(model, vae, method: NullText, clean: torch.Tensor) -> ImageLoss | None:
    """The weighted distances of predicted images from the images themselves, as the VAE decodes them; None where both weigh nothing."""
    if not method.compares_images:
        return None
    decode = decoder(model, vae)
    with torch.no_grad():
        images = decode(clean)
    alike = lpips.distance() if lpips.available() and min(images.shape[-2:]) >= lpips.SMALLEST else edges_apart

    def loss(denoised: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        shown, wanted = decode(denoised), images[rows]
        total = method.l1 * (shown - wanted).abs().flatten(1).mean(1)
        return total + method.perceptual * alike(shown, wanted) if method.perceptual else total

    return loss


@dataclass
class NullTextRun:
    """A loop up to the pivots without guidance, then back with it; `steps` has the result of each.

    `evaluations` are those of one image, a gradient counting as two.
    """

    method: NullText
    cfg: float
    sigmas: Sequence[float]
    image_loss: Callable[[torch.Tensor], ImageLoss | None]  # of the clean latents
    checkpointing: bool = False
    steps: list[Best] = field(default_factory=list)
    evaluations: float = 0.0

    def __call__(self, guider: Guidance, derivative: Derivative, clean: torch.Tensor, show: Callable) -> Trajectory:
        check_whole([guider.model_patcher, *guider.model_patcher.get_additional_models_with_key(KEY)])
        gradients.prepare(guider, "Null-text inversion", "")
        derivative.extra_args = gradients.clone_inference_tensors(derivative.extra_args)
        with torch.inference_mode(False):
            guider.set_cfg(1.0)
            trajectory = self.method.encode(derivative, clean.clone(), self.sigmas, show)
            guider.set_cfg(self.cfg)
        blocks = blocks_of(guider.inner_model) if self.checkpointing else ()
        with gradients.differentiable(), recomputed(blocks) if blocks else nullcontext():
            self._optimize(guider, derivative, trajectory, show)
        return trajectory

    def _optimize(self, guider: Guidance, derivative: Derivative, trajectory: Trajectory, show: Callable) -> None:
        predictor = GuiderPredictor(guider, derivative.extra_args, len(trajectory.states[0][0]))
        gradients.attend_with_derivative(derivative.extra_args["model_options"]["transformer_options"])
        image_loss = self.image_loss(trajectory.states[-1][0])
        for best in self.method.optimize(predictor, trajectory, predictor.null(), derivative.input_scale, image_loss):
            self.steps.append(best)
            guider.evaluations += 2 * float(best.gradients.mean())
            show(best.x, best.denoised, facts=lambda: f"loss {float(self.steps[-1].loss.mean()):.2g}")
        self.evaluations = guider.evaluations

    def embeddings(self) -> list[torch.Tensor]:
        """One of every step, (B, tokens, width) on the CPU."""
        return [best.null.detach().cpu() for best in self.steps]

    def extras(self) -> dict[str, torch.Tensor]:
        """Per step and image: the loss at the start and at the end, and the gradients taken."""
        names = {"first_losses": "first", "losses": "loss", "gradients": "gradients"}
        return {name: torch.stack([getattr(best, key) for best in self.steps]).detach().cpu() for name, key in names.items()}


def _check(method: NullText, cfg: float, vae, latent: torch.Tensor) -> None:
    """Refuses a guidance without a negative, and image losses without images."""
    if math.isclose(cfg, 1.0):
        raise ValueError(
            "cfg is 1: without guidance the negative has no effect, so there is nothing to optimize. Give the cfg of the reconstruction, "
            "usually 7.5, or use DDIM Inverter."
        )
    if not method.compares_images:
        return
    if vae is None:
        raise ValueError("l1 and perceptual compare decoded images, which needs the vae: connect it, or set both to 0.")
    if latent.ndim != 4:
        raise ValueError("l1 and perceptual compare images, but the latent is a video. Set both to 0.")


def invert(
    model, vae, image, source, negative, method: NullText, sigmas: Sequence[float], cfg: float, checkpointing: bool = False
) -> Inversion:
    """The null-text inversion of a LATENT or IMAGE for a reconstruction under `source` at `cfg`."""
    began, latent, start = time.perf_counter(), latent_of(model, vae, image), start_of(method, source, negative)
    _check(method, cfg, vae, latent)
    own = trainable(model, what="Null-text inversion")[0]
    if method.compares_images:
        vae = gradients.differentiable_vae(vae)
        own.set_additional_models(KEY, [vae.patcher])

    loop = NullTextRun(method, cfg, sigmas, lambda clean: image_loss_for(own, vae, method, clean), checkpointing)
    phases = dict.fromkeys(("Inverting", "Optimizing the embeddings"), len(sigmas) - 1)
    trajectory = to_cpu(run(Guidance(own, source, start, cfg), latent, sigmas, loop, phases).result)
    trajectory, null = replace(trajectory, extras=loop.extras()), scheduled(start, loop.embeddings(), trajectory.sigmas)
    cost = dict(evaluations=round(loop.evaluations), seconds=time.perf_counter() - began)
    return Inversion(method, trajectory, source, ModelTag.of(model, sigmas), null=null, cfg=cfg, **cost)


def loss_curve(inversion: Inversion) -> torch.Tensor:
    """The loss of every step at its start and at its end, where it was enough, and the gradients taken; an IMAGE. Means of the images."""
    extras, method, steps = inversion.trajectory.extras, inversion.method, inversion.trajectory.steps
    means = {k: v.mean(1).tolist() for k, v in extras.items()}
    tolerances = [method.early_stop * threshold(i, steps) for i in range(steps)]
    losses = {"at the start of the step": means["first_losses"], "tolerance": tolerances, "kept": means["losses"]}
    lines = {name: [(i, 1e5 * loss) for i, loss in enumerate(found)] for name, found in losses.items()}
    title = f"loss times 100 000; {inversion.evaluations} evaluations for each image, a gradient counting as two"
    taken = line_chart({"gradients": list(enumerate(means["gradients"]))}, "gradients taken", "step", (768, 220))
    return as_image(stacked([line_chart(lines, title, "step"), taken]))
