"""Multi-condition guidance inside the host's own sampling.

The host's CFG stays what it is. While it predicts, the channels ride along: one wrapper adds their conditionings to
the same `calc_cond_batch` call, and a post-CFG function, first of its list, adds their pushes. So every hook of other
nodes still runs, and with no channel active the host's result is untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import comfy.model_patcher
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ....guidance.multi_cfg import Channel, Push, Rules, combine, push
from ....guidance.record import Record, distinct, merged
from ....guidance.schedules import NoiseScale
from .. import gradients
from ..conditionings import check_conditionings, is_active, same_conditioning
from ..noise_levels import noise_scale, run_noise_scale

KEY = "controlled_diffusion.multi_cfg"
POSITIVE, NEGATIVE = 0, 1










def check_channels(model, channels: Sequence[Channel]) -> None:
    """Refuses channels that were made for another model."""
    nulls = {f"The null of channel '{c.name}'": c.null for c in channels if c.null is not None}
    check_conditionings(model, {f"Channel '{c.name}'": c.conditioning for c in channels if c.force is None} | nulls)
    own = type(model.get_model_object("latent_format")).__name__
    for channel in channels:
        wanted = channel.force.latent_format if channel.force else ""
        if wanted not in ("", own):
            raise ValueError(
                f"Channel '{channel.name}' was made for latents of the format {wanted}, but {type(model.model).__name__} has {own}. "
                "Use one that was trained on this model's latents."
            )


def _conditionings(channels: Sequence[Channel]) -> list:
    """All conditionings and nulls of channels."""
    return [c for channel in channels for c in (channel.conditioning, channel.null) if c is not None]


def with_force_models(model, channels: Sequence[Channel]):
    """The model itself, or a clone that brings what the channels' forces need into memory with it, and that a gradient passes through
    where one needs that."""
    if any(getattr(c.force, "through_denoiser", False) for c in channels):
        model = gradients.differentiable_patcher(model, "model")
    models = [m for c in channels if c.force is not None for m in getattr(c.force, "models", ())]
    if not models:
        return model
    clone = model.clone()
    clone.set_additional_models(KEY, list(dict.fromkeys([*clone.get_additional_models_with_key(KEY), *models])))
    return clone


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
    """A channel, its number, and the keys of its conditioning and its null among the guider's conditionings; a force has none."""

    channel: Channel
    number: int = 0
    key: str = ""
    null: str = ""


def seats_for(channels: Sequence[Channel], names: Conditionings, base: str | None) -> list[Seat]:
    """Finds or makes a key for every channel's conditioning and null."""
    seats = []
    for number, channel in enumerate(channels):
        if channel.force is not None:
            seats.append(Seat(channel, number))
            continue
        if channel.null is None and base is None:
            raise ValueError(
                f"Channel '{channel.name}' has no null conditioning and the guider has no negative to use "
                "instead. Give the channel a null (an empty prompt), or sample with positive and negative."
            )
        key = names.key_of(channel.conditioning, NEGATIVE if channel.negative else POSITIVE)
        null = base if channel.null is None else names.key_of(channel.null, NEGATIVE)
        seats.append(Seat(channel, number, key, null))
    return seats


def fits(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A mask (B or 1, H, W) at the size of a latent (B, C, [frames,] h, w)."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if x.ndim not in (4, 5):
        raise ValueError(f"A channel's mask needs an image or a video, but the latent has the shape {tuple(x.shape)}; remove the mask.")
    if mask.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"The channel's mask holds {mask.shape[0]} images but {x.shape[0]} are sampled; give one mask, or one each.")
    resized = torch.nn.functional.interpolate(mask.to(x), x.shape[-2:], mode="bilinear")
    return resized.view(-1, 1, *[1] * (x.ndim - 4), *x.shape[-2:])




