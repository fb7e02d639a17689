"""Multi-condition guidance inside the host's own sampling.

The host's CFG stays what it is. While it predicts, the channels ride along: one wrapper adds their conditionings to
the same `calc_cond_batch` call, and a post-CFG function, first of its list, adds their pushes. So every hook of other
nodes still runs, and with no channel active the host's result is untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import comfy.model_patcher
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ...guidance.multi_cfg import Channel, Push, Rules, combine, push
from ...guidance.schedules import NoiseScale

KEY = "controlled_diffusion.multi_cfg"
POSITIVE, NEGATIVE = 0, 1


def noise_scale(model_sampling, points: int = 501) -> NoiseScale:
    """The continuous noise axis of a model, from the host's own percent_to_sigma."""
    inner = [float(model_sampling.percent_to_sigma(i / (points - 1))) for i in range(1, points - 1)]
    sigmas = [float(model_sampling.sigma_max), *inner, max(float(model_sampling.sigma_min), 1e-6)]
    falling = [sigmas[0]]
    for sigma in sigmas[1:]:
        falling.append(min(sigma, falling[-1] * (1 - 1e-7)))
    return NoiseScale(tuple(falling), isinstance(model_sampling, comfy.model_sampling.CONST))


def _same_value(a, b) -> bool:
    if a is b:
        return True
    if torch.is_tensor(a) and torch.is_tensor(b):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and isinstance(a, (str, int, float, bool, tuple)) and a == b


def same_conditioning(a: list[dict], b: list[dict]) -> bool:
    """Whether two converted conditionings ask the network for the same prediction."""
    own = {"uuid", "model_conds", "prompt_type"}
    pairs = list(zip(a, b))
    return len(a) == len(b) and all(
        x.keys() - own == y.keys() - own and all(_same_value(x[k], y[k]) for k in x.keys() - own) for x, y in pairs
    )


def check_conditionings(model, named: dict[str, list]) -> None:
    """Refuses conditionings that are empty or were encoded for a model of another width."""
    config = model.model.model_config.unet_config
    wanted = next((config[k] for k in ("context_dim", "context_in_dim") if isinstance(config.get(k), int)), None)
    for name, conditioning in named.items():
        if not conditioning:
            raise ValueError(f"{name} is an empty conditioning; connect a text encode node (its text may be empty).")
        for features, _ in conditioning:
            if wanted and torch.is_tensor(features) and features.shape[-1] != wanted:
                raise ValueError(
                    f"{name} has text features of width {features.shape[-1]}, but {type(model.model).__name__} takes {wanted}: "
                    "it was encoded for another model. Encode it with the CLIP that belongs to this model."
                )


def _channel_conditionings(channels: Sequence[Channel]) -> dict[str, list]:
    nulls = {f"The null of channel '{c.name}'": c.null for c in channels if c.null is not None}
    return {f"Channel '{c.name}'": c.conditioning for c in channels} | nulls


class Conditionings:
    """The distinct conditionings of one guider by key; equal ones share a key, so each is evaluated once."""

    def __init__(self, known: dict[str, list[dict]]):
        self.known, self.added = dict(known), {}

    def key_of(self, conditioning, role: int) -> str:
        converted = comfy.sampler_helpers.convert_cond(conditioning)
        for key, other in self.known.items():
            if same_conditioning(converted, other):
                return key
        if role == NEGATIVE:
            converted = [{"prompt_type": "negative", **c} for c in converted]
        key = f"{KEY}/{len(self.known)}"
        self.known[key] = self.added[key] = converted
        return key


@dataclass(frozen=True)
class Seat:
    """A channel with the keys of its conditioning and its null among the guider's conditionings."""

    channel: Channel
    key: str
    null: str


def seats_for(channels: Sequence[Channel], names: Conditionings, base: str | None) -> list[Seat]:
    """Finds or makes a key for every channel's conditioning and null."""
    seats = []
    for channel in channels:
        if channel.null is None and base is None:
            raise ValueError(
                f"Channel '{channel.name}' has no null conditioning and the guider has no negative to use "
                "instead. Give the channel a null (an empty prompt), or sample with positive and negative."
            )
        key = names.key_of(channel.conditioning, NEGATIVE if channel.negative else POSITIVE)
        null = base if channel.null is None else names.key_of(channel.null, NEGATIVE)
        seats.append(Seat(channel, key, null))
    return seats


def fits(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A mask (B or 1, H, W) at the size of a latent (B, C, [frames,] h, w)."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if x.ndim not in (4, 5):
        raise ValueError(f"A channel's mask needs a picture or a video, but the latent has the shape {tuple(x.shape)}; remove the mask.")
    if mask.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"The channel's mask holds {mask.shape[0]} pictures but {x.shape[0]} are sampled; give one mask, or one each.")
    resized = torch.nn.functional.interpolate(mask.to(x), x.shape[-2:], mode="bilinear")
    return resized.view(-1, 1, *[1] * (x.ndim - 4), *x.shape[-2:])


