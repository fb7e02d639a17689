"""Channels during one sampling of ComfyUI: their conditionings join its own evaluation, their terms its own prediction.

ComfyUI's CFG stays what it is. One function takes the place of its evaluation and asks for the channels' conditionings in the
same `calc_cond_batch` call; a post-CFG function, first of its list, adds their terms. So every hook of other nodes still runs,
and with no channel active ComfyUI's result is untouched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ....guidance.errors import listed, quoted
from ....guidance.multi_cfg import Channel, GuidanceTerm, Rules, combine, term
from ....guidance.record import Record, distinct
from ....guidance.schedules import NoiseScale
from .. import gradients
from ..conditionings import KEY as CONTROLS
from ..conditionings import is_active, same_conditioning
from ..evaluation_order import RunState, in_any_order
from ..noise_levels import Level, run_noise_scale

KEY = "controlled_diffusion.multi_cfg"
EVALUATION, POST_CFG = "sampler_calc_cond_batch_function", "sampler_post_cfg_function"
POSITIVE, NEGATIVE = 0, 1


@dataclass(frozen=True)
class ChannelKeys:
    """A channel with its name in the report, and the keys of its conditioning and null among the guider's; a gradient has none."""

    channel: Channel
    name: str
    key: str = ""
    null: str = ""


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

    def keys(self, channels: Sequence[Channel], base: str | None, taken: Sequence[str]) -> list[ChannelKeys]:
        """The channels with keys, found or made, and with names other than those `taken`; `base` is the key of the common null."""
        names = distinct([*taken, *(c.name for c in channels)])[len(taken) :]
        return [self._keys(channel, name, base) for channel, name in zip(channels, names)]

    def _keys(self, channel: Channel, name: str, base: str | None) -> ChannelKeys:
        if channel.gradient is not None:
            return ChannelKeys(channel, name)
        if channel.null is None and base is None:
            raise ValueError(
                f"Channel {quoted(channel.name)} has no null conditioning and the guider has no negative to use "
                "instead. Give the channel a null (an empty prompt), or sample with positive and negative."
            )
        key = self.key_of(channel.conditioning, NEGATIVE if channel.negative else POSITIVE)
        return ChannelKeys(channel, name, key, base if channel.null is None else self.key_of(channel.null, NEGATIVE))