@dataclass
class Mixture:
    """The channels of one run. `lead` names the guider's own positive, `lead_priority` is its priority.

    `running` holds what adaptive projected guidance remembers from step to step, `record` what a report draws.
    """

    seats: list[Seat]
    rules: Rules
    scale: NoiseScale
    lead: str = "positive"
    lead_priority: int = 0
    running: dict[int, torch.Tensor] = field(default_factory=dict)
    record: Record = field(default_factory=Record)

    @cached_property
    def names(self) -> list[str]:
        """What the guider's own push and the channels' by number are called in the record."""
        return distinct([self.lead, *(seat.channel.name for seat in self.seats)])

    def fresh(self) -> Mixture:
        """The same for a run that begins."""
        return replace(self, running={}, record=type(self.record)())

    def at(self, guider, x: torch.Tensor, timestep: torch.Tensor) -> Moment:
        """The channels that count at this sigma."""
        sigma = float(timestep.max())
        if self.record.entries and sigma > self.record.entries[-1].sigma:
            self.running.clear()
        moment = Moment(self, guider.conds, [], x, sigma)
        for seat in self.seats:
            strength = self.rules.strength(seat.channel, sigma, self.scale)
            if strength != 0.0 and (seated := moment.seated(seat, timestep)):
                moment.active.append((seated, strength))
        return moment