def alive(conditioning: list[dict] | None, x: torch.Tensor, timestep: torch.Tensor) -> bool:
    """Whether the host would evaluate any part of a conditioning at this sigma; it makes a zero image of none."""
    return any("default" in c or comfy.samplers.get_area_and_mult(c, x, timestep) is not None for c in conditioning or ())


@dataclass
class Mixture:
    """The channels of one run. `lead_priority` is the priority of the guider's own positive."""

    seats: list[Seat]
    rules: Rules
    scale: NoiseScale
    lead_priority: int = 0

    def at(self, guider, x: torch.Tensor, timestep: torch.Tensor) -> Moment:
        """The channels that count at this sigma."""
        sigma, conds = float(timestep.max()), guider.conds
        active = []
        for seat in self.seats:
            strength = seat.channel.strength(sigma, self.scale)
            if strength != 0.0 and alive(conds[seat.key], x, timestep):
                null = seat.null if alive(conds[seat.null], x, timestep) else "negative"
                if null != seat.key and alive(conds.get(null), x, timestep):
                    active.append((Seat(seat.channel, seat.key, null), strength))
        return Moment(self, conds, active)


@dataclass
class Moment:
    """One prediction: asks for the channels' denoised images beside the guider's own, then adds their pushes."""

    mixture: Mixture
    conds: dict[str, list[dict]]
    active: list[tuple[Seat, float]]
    denoised: dict[str, torch.Tensor] = field(default_factory=dict)

    def wanted(self) -> list[str]:
        """Keys to evaluate, each once, positives first."""
        keys = [seat.key for seat, _ in self.active] + [seat.null for seat, _ in self.active]
        if self.mixture.rules != Rules():
            keys.append("negative")
        return [k for k in dict.fromkeys(keys) if k in self.conds]

    def _roles(self, conds: list, added: list[str]) -> list[int]:
        """What other nodes shall see as index of each row's conditioning: 0 for positives, 1 for the rest, as in plain CFG."""
        positive = {seat.key for seat, strength in self.active if strength > 0}
        own = [NEGATIVE if c is not None and c is self.conds.get("negative") else i for i, c in enumerate(conds)]
        return own + [POSITIVE if k in positive else NEGATIVE for k in added]

    def evaluate(self, run, model, conds: list, x, timestep, model_options: dict) -> list[torch.Tensor]:
        """The host's list of predictions for `conds`; the missing ones of the channels come in the same call."""
        present = {k: i for k in self.wanted() for i, c in enumerate(conds) if c is self.conds[k]}
        missing = [k for k in self.wanted() if k not in present]
        options = _with_roles(model_options, self._roles(conds, missing))
        out = run(model, [*conds, *(self.conds[k] for k in missing)], x, timestep, options)
        self.denoised = {k: out[i] for k, i in present.items()} | dict(zip(missing, out[len(conds) :]))
        return out[: len(conds)]

    def _calc_cond_batch(self, executor, model, conds, x, timestep, model_options):
        if self.denoised:  # a later call in the same step belongs to another node
            return executor(model, conds, x, timestep, model_options)
        return self.evaluate(executor, model, conds, x, timestep, model_options)

    def _post_cfg(self, args: dict) -> torch.Tensor:
        if self.active and not self.denoised:
            self.evaluate(comfy.samplers.calc_cond_batch, args["model"], [], args["input"], args["sigma"], args["model_options"])
        return self.guided(args["denoised"], args.get("cond_denoised"))

    def guided(self, prediction: torch.Tensor, lead: torch.Tensor | None = None) -> torch.Tensor:
        """The guider's own prediction plus the channels' pushes. `lead` is the prediction of the guider's positive."""
        rules, seen = self.mixture.rules, self.denoised
        pushes = [
            push(
                seen[s.key],
                seen[s.null],
                strength,
                None if s.channel.mask is None else fits(s.channel.mask, prediction),
                s.channel.priority,
            )
            for s, strength in self.active
        ]
        positives = [seen[s.key] for s, strength in self.active if strength > 0]
        if "negative" not in seen or rules == Rules():
            return combine(prediction, pushes)
        base = seen["negative"]
        own = [Push(prediction - base, self.mixture.lead_priority)]
        return combine(base, own + pushes, rules, positives if lead is None else [lead, *positives])

    def hooked(self, model_options: dict) -> dict:
        """A copy of the run's options in which this moment takes part."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self._calc_cond_batch, options, is_model_options=True)
        options["sampler_post_cfg_function"] = [self._post_cfg, *options.get("sampler_post_cfg_function", [])]
        return options


def _with_roles(model_options: dict, roles: list[int]) -> dict:
    """Options in which other nodes see `roles` in the place of the indices of a list that is longer than plain CFG's."""
    if roles == list(range(len(roles))):
        return model_options

    def as_roles(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        shown = [roles[i] if i < len(roles) else i for i in transformer_options["cond_or_uncond"]]
        return executor(x, t, c_concat, c_crossattn, control, {**transformer_options, "cond_or_uncond": shown}, **kwargs)

    options = comfy.model_patcher.create_model_options_clone(model_options)
    add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, as_roles, options, is_model_options=True)
    return options


