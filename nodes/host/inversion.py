"""Inverting pictures and replaying inversions inside the host's sampling.

Both run as a `Sampler` of the host under the host's own CFG, so loading, conditionings, hooks, wrappers, previews and cancelling are
the host's. States travel in the model's own latent space and in float32 or float64, so that exact methods stay exact.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP

from ...guidance.diffedit import cells, mixed
from ...guidance.sdedit import sigmas_from
from ...inversion.method import Method, Slope, Trail, replay
from .attention import KEY as MARK
from .channels import alive, noise_scale, same_conditioning, same_value
from .fingerprint import Weights
from .latents import check_pictures, samples_of

_log = logging.getLogger(__name__)

BRANCHES = ("edit", "source and edit", "direct")


@dataclass(frozen=True)
class ModelTag:
    """Which model an inversion belongs to. `patched` weights carried a LoRA when it was made; a later one may carry others."""

    family: str
    latent_format: str
    prediction: str
    weights: Weights = field(repr=False)
    patched: int = field(default=0, compare=False)

    @classmethod
    def of(cls, model) -> ModelTag:
        sampling = model.get_model_object("model_sampling")
        kinds = {"flow": comfy.model_sampling.CONST, "v": comfy.model_sampling.V_PREDICTION, "eps": comfy.model_sampling.EPS}
        prediction = next((name for name, kind in kinds.items() if isinstance(sampling, kind)), "another prediction")
        kind = type(model.model).__name__, type(model.model.latent_format).__name__, prediction
        return cls(*kind, Weights.of(model), len(model.patches))

    @property
    def kind(self) -> str:
        return f"{self.family} ({self.latent_format}, {self.prediction})"

    def check(self, model) -> None:
        """Refuses a model of another kind, or of other weights; the same weights in another precision, or with LoRA, pass."""
        own, advice = ModelTag.of(model), "Connect the model of the inversion, or invert again with this one."
        if own.kind != self.kind:
            raise ValueError(f"The inversion was made with {self.kind}, but the model is {own.kind}. {advice}")
        if not self.weights.same(own.weights):
            raise ValueError(f"The inversion was made with another {self.kind}: the weights of this model are not the same. {advice}")


@dataclass(frozen=True)
class Inversion:
    """An inverted batch of pictures: the value of the socket INVERSION.

    `trail` is in the model's own latent space, on the CPU. `source` is the CONDITIONING under which the pictures were inverted, `null`
    the negative CONDITIONING that belongs to the replay (None: whatever the user gives), `cfg` the guidance at which the replay under
    `source` gives the pictures back. `evaluations` counts rows of the network's batch for one picture.
    """

    method: Method
    trail: Trail
    source: list
    model: ModelTag
    null: list | None = None
    cfg: float = 1.0
    evaluations: int = 0
    seconds: float = 0.0

    @property
    def pictures(self) -> int:
        return self.trail.carries[0][0].shape[0]


def parts_alive(conditioning: list[dict], x: torch.Tensor, sigma: torch.Tensor) -> int:
    """How many parts of a conditioning the host evaluates at this sigma."""
    return sum(alive([part], x, sigma) for part in conditioning)


def untouched(model_options: dict) -> bool:
    """Whether no other node takes part in the predictions of a run with these options."""
    options = model_options["transformer_options"]
    hooks = [options.get(k) for k in ("patches", "patches_replace", "optimized_attention_override")]
    kinds = (WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
    hooks += [options.get("wrappers", {}).get(k) for k in kinds]
    return not any(hooks) and not any("function" in k for k in model_options)


class Checked(comfy.samplers.CFGGuider):
    """The host's CFG that refuses moments at which a conditioning is not active, of which the host makes zeros.

    `evaluations` counts rows of the network's batch for one picture, `advice` tells the user what else to move, `lead` what the positive is.
    While it is `alone`, channels of Multi CFG Patch stay out.
    """

    advice, lead, alone = "move end_percent into it", "positive", False
    evaluations = 0

    def denoised(self, x: torch.Tensor, sigma: torch.Tensor, **extra_args) -> torch.Tensor:
        """The prediction at `sigma` (B,)."""
        for name in ("positive", "negative") if self.cfg != 1.0 else ("positive",):
            active = parts_alive(self.conds[name], x, sigma)
            if active == 0:
                told = self.lead if name == "positive" else name
                raise ValueError(
                    f"The {told} conditioning is not active at sigma {float(sigma.max()):.4g}: its timestep range excludes it. Widen the "
                    f"range, or {self.advice}."
                )
            self.evaluations += active
        return self(x, sigma, **extra_args)

    def _source(self) -> list[dict]:
        """The source's parts, without ControlNet and gligen of the positive, which the host hands on to all other conditionings."""
        pairs = zip(self.original_conds["source"], self.conds["source"])
        return [{k: v for k, v in part.items() if k not in ("control", "gligen") or own.get(k) is not None} for own, part in pairs]

    @contextlib.contextmanager
    def under_source(self, cfg: float, alone: bool = False):
        """While this lasts, predictions of this run are those of the conditioning "source", at this cfg."""
        target, own = self.conds["positive"], self.cfg
        self.conds["positive"], self.cfg, self.lead, self.alone = self._source(), cfg, "source", alone
        try:
            yield
        finally:
            self.conds["positive"], self.cfg, self.lead, self.alone = target, own, "positive", False


