"""Null-text inversion inside the host's sampling: gradients to a conditioning, and a conditioning with an embedding for every step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.utils
import numpy as np
import torch

from ....inversion.method import Derivative, Trajectory
from ....inversion.negative_prompt import slerp
from ....inversion.null_text import ImageLoss, Kept, NullText, Predictor, threshold
from ....inversion.quality import edges_apart
from .. import gradients, lpips
from ..checkpointing import blocks_of, recomputed
from ..conditionings import active_parts
from ..gradients import check_whole, trainable
from ..images import as_image, line_chart, stacked
from ..latents import decoder, latent_of
from ..model_tag import ModelTag
from ..sampling import Guidance, run, untouched
from .invert import Inversion, kept

KEY = "controlled_diffusion.null_text"
SLACK = 1e-4  # of a sigma, by which the range of its embedding begins above it
_ALWAYS = 999999999.9  # the host's sigma of 0 percent
_RANGES = ("start_percent", "end_percent", "clip_start_percent", "clip_end_percent", "timestep_start", "timestep_end")
_MORE = ("control", "gligen", "mask", "area", "hooks", "default")  # under which an image may not be the same without the others




def as_null(source: list) -> list:
    """The source as a negative of which the host makes the same prediction."""
    return [[features, {**extras, "prompt_type": "positive"}] for features, extras in source]


def between(source: list, negative: list | None, share: float) -> list:
    """The conditioning at `share` of the way from the source to the negative, its embedding and its pooled vector on the arc."""
    if share == 0.0:
        return source
    if negative is None:
        raise ValueError(f"interpolation is {share:g}, which needs the negative: connect an empty prompt, or set it to 0.")
    if len(source) != 1 or len(negative) != 1:
        raise ValueError(
            f"Source and negative have {len(source)} and {len(negative)} parts; interpolation needs one each. Set it to 0, or take combined "
            "conditionings apart."
        )
    ((a, extras), (b, other)) = source[0], negative[0]
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"Source and negative have {a.shape[1]} and {b.shape[1]} tokens; interpolation needs equally many. Set it to 0, or shorten the "
            "longer prompt."
        )
    pooled, null_pooled = extras.get("pooled_output"), other.get("pooled_output")
    arc = None if pooled is None or null_pooled is None else slerp(pooled, null_pooled, share)
    return [[slerp(a, b, share), extras | ({} if arc is None else {"pooled_output": arc})]]


def start_of(method: NullText, source: list, negative: list | None) -> list:
    """The conditioning whose embedding is optimised: one part, active at every moment, controlled as the source where that is for both."""
    if method.start == "empty" and negative is None:
        raise ValueError("start is 'empty', which needs the negative: connect an empty prompt, or choose start 'source'.")
    name, given = ("source", as_null(source)) if method.start == "source" else ("negative", negative)
    if len(given) != 1:
        other = "start 'empty' with an empty prompt as negative" if name == "source" else "one empty prompt"
        raise ValueError(f"The {name} has {len(given)} parts, but an embedding can start from one alone. Use {other}.")
    ((features, extras),) = given
    return [[features, {k: v for k, v in (_inherited(source) | extras).items() if k not in _RANGES}]]


def _inherited(source: list) -> dict:
    """What the host hands on from a positive to a negative, to the first of its parts alone."""
    found = {}
    for _, extras in source:
        if extras.get("control_apply_to_uncond") and extras.get("control") is not None:
            found |= {"control": extras["control"], "control_apply_to_uncond": True}
        if extras.get("gligen") is not None:
            found["gligen"] = extras["gligen"]
    return found


def scheduled(start: list, embeddings: Sequence[torch.Tensor], sigmas: Sequence[float]) -> list:
    """A CONDITIONING with an embedding (B, tokens, width) for every step, each active from its sigma down to the next.

    Ranges begin a little above their sigma, so that a sampler's rounding does not matter, and no sigma lies in two: of those the host
    would make the mean.
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
    """A conditioning's part for some of the images."""
    if len(rows) == images:
        return part

    def chosen(cond):
        mine = torch.is_tensor(cond.cond) and cond.cond.ndim > 1 and len(cond.cond) == images
        return type(cond)(cond.cond[rows.to(cond.cond.device)]) if mine else cond

    return {**part, "model_conds": {k: chosen(c) for k, c in part["model_conds"].items()}}