def resize_mask(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A mask (B or 1, H, W) at the size of a latent (B, C, [frames,] h, w)."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    if x.ndim not in (4, 5):
        raise ValueError(f"A channel's mask needs an image or a video, but the latent has the shape {tuple(x.shape)}; remove the mask.")
    if x.shape[0] % mask.shape[0]:  # nodes may predict several copies of a batch at once
        raise ValueError(f"The channel's mask holds {mask.shape[0]} images but {x.shape[0]} are sampled; give one mask, or one each.")
    resized = torch.nn.functional.interpolate(mask.to(x), x.shape[-2:], mode="bilinear")
    return comfy.utils.repeat_to_batch_size(resized, x.shape[0]).view(-1, 1, *[1] * (x.ndim - 4), *x.shape[-2:])


@dataclass
class ChannelGroup:
    """The channels of one node under its rules. `priority` is that of the prediction to which they are added.

    `rests(x, timestep)` tells when the channels are not needed; `running` holds by name what momentum remembers from step to step.
    """

    channels: list[ChannelKeys] = field(default_factory=list)
    rules: Rules = field(default_factory=Rules)
    priority: int = 0
    rests: Callable[[torch.Tensor, torch.Tensor], bool] = lambda x, timestep: False
    running: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class GuidanceRun(RunState):
    """The guidance of one sampling, kept in the options of the run: the guider's `own` channels, then those of each patch.

    `primary` names the guider's positive. A guider that runs ComfyUI's CFG with channels of its own has `begin_guidance`.
    """

    scale: NoiseScale
    own: ChannelGroup = field(default_factory=ChannelGroup)
    primary: str = "positive"
    patches: list[ChannelGroup] = field(default_factory=list)  # the first is the outermost
    record: Record = field(default_factory=Record)
    level: Level = field(default_factory=Level)  # of the prediction that is made
    masks: dict[tuple, torch.Tensor] = field(default_factory=dict)  # of channels, at the size of what they act on
    regions: dict[str, torch.Tensor | None] = field(default_factory=dict)  # what other nodes have found so far, by name; None while not known

    @classmethod
    def of(cls, guider) -> GuidanceRun:
        """That of a running guider, begun where it is not there yet."""
        options = guider.model_options
        if KEY not in options:
            run = options[KEY] = getattr(guider, "begin_guidance", cls)(run_noise_scale(guider))
            add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, run.predict, options, is_model_options=True)
        return options[KEY]

    def begin_anew(self) -> None:
        self.record.entries.clear()

    @property
    def groups(self) -> list[ChannelGroup]:
        """All groups in the order in which they are added to the prediction."""
        return [self.own, *reversed(self.patches)]

    @property
    def names(self) -> list[str]:
        """The names in the report so far."""
        return [self.primary, *(c.name for group in (self.own, *self.patches) for c in group.channels)]

    def strength(self, rules: Rules, channel: Channel, level: Level, weight: float | None = None) -> float:
        """The signed weight of a channel under rules; `weight` replaces the channel's own."""
        return rules.strength(channel, level.sigma if rules.vary(channel) else math.nan, self.scale, weight)

    def mask(self, keys: ChannelKeys, like: torch.Tensor) -> torch.Tensor | None:
        """The mask of a channel as `like` needs it, and its region; None where it acts everywhere."""
        region = self._region_over(keys.channel, like)
        own = None if keys.channel.mask is None else self._own_mask(keys, like)
        return own if region is None else region if own is None else own * region

    def _region_over(self, channel: Channel, like: torch.Tensor) -> torch.Tensor | None:
        """Its region, for each of the copies of a batch that nodes may predict at once."""
        region = self.region(channel)
        return None if region is None else comfy.utils.repeat_to_batch_size(region.to(like), len(like))

    def _own_mask(self, keys: ChannelKeys, like: torch.Tensor) -> torch.Tensor:
        """Made once."""
        key = keys.name, like.shape, like.dtype, like.device
        if key not in self.masks:
            self.masks[key] = resize_mask(keys.channel.mask, like)
        return self.masks[key]

    def region(self, channel: Channel) -> torch.Tensor | None:
        """(B, 1, [frames,] h, w); None where it has none, or where it is not known yet. Raises ValueError for a name that nobody finds."""
        if channel.region and channel.region not in self.regions:
            known = f"there are: {listed(self.regions)}" if self.regions else "the model does not come from Word Regions"
            raise ValueError(
                f"Channel {quoted(channel.name)} acts in the region {quoted(channel.region)}, but {known}. Write one of the phrases of Word Regions, and "
                "connect its model."
            )
        return self.regions[channel.region] if channel.region else None

    def predict(self, executor, x, timestep, model_options={}, seed=None):
        """PREDICT_NOISE: with the channels, unless the guider is `alone`; with a graph back to x where a gradient needs one."""
        guider, before, self.level = executor.class_obj, self.level, Level(timestep, self.scale)
        runs = guider.model_options.get("transformer_options", {}).get(CONTROLS, ())
        self.regions = {name: mask for run in runs for name, mask in run.regions_at(self.level).items()}
        if getattr(guider, "alone", False):
            return executor(x, timestep, model_options, seed)
        if self._starts_late():
            return x.clone()
        self._forget(before, in_any_order(guider.model_options))
        step = GuidanceStep(self, guider.conds, x, timestep)
        if not step.through_denoiser:
            return step.predict(executor, model_options, seed)
        gradients.prepare(guider)
        with gradients.differentiable():
            x, timestep = x.clone().detach().requires_grad_(True), gradients.clone_inference_tensors(timestep)
            return GuidanceStep(self, guider.conds, x, timestep).predict(executor, model_options, seed).detach()

    def _starts_late(self) -> bool:
        """Whether nothing is evaluated yet."""
        start = max(group.rules.zero_init_percent for group in self.groups)
        return start > 0.0 and self.level.percent < start

    def _forget(self, before: Level, any_order: bool) -> None:
        """Clears what momentum remembers where this prediction does not follow the one `before`."""
        remembering = [group for group in self.groups if group.rules.shaping.apg_momentum]
        if remembering and (any_order or (before.timestep is not None and self.level.sigma > before.sigma)):
            for group in remembering:
                group.running.clear()