class Guidance(Checked):
    """The host's CFG; at cfg 1 it needs no negative.

    Where the negative is the positive and no other node can tell them apart, cfg has no effect and is 1 in the run. `direction` is what a
    method makes of the difference of the predictions. With a `source`, the first half of a batch is predicted under it.
    """

    def __init__(
        self,
        model,
        positive,
        negative,
        cfg: float,
        direction: Callable[[torch.Tensor], torch.Tensor] | None = None,
        source: list | None = None,
    ):
        super().__init__(model)
        self.direction = direction
        if negative is None and cfg != 1.0:
            raise ValueError(f"cfg is {cfg:g}, which needs a negative conditioning. Connect one (its text may be empty), or set cfg to 1.")
        given = {"positive": positive, "negative": negative, "source": source}
        self.inner_set_conds({k: v for k, v in given.items() if v is not None})
        self.set_cfg(cfg)

    def outer_sample(self, *args, **kwargs):
        if "negative" in self.conds and "source" not in self.conds and untouched(self.model_options) and self._same():
            self.set_cfg(1.0)
        if self.direction is not None:
            comfy.model_patcher.set_model_options_pre_cfg_function(self.model_options, self._directed)
        return super().outer_sample(*args, **kwargs)

    def denoised(self, x: torch.Tensor, sigma: torch.Tensor, **extra_args) -> torch.Tensor:
        if "source" not in self.conds:
            return super().denoised(x, sigma, **extra_args)
        first = len(x) // 2
        with self.under_source(self.cfg):
            source = super().denoised(x[:first], sigma[:first], **extra_args)
        return torch.cat([source, super().denoised(x[first:], sigma[first:], **extra_args)])

    def _directed(self, args: dict) -> list[torch.Tensor]:
        """Pre-CFG function: guidance goes where the method wants."""
        positive, negative, *more = args["conds_out"]
        guided = args["conds"][1] is not None
        return [negative + self.direction(positive - negative), negative, *more] if guided else args["conds_out"]

    def _same(self) -> bool:
        """Whether positive and negative surely are one prediction."""
        pair = [self.original_conds[name] for name in ("positive", "negative")]
        kinds = [{part.get("prompt_type", name) for part in parts} for name, parts in zip(("positive", "negative"), pair)]
        return same_conditioning(*pair) and kinds[0] == kinds[1]


def slope_of(guider, extra_args: dict) -> Slope:
    """The slope of what a guider predicts, within a run; `guider.denoised(x, sigma, **extra_args)`."""
    sampling = guider.inner_model.model_sampling

    def input_scale(sigma: float) -> float:
        return float(sampling.calculate_input(torch.tensor([sigma], dtype=torch.float64), torch.ones(1, dtype=torch.float64)))

    return Slope(guider.denoised, input_scale, extra_args)