@dataclass
class Moment:
    """One prediction: asks for the channels' denoised images beside the guider's own, then adds their pushes."""

    mixture: Mixture
    conds: dict[str, list[dict]]
    active: list[tuple[Seat, float]]
    x: torch.Tensor
    sigma: float
    denoised: dict[str, torch.Tensor] | None = None
    evaluations: int = 0
    given: int = 0

    def seated(self, seat: Seat, timestep: torch.Tensor) -> Seat | None:
        """The seat with a null that is active at this sigma; None where the host would evaluate nothing for it."""
        if seat.channel.force is not None:
            return seat
        if not is_active(self.conds[seat.key], self.x, timestep):
            return None
        null = seat.null if is_active(self.conds[seat.null], self.x, timestep) else "negative"
        return replace(seat, null=null) if null != seat.key and is_active(self.conds.get(null), self.x, timestep) else None

    def wanted(self) -> list[str]:
        """Keys to evaluate, each once, positives first; none for a force. Rules on the sum need the negative where several push or it is capped."""
        keys = [seat.key for seat, _ in self.active] + [seat.null for seat, _ in self.active]
        rules = self.mixture.rules
        if rules.norm_cap > 0 or (self.active and (rules.conflict != "sum" or rules.rescale > 0)):
            keys.append("negative")
        return [k for k in dict.fromkeys(keys) if k in self.conds]

    def _roles(self, conds: list, added: list[str]) -> list[int]:
        """What other nodes shall see as index of each row's conditioning: 0 for positives, 1 for the rest, as in plain CFG."""
        positive = {seat.key for seat, strength in self.active if strength > 0}
        own = [NEGATIVE if c is not None and c is self.conds.get("negative") else i for i, c in enumerate(conds)]
        return own + [POSITIVE if k in positive else NEGATIVE for k in added]

    def evaluate(self, run, model, conds: list, x, timestep, model_options: dict) -> list[torch.Tensor]:
        """The host's list of predictions for `conds`; the missing ones of the channels come in the same call."""
        keys = [*self.wanted(), *(k for k in ("positive", "negative") if k in self.conds)]
        present = {k: i for k in keys for i, c in enumerate(conds) if c is self.conds[k]}
        missing = [k for k in self.wanted() if k not in present]
        options = _with_roles(model_options, self._roles(conds, missing))
        asked = [*conds, *(self.conds[k] for k in missing)]
        self.denoised = {}  # the host may come back to this in the same call
        out = run(model, asked, x, timestep, options)
        self.evaluations, self.given = (sum(len(c) for c in some if c is not None) for some in (asked, conds))
        self.denoised = {k: out[i] for k, i in present.items()} | dict(zip(missing, out[len(conds) :]))
        return out[: len(conds)]

    def _calc_cond_batch(self, executor, model, conds, x, timestep, model_options):
        if self.denoised is not None:  # a later call in the same step belongs to another node
            return executor(model, conds, x, timestep, model_options)
        return self.evaluate(executor, model, conds, x, timestep, model_options)

    def _calc_whole(self, args: dict) -> list[torch.Tensor]:
        """What the host asks, and the channels with it, above the context windows in which each is then evaluated."""
        given = (args[k] for k in ("model", "conds", "input", "sigma", "model_options"))
        return self.evaluate(comfy.samplers.calc_cond_batch, *given)

    def _post_cfg(self, args: dict) -> torch.Tensor:
        self.evaluate_alone(args["model"], args["input"], args["sigma"], args["model_options"])
        return self.guided(args["denoised"], args["cond_scale"])

    def evaluate_alone(self, model, x, timestep, model_options: dict) -> None:
        """Evaluates what the channels still miss in a call of their own."""
        if self.denoised is None and self.wanted():
            self.evaluate(comfy.samplers.calc_cond_batch, model, [], x, timestep, model_options)

    def _direction(self, number: int, prediction: torch.Tensor, null: torch.Tensor, strength: float) -> torch.Tensor:
        """The shaped difference of two predictions; `number` is the channel's, -1 the guider's own."""
        shaping, running = self.mixture.rules.shaping, self.mixture.running
        direction, kept = shaping.direction(prediction, null, self.x, strength, running.get(number))
        if shaping.momentum and kept is not None:
            running[number] = kept.detach()  # with its graph it would hold that of every step
        return direction

    def _push(self, seat: Seat, strength: float, prediction: torch.Tensor) -> Push:
        channel = seat.channel
        if channel.force is None:
            direction = self._direction(seat.number, self.denoised[seat.key], self.denoised[seat.null], strength)
        else:
            with nullcontext() if self.through_denoiser else gradients.differentiable():
                direction = channel.force(self.x, self.sigma, prediction, self.mixture.scale).to(prediction)
        return push(direction, strength, None if channel.mask is None else fits(channel.mask, prediction), channel.priority)

    @property
    def through_denoiser(self) -> bool:
        """Whether an active force needs the prediction with its graph."""
        return any(s.channel.force is not None and s.channel.force.through_denoiser for s, _ in self.active)

    def _own(self, prediction: torch.Tensor, cfg: float) -> torch.Tensor:
        """The guider's own push: its prediction less the unconditional one, its direction shaped as the channels' are."""
        positive, base = (self.denoised.get(k) for k in ("positive", "negative"))
        own = prediction - base
        if self.mixture.rules.shaping.neutral or positive is None:
            return own
        return own + cfg * (self._direction(-1, positive, base, cfg) - (positive - base))

    def guided(self, prediction: torch.Tensor, cfg: float = 1.0) -> torch.Tensor:
        """The guider's own prediction, made at `cfg`, plus the channels' pushes."""
        rules, seen = self.mixture.rules, self.denoised or {}
        pushes = [self._push(seat, strength, prediction) for seat, strength in self.active]
        self._note(prediction, cfg, pushes)
        if "negative" not in seen or rules.plain:
            return combine(prediction, pushes)
        own = [Push(self._own(prediction, cfg), self.mixture.lead_priority)]
        lead = [seen["positive"]] if "positive" in seen else []
        positives = lead + [seen[s.key] for s, strength in self.active if strength > 0 and s.key not in ("", "positive")]
        return combine(seen["negative"], own + pushes, rules, positives)

    def _note(self, prediction: torch.Tensor, cfg: float, pushes: list[Push]) -> None:
        seen = self.denoised or {}
        lead, *names = self.mixture.names
        lines = [(names[seat.number], strength, p.delta) for (seat, strength), p in zip(self.active, pushes)]
        if "positive" in seen and "negative" in seen:
            lines.insert(0, (lead, cfg, prediction - seen["negative"]))
        self.mixture.record.note(self.sigma, lines, self.evaluations, self.given)

    def hooked(self, model_options: dict) -> dict:
        """A copy of the run's options in which this moment takes part."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        if options.get("context_handler") is None:
            add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self._calc_cond_batch, options, is_model_options=True)
        else:  # it calls the wrappers for each window, with a part of x
            options.setdefault("sampler_calc_cond_batch_function", self._calc_whole)
        options["sampler_post_cfg_function"] = [self._post_cfg, *options.get("sampler_post_cfg_function", [])]
        return options


def _predicted(mixture: Mixture, guider, x: torch.Tensor, timestep: torch.Tensor, predict) -> torch.Tensor:
    """`predict(moment, x, timestep)`, with a graph back to x where a channel needs one."""
    if mixture.scale.percent(float(timestep.max())) < mixture.rules.zero_init:
        return x.clone()
    moment = mixture.at(guider, x, timestep)
    if not moment.through_denoiser:
        return predict(moment, x, timestep)
    gradients.prepare(guider)
    with gradients.differentiable():
        x, timestep = x.clone().detach().requires_grad_(True), gradients.clone_inference_tensors(timestep)
        return predict(mixture.at(guider, x, timestep), x, timestep).detach()


def _shown(indices: list[int], roles: list[int]) -> list[int]:
    return [roles[i] if i < len(roles) else i for i in indices]


@dataclass(frozen=True)
class _FunctionWrapper:
    """Another node's model function wrapper; the roles of every list of conditionings in turn, the outermost first."""

    wrapper: Callable
    roles: tuple[list[int], ...]

    def __call__(self, apply_model, args: dict) -> torch.Tensor:
        return self.wrapper(apply_model, {**args, "cond_or_uncond": reduce(_shown, self.roles, args["cond_or_uncond"])})