class MultiCFG(comfy.samplers.CFGGuider):
    """A guider over one unconditional and any number of channels.

    The first positive channel without a mask and with the common null is the guider's positive, its weight the cfg,
    so that with this channel alone the guider is the host's CFG.
    """

    def __init__(self, model, unconditional, channels: Sequence[Channel], rules: Rules = Rules()):
        super().__init__(model)
        check_conditionings(model, {"The unconditional": unconditional} | _channel_conditionings(channels))
        self.lead = next((c for c in channels if not c.negative and c.mask is None and c.null is None), None)
        positive = unconditional if self.lead is None else self.lead.conditioning
        self.set_conds(positive, unconditional)
        names = Conditionings(self.original_conds)
        seats = seats_for([c for c in channels if c is not self.lead], names, "negative")
        self.original_conds |= names.added
        self.set_cfg(self.lead.weight if self.lead else 1.0)
        self.mixture = Mixture(seats, rules, noise_scale(model.get_model_object("model_sampling")), self.lead.priority if self.lead else 0)

    def _cfg_at(self, sigma: float) -> float:
        return self.cfg * self.lead.factor(sigma, self.mixture.scale) if self.lead else 0.0

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        positive, negative = self.conds["positive"], self.conds["negative"]
        cfg = self._cfg_at(float(timestep.max()))
        moment = self.mixture.at(self, x, timestep)
        if not alive(negative, x, timestep):
            negative, cfg = None, 1.0
        elif cfg == 0.0 or not alive(positive, x, timestep):
            positive, cfg = negative, 1.0
        if not alive(positive, x, timestep):
            raise ValueError(
                f"No conditioning is active at sigma {float(timestep.max()):.4g}: every timestep range excludes it. "
                "Widen the range of the unconditional or of a channel's conditioning."
            )
        if moment.active or self.mixture.rules != Rules() or positive is negative:
            model_options = moment.hooked(model_options)
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, negative, positive, cfg, model_options, seed)


def _register_hooks(guider) -> None:
    """Registers the hooks of all conditionings again, now with the channels' among them, as the host does at a run's start."""
    if getattr(guider.model_patcher, "is_dynamic", bool)():
        raise ValueError(
            "A channel's conditioning carries hooks (a LoRA of its own), which the patch cannot register while the model is loaded "
            "dynamically. Use the Multi CFG Guider, or start ComfyUI with --disable-dynamic-vram."
        )
    options = {"transformer_options": {}}  # not the run's: wrappers that it already holds would be added twice
    comfy.sampler_helpers.prepare_model_patcher(guider.model_patcher, guider.conds, options)
    guider.model_options["registered_hooks"] = options["registered_hooks"]


class MultiCFGWrapper:
    """Lets channels ride on any guider of a model: joins the conditionings when a run starts, pushes at every prediction."""

    def __init__(self, channels: Sequence[Channel], rules: Rules = Rules()):
        self.channels, self.rules = tuple(channels), rules
        self._run_key = f"{KEY}/{id(self)}"

    def install(self, model):
        """A clone of the model with the channels on top of whatever guides it."""
        check_conditionings(model, _channel_conditionings(self.channels))
        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.join)
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.predict)
        return patched

    def join(self, executor, *args, **kwargs):
        """OUTER_SAMPLE: the run's own conditionings plus the channels'."""
        guider = executor.class_obj
        if self.rules != Rules() and "negative" not in guider.conds:
            raise ValueError(
                f"Conflict '{self.rules.conflict}', norm_cap {self.rules.norm_cap} and rescale {self.rules.rescale} measure against the "
                "negative, which this guider does not have. Use conflict 'sum' with both at 0, or sample with positive and negative."
            )
        names = Conditionings(guider.conds)
        seats = seats_for(self.channels, names, "negative" if "negative" in guider.conds else None)
        comfy.samplers.preprocess_conds_hooks(names.added)
        guider.conds |= names.added
        if any("hooks" in c for conditioning in names.added.values() for c in conditioning):
            _register_hooks(guider)
        scale = noise_scale(guider.model_patcher.get_model_object("model_sampling"))
        guider.model_options[self._run_key] = Mixture(seats, self.rules, scale)
        return executor(*args, **kwargs)

    def predict(self, executor, x, timestep, model_options={}, seed=None):
        """PREDICT_NOISE: within the host's CFG where the guider is the host's, on top of the result of any other."""
        guider = executor.class_obj
        moment = guider.model_options[self._run_key].at(guider, x, timestep)
        if not moment.active and self.rules == Rules():
            return executor(x, timestep, model_options, seed)
        if isinstance(guider, MultiCFG) or type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise:
            return executor(x, timestep, moment.hooked(model_options), seed)
        prediction = executor(x, timestep, model_options, seed)
        moment.evaluate(comfy.samplers.calc_cond_batch, guider.inner_model, [], x, timestep, model_options)
        return moment.guided(prediction)