class Walk(comfy.samplers.Sampler):
    """A journey through noise levels: `journey(guider, slope, clean, show)` gets the clean latent in the model's own space.

    What the journey returns is in `result`.
    """

    def __init__(self, journey: Callable, total: int):
        self.journey, self.total, self.result = journey, total, None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        done = 0

        def show(x: torch.Tensor, denoised: torch.Tensor) -> None:
            nonlocal done
            if callback is not None:
                callback(min(done, self.total - 1), denoised, x.float(), self.total)
            done += 1

        self.result = self.journey(model_wrap, slope_of(model_wrap, extra_args), latent_image, show)
        return latent_image


def run(guider: Guidance, latent: torch.Tensor, sigmas: Sequence[float], journey: Callable, total: int) -> Walk:
    """Runs a journey on a latent (as the VAE gives it) inside the host's sampling; progress over `total` steps."""
    walk = Walk(journey, total)
    show = latent_preview.prepare_callback(guider.model_patcher, total)
    hidden, levels = not comfy.utils.PROGRESS_BAR_ENABLED, torch.FloatTensor(list(sigmas))
    guider.sample(torch.zeros_like(latent), latent, walk, levels, callback=show, disable_pbar=hidden, seed=0)
    return walk


def levels(model, scheduler: str, steps: int, end_percent: float) -> tuple[float, ...]:
    """Falling sigmas to 0: those of KSampler, or of `steps` steps from a later percent of the sampling."""
    sampling = model.get_model_object("model_sampling")

    def grid(n: int) -> list[float]:
        return comfy.samplers.calculate_sigmas(sampling, scheduler, n).tolist()

    if not 0.0 <= end_percent < 1.0:
        raise ValueError(f"end_percent is {end_percent}; give 0 (all the way to noise) to less than 1.")
    return tuple(grid(steps) if end_percent == 0.0 else sigmas_from(noise_scale(sampling).sigma(end_percent), steps, grid))


def later(sigmas: tuple[float, ...], skip: int) -> tuple[float, ...]:
    """Falling sigmas without their first `skip` steps."""
    steps = len(sigmas) - 1
    if not 0 <= skip < steps:
        raise ValueError(f"skip is {skip} of {steps} steps; give 0 (none) to {steps - 1}, usually a quarter to a half of the steps.")
    return sigmas[skip:]


def noise_deviation(sampling) -> float:
    """The standard deviation of the noise of a model, 1 for nearly all."""
    return getattr(sampling, "noise_scale", 1.0)


def check_flow(model, what: str, instead: str) -> None:
    """Refuses models that are no flow models."""
    tag = ModelTag.of(model)
    if tag.prediction != "flow":
        convertible = ", or make it one with Model Sampling as Flow" if tag.prediction in ("eps", "v") else ""
        raise ValueError(f"{what} needs a flow model (SD3, Flux, ...), but the model is {tag.kind}. Use {instead} with it{convertible}.")


def check_channels(model, samples: torch.Tensor) -> None:
    """Refuses latents that another model's VAE made."""
    wanted = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != wanted:
        raise ValueError(
            f"The latent has {samples.shape[1]} channels, but {ModelTag.of(model).kind} takes {wanted}: another model's VAE made it. Encode the "
            "picture with the VAE of this model."
        )


def latent_of(model, vae, picture) -> torch.Tensor:
    """The latent samples, float32, of a LATENT or an IMAGE."""
    samples = samples_of(vae, picture, "picture")
    check_pictures(samples, "picture")
    found = comfy.sample.fix_empty_latent_channels(model, samples.float())
    check_channels(model, found)
    return found


def kept(trail: Trail) -> Trail:
    """A trail on the CPU, with a copy of its own of nothing but the tensors it needs."""
    carries = tuple(tuple(t.detach().cpu() for t in carry) for carry in trail.carries)
    return Trail(trail.sigmas, carries, {k: t.detach().cpu() for k, t in trail.extras.items()})