class GuidanceStep:
    """One prediction: asks for the channels' denoised images beside the guider's own, then adds the channels' terms.

    `active` are the channels of each group that count at this sigma, with their signed weights.
    """

    def __init__(self, run: GuidanceRun, conds: dict[str, list[dict]], x: torch.Tensor, timestep: torch.Tensor):
        self.run, self.conds, self.x, self.timestep = run, conds, x, timestep
        self.active = [(group, self._active(group)) for group in run.groups]
        self.denoised: dict[str, torch.Tensor] | None = None
        self.evaluations = 0

    def _active(self, group: ChannelGroup) -> list[tuple[ChannelKeys, float]]:
        if group.rests(self.x, self.timestep):
            return []
        known = [c for c in group.channels if not c.channel.region or self.run.region(c.channel) is not None]
        weighted = [(c, self.run.strength(group.rules, c.channel, self.run.level)) for c in known]
        found = [(self._with_active_null(c), weight) for c, weight in weighted if weight != 0.0]
        return [(c, weight) for c, weight in found if c is not None]

    def _is_active(self, key: str) -> bool:
        return is_active(self.conds.get(key), self.x, self.timestep)

    def _with_active_null(self, keys: ChannelKeys) -> ChannelKeys | None:
        """The keys with a null that is active at this sigma; None where ComfyUI would evaluate nothing for them."""
        if keys.channel.gradient is not None:
            return keys
        if not self._is_active(keys.key):
            return None
        null = keys.null if self._is_active(keys.null) else "negative"
        return replace(keys, null=null) if null != keys.key and self._is_active(null) else None

    @property
    def through_denoiser(self) -> bool:
        """Whether an active gradient needs the prediction with its graph."""
        return any(c.channel.gradient is not None and c.channel.gradient.through_denoiser for _, active in self.active for c, _ in active)

    def predict(self, executor, model_options: dict, seed) -> torch.Tensor:
        """Within ComfyUI's CFG where the guider runs it, else on top of what the guider predicts."""
        guider = executor.class_obj
        if hasattr(guider, "begin_guidance") or type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise:
            return executor(self.x, self.timestep, self._hooked(model_options), seed)
        found = dict(denoised=executor(self.x, self.timestep, model_options, seed), cond_scale=1.0)
        return self.add_terms(dict(model=guider.inner_model, input=self.x, sigma=self.timestep, model_options=model_options, **found))

    def _hooked(self, model_options: dict) -> dict:
        """A copy of the run's options in which this step takes part. Where another node evaluates, the channels have a call of their own."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        options.setdefault(EVALUATION, self.evaluate)
        options[POST_CFG] = [self.add_terms, *options.get(POST_CFG, [])]
        return options

    def wanted(self) -> list[str]:
        """Keys to evaluate, each once. Rules on the sum need the negative where several terms are added or the sum is capped."""
        keys: list[str] = []
        for group, active in reversed(self.active):
            keys += [c.key for c, _ in active] + [c.null for c, _ in active]
            if group.rules.norm_cap > 0 or (active and (group.rules.conflict != "sum" or group.rules.rescale > 0)):
                keys.append("negative")
        return [k for k in dict.fromkeys(keys) if k in self.conds]

    def evaluate(self, args: dict) -> list[torch.Tensor]:
        """The predictions for `args["conds"]`, as ComfyUI evaluates them; what the channels miss comes in the same call."""
        conds, wanted = args["conds"], self.wanted()
        own = [k for k in ("positive", "negative") if k in self.conds]
        present = {k: i for k in (*wanted, *own) for i, c in enumerate(conds) if c is self.conds[k]}
        missing = [k for k in wanted if k not in present]
        asked = [*conds, *(self.conds[k] for k in missing)]
        options = _with_row_kinds(args["model_options"], self._row_kinds(conds, missing))
        out = comfy.samplers.calc_cond_batch(args["model"], asked, args["input"], args["sigma"], options) if asked else []
        self.evaluations = sum(len(c) for c in asked if c is not None)
        self.denoised = {k: out[i] for k, i in present.items()} | dict(zip(missing, out[len(conds) :]))
        return out[: len(conds)]

    def _row_kinds(self, conds: list, missing: list[str]) -> list[int]:
        """What other nodes see as index of each row's conditioning: 0 for positives, 1 for the rest, as in plain CFG."""
        positive = {c.key for _, active in self.active for c, weight in active if weight > 0}
        own = [NEGATIVE if c is not None and c is self.conds.get("negative") else i for i, c in enumerate(conds)]
        return own + [POSITIVE if k in positive else NEGATIVE for k in missing]

    def add_terms(self, args: dict) -> torch.Tensor:
        """Post-CFG function: the guider's own prediction `args["denoised"]`, made at `cond_scale`, plus all terms."""
        if self.denoised is None:
            self.evaluate({**args, "conds": []})
        prediction, cfg, noted = args["denoised"], args["cond_scale"], []
        if "positive" in self.denoised and "negative" in self.denoised:
            noted.append(GuidanceTerm(prediction - self.denoised["negative"], name=self.run.primary, weight=cfg))
        for group, active in self.active:
            terms = [self._term(group, c, weight, prediction) for c, weight in active]
            prediction = self._combined(group, active, terms, prediction, cfg)
            noted += terms
        self.run.record.note(noted, self.evaluations)
        return prediction

    def _term(self, group: ChannelGroup, keys: ChannelKeys, weight: float, prediction: torch.Tensor) -> GuidanceTerm:
        channel = keys.channel
        if channel.gradient is None:
            direction = self._direction(group, keys.name, self.denoised[keys.key], self.denoised[keys.null], weight)
        else:
            with nullcontext() if self.through_denoiser else gradients.differentiable():
                direction = channel.gradient(self.x, self.run.level.sigma, prediction, self.run.scale).to(prediction)
        return term(direction, weight, self.run.mask(keys, prediction), channel.priority, keys.name)

    def _direction(self, group: ChannelGroup, name: str, prediction: torch.Tensor, null: torch.Tensor, weight: float) -> torch.Tensor:
        """The shaped difference of two predictions."""
        direction, kept = group.rules.shaping.direction(prediction, null, self.x, weight, group.running.get(name))
        if group.rules.shaping.apg_momentum and kept is not None:
            group.running[name] = kept.detach()  # with its graph it would hold that of every step
        return direction

    def _combined(self, group: ChannelGroup, active: list, terms: list[GuidanceTerm], prediction: torch.Tensor, cfg: float) -> torch.Tensor:
        rules, seen = group.rules, self.denoised
        if "negative" not in seen or rules.plain:
            return combine(prediction, terms)
        own = GuidanceTerm(self._own_direction(group, prediction, cfg), group.priority)
        keys = [c.key for c, weight in active if weight > 0 and c.key not in ("", "positive")]
        positives = [seen[k] for k in (("positive", *keys) if "positive" in seen else keys)]
        return combine(seen["negative"], [own, *terms], rules, positives)

    def _own_direction(self, group: ChannelGroup, prediction: torch.Tensor, cfg: float) -> torch.Tensor:
        """The prediction less the unconditional one, the positive's direction shaped as those of channels are."""
        positive, base = self.denoised.get("positive"), self.denoised["negative"]
        if group.rules.shaping.neutral or positive is None:
            return prediction - base
        shaped = self._direction(group, self.run.primary, positive, base, cfg)
        return prediction - base + cfg * (shaped - (positive - base))


def _with_row_kinds(model_options: dict, kinds: list[int]) -> dict:
    """Options in which other nodes see `kinds` instead of the indices of a list that is longer than plain CFG's."""
    if kinds == list(range(len(kinds))):
        return model_options

    def apply(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        shown = [kinds[i] for i in transformer_options["cond_or_uncond"]]
        return executor(x, t, c_concat, c_crossattn, control, {**transformer_options, "cond_or_uncond": shown}, **kwargs)

    options = comfy.model_patcher.create_model_options_clone(model_options)
    add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply, options, is_model_options=True)
    if (wrapper := options.get("model_function_wrapper")) is not None:
        options["model_function_wrapper"] = lambda apply_model, args: wrapper(
            apply_model, {**args, "cond_or_uncond": [kinds[i] for i in args["cond_or_uncond"]]}
        )
    return options
