"""Training inside the host's own sampling: its loading, conditionings, patches, hooks and previews, with gradients.

Steps run as a `Sampler` of the host, some at a time; between them pictures can be sampled. Nothing is trained on the weights that other
nodes hold: what is learnt lies outside of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from PIL import Image

from ...guidance.schedules import NoiseScale
from ...training.augmentation import Augmentation, Variant, told
from ...training.loop import Loop, Step
from ...training.objectives import Levels, loss_weight, picks, spread, squared_error
from . import gradients
from .channels import noise_scale
from .latents import encoded_part

KEY = "controlled_diffusion.training"
STACKED = ("pooled_output", "concat_latent_image")  # what conditionings of one batch may each have a row of
BACKWARD = 4  # room that is asked for, in forward passes: what a backward pass needs is kept until then
Stopped = comfy.model_management.InterruptProcessingException
log = logging.getLogger(__name__)


# --- pictures ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """What is learnt from: the latent of each picture as the VAE gives it, (1, C, [1,] h, w), with a mask (1, 1, [1,] h, w) or None."""

    latents: tuple[torch.Tensor, ...]
    masks: tuple[torch.Tensor | None, ...]
    originals: int = 0  # pictures as given; what follows them is the same, flipped or otherwise changed, in the same order
    hints: tuple[str, ...] = ()  # what the sentence of each begins with; none of any

    def __len__(self) -> int:
        return len(self.latents)

    def told(self, number: int, text: str) -> str:
        """The sentence of a picture with its hint."""
        return told(self.hints[number], text) if self.hints else text


def singles(batches: Sequence[torch.Tensor], what: str) -> list[torch.Tensor]:
    """The single pictures (1, H, W, ...) of IMAGE or MASK batches of any sizes. Raises ValueError on none and on numbers that are none."""
    found = [picture for batch in batches if len(batch) for picture in batch.split(1)]
    if not found:
        raise ValueError(f"There are no {what}. Connect an IMAGE batch, or a node that loads a folder of pictures.")
    for i, picture in enumerate(found, 1):
        if not bool(torch.isfinite(picture).all()):
            raise ValueError(f"Number {i} of the {what} holds NaN or infinite values. Take it out, or repair the node that made it.")
    return found


def _mask_for(vae, latent: torch.Tensor, mask: torch.Tensor, picture: torch.Tensor, number: int) -> torch.Tensor:
    """A MASK (1, H, W) at the size of a latent that the VAE made of its picture."""
    if mask.shape[-2:] != picture.shape[1:3]:
        raise ValueError(
            f"Mask {number} is {mask.shape[-1]} x {mask.shape[-2]}, its picture {picture.shape[2]} x {picture.shape[1]}. Give masks of the "
            "pictures' sizes."
        )
    small = torch.nn.functional.interpolate(encoded_part(vae, mask)[:, None].float(), latent.shape[-2:], mode="area")
    if not bool(small.any()):
        raise ValueError(f"Mask {number} is empty: nothing of its picture would be learnt. Paint what to learn white, or leave it away.")
    return small.cpu().reshape(1, 1, *[1] * (latent.ndim - 4), *latent.shape[-2:])


def pictures_of(
    vae,
    images: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor] = (),
    flip: bool = False,
    augmentation: Augmentation = Augmentation(),
    seed: int = 0,
) -> Pictures:
    """Encodes IMAGE batches once; with `flip` each picture also left and right exchanged, after all others, and then the variants of all."""
    found = [picture[..., :3] for picture in singles(images, "images")]
    painted = singles(masks, "masks") if masks else [None] * len(found)
    if len(painted) == 1:
        painted = painted * len(found)
    if len(painted) != len(found):
        raise ValueError(f"There are {len(painted)} masks for {len(found)} pictures; give one for each, one for all, or none.")
    originals = len(found)
    if flip:
        found += [p.flip(2) for p in found]
        painted += [None if m is None else m.flip(-1) for m in painted]
    shown = _varied(found, painted, augmentation, seed)
    latents = list(latents_of(vae, shown, len(shown)))
    cut = [None if v.mask is None else _mask_for(vae, z, v.mask, v.picture, i) for i, (z, v) in enumerate(zip(latents, shown), 1)]
    hints = tuple(v.hint for v in shown)
    return Pictures(tuple(latents), all_or_none(latents, cut), originals, hints if any(hints) else ())


def latents_of(vae, shown: Iterable[Variant], count: int) -> Iterator[torch.Tensor]:
    """The latents of so many, on the CPU; the host's progress bar shows how far it is, and its stop button stops it."""
    bar = comfy.utils.ProgressBar(count)
    for variant in shown:
        yield gradients.hosted(vae.encode, variant.picture[..., :3]).float().cpu()
        bar.update(1)
        comfy.model_management.throw_exception_if_processing_interrupted()