def invert(
    model, vae, picture, source, method: Method, sigmas: Sequence[float], *, negative=None, cfg: float = 1.0, precision=torch.float32
) -> Inversion:
    """The inversion of a LATENT or IMAGE under the conditioning `source` by a method that needs nothing but predictions."""
    began, guider = time.perf_counter(), Guidance(model, source, negative, cfg)

    def journey(guider, slope, clean, show):
        return kept(method.encode(slope, clean.to(precision), sigmas, show))

    walk = run(guider, latent_of(model, vae, picture), sigmas, journey, len(sigmas) - 1)
    return Inversion(
        method,
        walk.result,
        source,
        ModelTag.of(model),
        null=negative,
        cfg=cfg,
        evaluations=guider.evaluations,
        seconds=time.perf_counter() - began,
    )


class InvertedNoise:
    """The host's NOISE that brings an inversion's start into any sampler that begins at its first sigma, for every parametrisation."""

    def __init__(self, model, inversion: Inversion):
        self.seed, self.model, self.inversion = 0, model, inversion

    def generate_noise(self, input_latent: dict) -> torch.Tensor:
        latent, sampling = input_latent["samples"].float(), self.model.get_model_object("model_sampling")
        clean = self.model.model.process_latent_in(latent) if torch.count_nonzero(latent) else latent
        first = torch.tensor([self.inversion.trail.sigmas[0]])
        at_top = bool(first >= float(sampling.sigma_max) * (1 - 1e-5))
        blank = torch.zeros_like(clean)
        start = self.inversion.trail.carries[0][0].float().to(clean)
        gain = sampling.noise_scaling(first, torch.ones_like(clean), blank.clone(), at_top)
        return (start - sampling.noise_scaling(first, blank, clean, at_top)) / gain


def noisy_latent(model, inversion: Inversion) -> dict:
    """The inversion's start as a LATENT, for a sampler that adds no noise."""
    start = inversion.trail.carries[0][0].float().to(comfy.model_management.intermediate_device())
    return {"samples": model.model.process_latent_out(start)}


def row_count(conditioning: list) -> int:
    """How many rows a CONDITIONING has, 1 for all pictures or one for each."""
    return max(1 if features is None else len(features) for features, _ in conditioning)


def check_rows(target: list, pictures: int, branches: str) -> None:
    """Refuses a target with rows for other pictures than were inverted; with two branches, whole batches are the rows of Prompt-to-Prompt."""
    rows = row_count(target)
    if rows in (1, pictures) or (branches != "edit" and rows % pictures == 0):
        return
    were, allowed = ("picture was", "1") if pictures == 1 else ("pictures were", f"1, or {pictures}")
    raise ValueError(
        f"positive has {rows} rows, but {pictures} {were} inverted; give {allowed}. Rows of P2P Attention Patch need branches 'direct' or "
        f"'source and edit', and its batch_size {pictures}."
    )


def stacked_conditioning(source: list, target: list, pictures: int) -> list:
    """One CONDITIONING whose rows are the source for every picture, then the target for every picture; both differ in nothing but rows."""

    def rows(s, t):
        return torch.cat([comfy.utils.repeat_to_batch_size(t, pictures) for t in (s, t.to(s))])

    ((a, a_extra),), ((b, b_extra),) = source, target
    extra = {k: rows(a_extra[k], v) if k in a_extra and _are_rows(a_extra[k], v) else v for k, v in b_extra.items()}
    return [[rows(a, b), extra]]


def _are_rows(a, b) -> bool:
    return torch.is_tensor(a) and torch.is_tensor(b) and a.ndim > 1 and a.shape[1:] == b.shape[1:]


def differences(source: list, target: list) -> list[str]:
    """What keeps source and target out of one CONDITIONING: what the host knows only for all of its rows."""
    if len(source) != 1 or len(target) != 1:
        return ["number of parts"]
    ((a, a_extra),), ((b, b_extra),) = source, target
    lengths = [] if _are_rows(a, b) else ["number of tokens"]
    pairs = {k: (a_extra.get(k), b_extra.get(k)) for k in (a_extra | b_extra).keys() - {MARK}}
    return lengths + sorted(k for k, (s, t) in pairs.items() if not _are_rows(s, t) and not same_value(s, t))