def _check_embedding(guider) -> None:
    """Refuses models that make something else of text features before the network sees them."""
    (part,) = guider.conds["negative"]
    held, features = part["model_conds"].get("c_crossattn"), part.get("cross_attn")
    if held is None or features is None or not torch.equal(held.cond.cpu().float(), features.cpu().float()):
        raise ValueError(
            f"{type(guider.inner_model).__name__} does not take text features as they are, so there is no embedding to optimise. Use "
            "Negative-Prompt Inverter with it."
        )


class HostPredictor(Predictor):
    """The running guider's positive and negative, asked apart, and mixed by all that mixes them in its own predictions.

    `forward` counts rows of the network's batch, `images` is how many there are.
    """

    def __init__(self, guider: Guidance, extra_args: dict, images: int):
        _check_embedding(guider)
        self.guider, self.extra_args, self.images, self.forward = guider, extra_args, images, 0
        self.current = guider.conds["negative"]
        parts = [part for name in ("positive", "negative") for part in guider.conds[name]]
        more = any(part.get(k) is not None for part in parts for k in _MORE)
        self.plain = untouched(extra_args["model_options"]) and not more

    def null(self) -> torch.Tensor:
        """The negative's embedding (B, tokens, width)."""
        (part,) = self.guider.conds["negative"]
        features = part["model_conds"]["c_crossattn"].cond  # the host leaves it where the text encoder made it
        return comfy.utils.repeat_to_batch_size(features.float().to(self.guider.model_patcher.load_device), self.images)

    def _sigma(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.full([len(x)], sigma, dtype=torch.float32, device=x.device)

    def _asked(self, x: torch.Tensor, sigma: float, *pair: list | None) -> torch.Tensor:
        """The prediction of the last of (positive, negative), of which only one is given: other nodes see in whose place it is."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.forward += len(x) * active_parts(pair[-1], x, self._sigma(x, sigma))
        options = self.extra_args["model_options"]
        return comfy.samplers.calc_cond_batch(self.guider.inner_model, list(pair), x, self._sigma(x, sigma), options)[-1]

    @torch.no_grad()
    def conditional(self, x: torch.Tensor, sigma: float, rows: torch.Tensor) -> torch.Tensor:
        return self._asked(x, sigma, [_of_rows(part, rows, self.images) for part in self.guider.conds["positive"]])

    def unconditional(self, x: torch.Tensor, sigma: float, null: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        part = _of_rows(self.guider.conds["negative"][0], rows, self.images)
        held = part["model_conds"]
        self.current = [{**part, "model_conds": {**held, "c_crossattn": type(held["c_crossattn"])(null)}}]
        return self._asked(x, sigma, None, self.current)

    def guided(
        self, x: torch.Tensor, sigma: float, conditional: torch.Tensor, unconditional: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """The guider's own prediction with the two taken as given; the network is asked for nothing but what other nodes add.

        They too see the embeddings of the last `unconditional` as the negative.
        """
        given, own = [[conditional, unconditional]], self.guider.conds["negative"]

        def known(args: dict) -> list[torch.Tensor]:
            asked = (args[k] for k in ("model", "conds", "input", "sigma", "model_options"))
            return given.pop() if given else comfy.samplers.calc_cond_batch(*asked)

        options = comfy.model_patcher.create_model_options_clone(self.extra_args["model_options"])
        options["sampler_calc_cond_batch_function"] = known
        self.guider.conds["negative"] = self.current
        try:
            denoised = self.guider(x, self._sigma(x, sigma), **self.extra_args | {"model_options": options})
        finally:
            self.guider.conds["negative"] = own
        if given:
            raise ValueError(
                "A node on the model makes the predictions of guidance by itself, which gradients cannot follow. Connect the model from before that "
                "node, or use Negative-Prompt Inverter, which needs no gradients."
            )
        return denoised


def image_loss_for(model, vae, method: NullText, clean: torch.Tensor) -> ImageLoss | None:
    """The weighted distances of predicted images from the images themselves, as the VAE decodes them; None where both weigh nothing."""
    if not method.l1 and not method.perceptual:
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
class Course:
    """A loop up to the pivots without guidance, then back with it; what was found for each step is in `found`.

    `evaluations` are those of one image, a gradient counting as two.
    """

    method: NullText
    cfg: float
    sigmas: Sequence[float]
    image_loss: Callable[[torch.Tensor], ImageLoss | None]  # of the clean latents
    checkpointing: bool = False
    found: list[Kept] = field(default_factory=list)
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
            self._back(guider, derivative, trajectory, show)
        return trajectory

    def _back(self, guider: Guidance, derivative: Derivative, trajectory: Trajectory, show: Callable) -> None:
        predictor = HostPredictor(guider, derivative.extra_args, len(trajectory.states[0][0]))
        gradients.attend_with_derivative(derivative.extra_args["model_options"]["transformer_options"])
        ways = self.method.optimised(predictor, trajectory, predictor.null(), derivative.input_scale, self.image_loss(trajectory.states[-1][0]))
        for kept_here in ways:
            self.found.append(kept_here)
            show(kept_here.x, kept_here.denoised)
        taken = sum(float(k.gradients.sum()) for k in self.found)
        self.evaluations = guider.evaluations + (predictor.forward + 2 * taken) / predictor.images

    def embeddings(self) -> list[torch.Tensor]:
        """One of every step, (B, tokens, width) on the CPU."""
        return [k.null.detach().cpu() for k in self.found]

    def extras(self) -> dict[str, torch.Tensor]:
        """Per step and image: the loss of the start and of what was kept, and the gradients taken."""
        names = {"first_losses": "first", "losses": "loss", "gradients": "gradients"}
        return {name: torch.stack([getattr(k, own) for k in self.found]).detach().cpu() for name, own in names.items()}


def invert(
    model, vae, image, source, negative, method: NullText, sigmas: Sequence[float], cfg: float, checkpointing: bool = False
) -> Inversion:
    """The null-text inversion of a LATENT or IMAGE for a way back under `source` at `cfg`."""
    if math.isclose(cfg, 1.0):
        raise ValueError(
            "cfg is 1: without guidance the negative has no effect, so there is nothing to optimise. Give the cfg of the way back, usually "
            "7.5, or use DDIM Inverter."
        )
    if (method.l1 or method.perceptual) and vae is None:
        raise ValueError("l1 and perceptual compare decoded images, which needs the vae: connect it, or set both to 0.")
    began, latent, start = time.perf_counter(), latent_of(model, vae, image), start_of(method, source, negative)
    if (method.l1 or method.perceptual) and latent.ndim != 4:
        raise ValueError("l1 and perceptual compare images, but the latent is a video. Set both to 0.")
    own = trainable(model, what="Null-text inversion")[0]
    if method.l1 or method.perceptual:
        vae = gradients.differentiable_vae(vae)
        own.set_additional_models(KEY, [vae.patcher])

    course = Course(method, cfg, sigmas, lambda clean: image_loss_for(own, vae, method, clean), checkpointing)
    sampler = run(Guidance(own, source, start, cfg), latent, sigmas, course, 2 * (len(sigmas) - 1))
    trajectory = kept(sampler.result)
    return Inversion(
        method,
        Trajectory(trajectory.sigmas, trajectory.states, course.extras()),
        source,
        ModelTag.of(model),
        null=scheduled(start, course.embeddings(), trajectory.sigmas),
        cfg=cfg,
        evaluations=round(course.evaluations),
        seconds=time.perf_counter() - began,
    )


def loss_curve(inversion: Inversion) -> torch.Tensor:
    """The loss of every step at its start and at its end, where it was enough, and the gradients taken; an IMAGE. Means of the images."""
    extras, method, steps = inversion.trajectory.extras, inversion.method, inversion.trajectory.steps
    means = {k: v.mean(1).tolist() for k, v in extras.items()}
    lines = {
        "at the start of the step": [(i, 1e5 * means["first_losses"][i]) for i in range(steps)],
        "enough": [(i, 1e5 * method.early_stop * threshold(i, steps)) for i in range(steps)],
        "kept": [(i, 1e5 * means["losses"][i]) for i in range(steps)],
    }
    title = f"loss times 100 000; {inversion.evaluations} evaluations for each image, a gradient counting as two"
    charts = [
        line_chart(lines, title, "step"),
        line_chart({"gradients": [(i, means["gradients"][i]) for i in range(steps)]}, "gradients taken", "step", (768, 220)),
    ]
    return as_image(stacked(charts))