def _varied(found: Sequence[torch.Tensor], painted: Sequence[torch.Tensor | None], augmentation: Augmentation, seed: int) -> list[Variant]:
    """Pictures with their masks, and the variants of them."""
    shown = [Variant(p, m) for p, m in zip(found, painted)]
    for number in range(augmentation.variants * len(found)):
        picture, mask = found[number % len(found)], painted[number % len(found)]
        if mask is not None and mask.shape[-2:] != picture.shape[1:3]:
            mask = None  # which is told when the picture itself is encoded
        shown.append(augmentation.of(picture, mask, number, seed))
    return shown


def all_or_none(latents: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
    """Where only some have masks, the others' cover everything."""
    if all(m is None for m in masks):
        return tuple(masks)
    return tuple(torch.ones_like(z[:, :1]) if m is None else m for z, m in zip(latents, masks))


# --- one prediction of a batch ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """What the denoiser is asked: at which noise levels, and what an error counts. "auto" levels: logit-normal for flow models, uniform
    for others."""

    levels: Levels
    weighting: str = "own"
    gamma: float = 5.0


def levels(model, timesteps: str, **knobs) -> Levels:
    """A distribution of noise levels; "auto" takes what models of this kind are trained with."""
    if timesteps == "auto":
        timesteps = "logit-normal" if noise_scale(model.get_model_object("model_sampling")).flow else "uniform"
    return Levels(timesteps, **knobs)


def _batches(rows: Sequence[list]) -> list[list[int]]:
    """Which conditionings [features, extras] can be rows of one: those of one shape that have no tensors but the `STACKED` ones."""
    groups: dict = {}
    for i, (features, extras) in enumerate(rows):
        simple = not any(torch.is_tensor(v) for k, v in extras.items() if k not in STACKED)
        shapes = (features.shape, *(getattr(extras.get(k), "shape", None) for k in STACKED))
        groups.setdefault(shapes if simple else i, []).append(i)
    return list(groups.values())


def _one(rows: Sequence[list]) -> list:
    """One conditioning of many."""
    features, extras = rows[0]
    if len(rows) == 1:
        return [features, extras]
    together = {k: torch.cat([e[k] for _, e in rows]) for k in STACKED if extras.get(k) is not None}
    return [torch.cat([f for f, _ in rows]), {**extras, **together}]


def _in_order(made: Sequence[torch.Tensor], groups: Sequence[list[int]]) -> torch.Tensor:
    """What was made of groups of rows, as the rows were numbered."""
    order = torch.tensor([i for group in groups for i in group]).argsort()
    return torch.cat(list(made))[order.to(made[0].device)]


@dataclass
class Ground:
    """The running denoiser: what the host's sampling hands to a sampler."""

    guider: comfy.samplers.CFGGuider
    options: dict
    scale: NoiseScale

    def denoised(self, x: torch.Tensor, sigma: torch.Tensor, rows: Sequence[list]) -> torch.Tensor:
        """The prediction for noisy latents (B, ...) at sigmas (B,), each under its own [features, extras]; without guidance."""
        model, parts = self.guider.inner_model, _batches(rows)
        made = [self._together(model, x[group], sigma[group], _one([rows[i] for i in group])) for group in parts]
        return _in_order(made, parts)

    def _together(self, model, x: torch.Tensor, sigma: torch.Tensor, conditioning: list) -> torch.Tensor:
        asked = {"positive": comfy.sampler_helpers.convert_cond([conditioning])}
        made = comfy.samplers.process_conds(model, x, asked, x.device, x.detach(), None, 0)["positive"]
        return comfy.samplers.calc_cond_batch(model, [made], x, sigma, self.options)[0]

    def sigmas(self, objective: Objective, seed: int, first: int, count: int) -> list[float]:
        """The noise levels of the training's samples first .. first + count - 1."""
        return [self.scale.sigma(1 - float(place)) for place in objective.levels.places(spread(seed, first, count))]

    def log_snr(self, objective: Objective, seed: int, first: int, count: int) -> torch.Tensor:
        """Their log-SNR (count,), on the CPU."""
        return torch.tensor([self.scale.log_snr(sigma) for sigma in self.sigmas(objective, seed, first, count)])

    def errors(self, pictures: Pictures, chosen: Sequence[int], rows: Sequence[list], objective: Objective, seed: int, first: int):
        """The losses (B,) of pictures, the numbers first, first + 1, ... of the training's samples, under a conditioning each."""
        parts = {}
        for row, picture in enumerate(chosen):
            parts.setdefault(pictures.latents[picture].shape, []).append(row)
        sigmas = self.sigmas(objective, seed, first, len(chosen))

        def errors(part: list[int]) -> torch.Tensor:
            return self._errors(pictures, chosen, part, [rows[i] for i in part], objective, [sigmas[i] for i in part], seed, first)

        return _in_order([errors(part) for part in parts.values()], list(parts.values()))

    def _errors(self, pictures, chosen, part, rows, objective, sigmas, seed, first) -> torch.Tensor:
        """Weighted errors of samples of one size."""
        model = self.guider.inner_model
        sampling, device = model.model_sampling, self.guider.model_patcher.load_device
        sigma = torch.tensor(sigmas, device=device)
        x0 = model.process_latent_in(torch.cat([pictures.latents[chosen[i]] for i in part]).to(device))
        noise = torch.cat([_noise(seed, first + i, pictures.latents[chosen[i]].shape) for i in part]).to(device)
        denoised = self.denoised(sampling.noise_scaling(sigma, noise, x0.clone(), False), sigma, rows)
        gain = sampling.calculate_denoised(sigma, torch.ones_like(x0), torch.zeros_like(x0)).flatten(1)[:, 0]
        masks = [pictures.masks[chosen[i]] for i in part]
        mask = None if masks[0] is None else torch.cat(masks).to(device)
        log_snr = torch.tensor([self.scale.log_snr(s) for s in sigmas], device=device)
        return loss_weight(objective.weighting, gain, log_snr, objective.gamma) * squared_error(denoised, x0, mask)


def _noise(seed: int, number: int, shape: torch.Size) -> torch.Tensor:
    """The noise of one sample, whatever batch it is in."""
    return torch.randn(shape, generator=torch.Generator().manual_seed((seed * 1_000_003 + number + 1) % 2**63))


# --- the run ----------------------------------------------------------------------------------------------------


class Lesson(comfy.samplers.Sampler):
    """Takes some steps of a training in one run of the host's sampling. `blocks` gives those that run again in the backward pass."""

    def __init__(
        self,
        steps: Callable[[Ground], Iterator[Step]],
        modules: Sequence[torch.nn.Module],
        show: Callable[[Step], None],
        mutations: bool = True,
        around: Callable[[], AbstractContextManager] = nullcontext,
        blocks: Callable[[Ground], Sequence[torch.nn.Module]] = lambda ground: (),
    ):
        self.steps, self.modules, self.show, self.mutations, self.around, self.blocks = steps, modules, show, mutations, around, blocks

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        check_whole([model_wrap.model_patcher, *model_wrap.model_patcher.get_additional_models_with_key(KEY)])
        for module in (model_wrap.inner_model, *self.modules):
            gradients.heal(module)
        ground = Ground(model_wrap, extra_args["model_options"], noise_scale(model_wrap.inner_model.model_sampling))
        gradients.attend_with_derivative(ground.options["transformer_options"])
        norms = gradients.norms_keep_their_inputs(() if self.mutations else self.modules)
        texts = gradients.recomputed(gradients.coarse_blocks(self.modules))
        with gradients.differentiable(self.mutations), norms, self.around(), texts, gradients.recomputed(self.blocks(ground)):
            for step in self.steps(ground):
                self.show(step)
                comfy.model_management.throw_exception_if_processing_interrupted()
        return latent_image


def check_whole(patchers) -> None:
    """Refuses models that are only partly in memory: what autograd keeps of their borrowed weights is overwritten."""
    for patcher in patchers:
        if getattr(patcher.model, "model_lowvram", False):
            size, free = patcher.model_size() / 2**30, patcher.get_free_memory(patcher.load_device) / 2**30
            raise ValueError(
                f"{type(patcher.model).__name__} ({size:.1f} GB) does not fit into memory whole, which gradients need; {free:.1f} GB are free. "
                "Use a smaller model or a smaller precision of it, or close what else uses the memory."
            )


def trainable(model, clip=None, what: str = "Training"):
    """A MODEL, and a CLIP if given, as `what` needs them: clones that do not load dynamically, the model bringing the CLIP along."""
    model = gradients.differentiable_patcher(model, "model").clone()
    if "multigpu_clones" in model.model_options:
        raise ValueError(f"{what} runs on one GPU. Take MultiGPU CFG Split away.")
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _load_whole)
    if clip is None:
        return model, None
    own = clip.clone()
    own.patcher = gradients.differentiable_patcher(own.patcher, "text encoder")
    own.cond_stage_model = own.patcher.model
    model.set_additional_models(KEY, [own.patcher])
    return model, own