@dataclass(frozen=True)
class Replay:
    """How an inversion is walked down again. `mask` (B or 1, 1, ..., h, w) at the latent's size: 1 = may change.

    Two branches are one batch where their conditionings allow it, so that attention control can read the source; else each is predicted by
    itself.
    """

    inversion: Inversion
    branches: str = "edit"
    mask: torch.Tensor | None = None

    def run(self, model, positive, negative, cfg: float) -> torch.Tensor:
        """The latent (as a VAE takes it): the edit, or the source's rows and then the edit's."""
        inversion, pictures = self.inversion, self.inversion.pictures
        inversion.model.check(model)
        check_rows(positive, pictures, self.branches)
        count, source = 1 if self.branches == "edit" else max(2, row_count(positive) // pictures), None
        if count == 2 and row_count(positive) <= pictures:
            if apart := differences(inversion.source, positive):
                source = inversion.source
                told = ", ".join(apart)
                _log.info("Source and target differ in %s: each is predicted by itself, attention control cannot read the source.", told)
            else:
                positive = stacked_conditioning(inversion.source, positive, pictures)
        guider = Guidance(model, positive, negative, cfg, inversion.method.direction(), source)
        trail = inversion.trail.branches(1 if source else count)
        clean = model.model.process_latent_out(trail.carries[-1][0].float())

        def journey(guider, slope, latent, show):
            here = _on(inversion.trail.branches(count), latent.device)
            return replay(inversion.method, slope, here, between=self._between(here, count), show=show)

        walk = run(guider, clean, trail.sigmas, journey, trail.steps)
        return model.model.process_latent_out(walk.result.float()).to(comfy.model_management.intermediate_device())

    def _between(self, trail: Trail, count: int) -> Callable:
        """Keeps the source's rows, and what lies off the mask, on the inversion's own path."""
        first = self.inversion.pictures
        mask = self.mask if self.mask is None or len(self.mask) == 1 else torch.cat([self.mask] * count)

        def between(carry, level):
            own = trail.carries[level]
            if mask is not None:
                carry = tuple(mixed(t, kept, mask.to(t)) for t, kept in zip(carry, own))
            if self.branches == "direct":
                carry = tuple(torch.cat([kept[:first], t[first:]]) for t, kept in zip(carry, own))
            return carry

        return between


def _on(trail: Trail, device: torch.device) -> Trail:
    """A trail on the device that the model runs on, in float32 where that has nothing finer."""

    def moved(t: torch.Tensor) -> torch.Tensor:
        return t.to(device, torch.float32 if device.type == "mps" and t.dtype == torch.float64 else t.dtype)

    return replace(
        trail,
        carries=tuple(tuple(moved(t) for t in carry) for carry in trail.carries),
        extras={k: moved(t) for k, t in trail.extras.items()},
    )


def outputs(model, inversion: Inversion) -> tuple:
    """What every inverter gives: the inversion, its start as LATENT and as NOISE, and the sigmas of the way back."""
    sigmas = torch.FloatTensor(list(inversion.trail.sigmas))
    return inversion, noisy_latent(model, inversion), InvertedNoise(model, inversion), sigmas


def mask_for(mask: torch.Tensor, inversion: Inversion) -> torch.Tensor:
    """A MASK (B or 1, H, W) at the size of the inverted latent: a cell that it touches may change."""
    clean = inversion.trail.carries[-1][0]
    found = cells(mask.reshape(-1, *mask.shape[-2:]).float(), *clean.shape[-2:])
    if len(found) not in (1, inversion.pictures):
        raise ValueError(f"The mask holds {len(found)} pictures but the inversion {inversion.pictures}; give one mask, or one each.")
    return found.reshape(len(found), *[1] * (clean.ndim - 3), *found.shape[-2:])