def _with_roles(model_options: dict, roles: list[int]) -> dict:
    """Options in which other nodes see `roles` in the place of the indices of a list that is longer than plain CFG's."""
    if roles == list(range(len(roles))):
        return model_options

    def as_roles(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        shown = _shown(transformer_options["cond_or_uncond"], roles)
        return executor(x, t, c_concat, c_crossattn, control, {**transformer_options, "cond_or_uncond": shown}, **kwargs)

    options = comfy.model_patcher.create_model_options_clone(model_options)
    add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, as_roles, options, is_model_options=True)
    if (wrapper := options.get("model_function_wrapper")) is not None:
        known = wrapper if isinstance(wrapper, _FunctionWrapper) else _FunctionWrapper(wrapper, ())
        options["model_function_wrapper"] = replace(known, roles=(*known.roles, roles))
    return options


class MultiCFG(comfy.samplers.CFGGuider):
    """A guider over one unconditional and any number of channels.

    The first positive channel without a mask and with the common null is the guider's positive, its weight the cfg,
    so that with this channel alone the guider is the host's CFG.
    """

    def __init__(self, model, unconditional, channels: Sequence[Channel], rules: Rules = Rules()):
        super().__init__(with_force_models(model, channels))
        check_conditionings(model, {"The unconditional": unconditional})
        check_channels(model, channels)
        plain = (i for i, c in enumerate(channels) if not c.negative and c.mask is None and c.null is None and c.force is None)
        first = next(plain, None)
        self.lead = None if first is None else channels[first]
        positive = unconditional if self.lead is None else self.lead.conditioning
        self.set_conds(positive, unconditional)
        names = Conditionings(self.original_conds)
        seats = seats_for([c for i, c in enumerate(channels) if i != first], names, "negative")
        self.original_conds |= names.added
        if getattr(self.model_patcher, "is_dynamic", bool)() and any(map(comfy.sampler_helpers.cond_has_hooks, _conditionings(channels))):
            self.model_patcher = self.model_patcher.get_non_dynamic_delegate()  # as the host's inner_set_conds does
        self.set_cfg(self.lead.weight if self.lead else 1.0)
        own = dict(lead=self.lead.name, lead_priority=self.lead.priority) if self.lead else dict(lead="unconditional")
        self.mixture = Mixture(seats, rules, noise_scale(model), **own)

    def outer_sample(self, *args, **kwargs):
        self.mixture = self.mixture.fresh()
        try:
            return super().outer_sample(*args, **kwargs)
        finally:
            self.mixture.running.clear()

    def _cfg_at(self, sigma: float) -> float:
        if self.lead is None:
            return 0.0
        return self.mixture.rules.strength(replace(self.lead, weight=self.cfg), sigma, self.mixture.scale)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        def predict(moment, x, timestep):
            positive, negative, cfg = self._pair(x, timestep)
            return comfy.samplers.sampling_function(
                self.inner_model, x, timestep, negative, positive, cfg, moment.hooked(model_options), seed
            )

        return _predicted(self.mixture, self, x, timestep, predict)

    def _pair(self, x, timestep) -> tuple:
        """(positive, negative, cfg) for the host's CFG; what is not active at this sigma is left out."""
        positive, negative = self.conds["positive"], self.conds["negative"]
        cfg = self._cfg_at(float(timestep.max()))
        if not is_active(negative, x, timestep):
            negative, cfg = None, 1.0
        elif cfg == 0.0 or not is_active(positive, x, timestep):
            positive, cfg = negative, 1.0
        if not is_active(positive, x, timestep):
            raise ValueError(
                f"No conditioning is active at sigma {float(timestep.max()):.4g}: every timestep range excludes it. "
                "Widen the range of the unconditional or of a channel's conditioning."
            )
        return positive, negative, cfg


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
        self.channels, self.rules, self.mixture = tuple(channels), rules, None
        self._run_key = f"{KEY}/{id(self)}"

    def install(self, model):
        """A clone of the model with the channels on top of whatever guides it."""
        check_channels(model, self.channels)
        patched = with_force_models(model, self.channels).clone()
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.join)
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.predict)
        return patched

    def join(self, executor, *args, **kwargs):
        """OUTER_SAMPLE: the run's own conditionings plus the channels'."""
        guider = executor.class_obj
        if not self.rules.plain and "negative" not in guider.conds:
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
        scale = run_noise_scale(guider)
        self.mixture = guider.model_options[self._run_key] = Mixture(seats, self.rules, scale)
        try:
            return executor(*args, **kwargs)
        finally:
            self.mixture.running.clear()

    def predict(self, executor, x, timestep, model_options={}, seed=None):
        """PREDICT_NOISE: within the host's CFG where the guider is the host's, on top of the result of any other, not where one is alone."""
        guider = executor.class_obj
        if getattr(guider, "alone", False):
            return executor(x, timestep, model_options, seed)
        inside = isinstance(guider, MultiCFG) or type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise

        def predict(moment, x, timestep):
            if inside:
                return executor(x, timestep, moment.hooked(model_options), seed)
            prediction = executor(x, timestep, model_options, seed)
            moment.evaluate_alone(guider.inner_model, x, timestep, model_options)
            return moment.guided(prediction)

        return _predicted(guider.model_options[self._run_key], guider, x, timestep, predict)


def record_of(source) -> Record:
    """What was recorded in the last run of a MultiCFG guider, of a guider over a patched model, or of that model; all that took part."""
    patcher = getattr(source, "model_patcher", source)
    joins = patcher.wrappers.get(WrappersMP.OUTER_SAMPLE, {}).get(KEY, []) if hasattr(patcher, "wrappers") else []
    mixtures = [getattr(source, "mixture", None), *(join.__self__.mixture for join in reversed(joins))]
    mixtures = [m for m in mixtures if m is not None and m.record.entries]
    if not mixtures:
        raise ValueError(
            f"There is no finished run to report on: {type(source).__name__} did not sample with guidance channels. Connect the guider of "
            "Multi CFG Guider or the model of Multi CFG Patch, and the latent that was sampled with it."
        )
    together = [m for m in mixtures if m.record.sigmas == mixtures[0].record.sigmas]
    return merged([m.record for m in together], [m.lead for m in together])