def _load_whole(executor, model, noise_shape, conds, model_options=None, **more):
    """The host's loading, with no part of a model left out and room for a backward pass."""
    more["force_full_load"] = True
    return executor(model, [noise_shape[0] * BACKWARD, *noise_shape[1:]], conds, model_options=model_options, **more)


def half_precision_scale(model) -> float:
    """Where gradients pass through float16, by what a loss starts to be multiplied so that they do not vanish."""
    return 2.0**12 if model.model.get_dtype_inference() == torch.float16 else 1.0


@dataclass
class Course:
    """A training of a MODEL, some steps at a time.

    `start` is a CONDITIONING by which the host estimates its memory. `modules` are further networks that gradients pass through.
    """

    model: object
    start: list
    loop: Loop
    loss_of: Callable[[Ground, int], torch.Tensor]
    batch: torch.Size
    modules: Sequence[torch.nn.Module] = ()
    watched: Callable[[Iterator[Step]], Iterator[Step]] = iter  # sees every step, as one that saves does
    around: Callable[[], AbstractContextManager] = nullcontext  # what steps are taken inside of
    mutations: bool = False  # whether the networks change in place what autograd saves; found out when they do
    blocks: Callable[[Ground], Sequence[torch.nn.Module]] = lambda ground: ()  # of the denoiser, that run again in the backward pass
    bar: comfy.utils.ProgressBar = field(init=False)

    def __post_init__(self):
        self.bar = comfy.utils.ProgressBar(self.loop.steps)

    def run(self, count: int) -> None:
        """Takes up to `count` more steps. Raises what stops it; the loop then stands at its last good step."""
        goal = self.loop.done + count
        try:
            return self._run(count)
        except RuntimeError as error:
            if gradients.without_derivative(error):
                name = type(self.model.model).__name__
                raise ValueError(f"{name} cannot be trained with this ComfyUI: a part of it has no derivative ({error}).") from error
            if self.mutations or not gradients.mutated(error):
                raise
        self.mutations = True  # out here, as the error holds the graph of its step
        self._run(goal - self.loop.done)

    def _run(self, count: int) -> None:
        def steps(ground: Ground) -> Iterator[Step]:
            return self.watched(islice(self.loop.run(lambda i: self.loss_of(ground, i)), count))

        lesson = Lesson(steps, self.modules, self._show, self.mutations, self.around, self.blocks)
        guider = comfy.samplers.CFGGuider(self.model)
        guider.inner_set_conds({"positive": self.start})
        blank = torch.zeros(self.batch)
        guider.sample(blank, blank, lesson, torch.ones(1), disable_pbar=True, seed=0)

    def _show(self, step: Step, picture: Image.Image | None = None) -> None:
        self.bar.update_absolute(step.index, step.total, None if picture is None else ("JPEG", picture, 512))

    def preview(self, picture: Image.Image) -> None:
        """Shows a picture on the node."""
        if self.loop.history:
            self._show(self.loop.history[-1], picture)


def run_course(course: Course, every: int, look: Callable[[], None]) -> bool:
    """Runs a course to its end, calling `look` after every `every` steps (0 = never). False where the user stopped it after a step."""
    loop = course.loop
    try:
        while loop.done < loop.steps:
            rest = loop.steps - loop.done
            course.run(min(rest, every - loop.done % every) if every else rest)
            if every and loop.done % every == 0 and loop.done < loop.steps:
                look()
    except Stopped:
        if not loop.done:
            raise
        log.info("Training stopped after %d of %d steps; what is learnt is kept.", loop.done, loop.steps)
        return False
    return True


__all__ = ["Course", "Ground", "Objective", "Pictures", "levels", "picks", "pictures_of", "run_course", "trainable"]
