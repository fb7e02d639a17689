"""Multi-condition guidance as a guider of its own, and as a patch for any guider of a model."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ....guidance.errors import quoted
from ....guidance.multi_cfg import Channel, Rules
from ....guidance.record import Record
from ....guidance.schedules import NoiseScale
from .. import gradients
from ..conditionings import check_conditionings, is_active
from ..latents import latent_space
from ..run_history import RunHistory, run_of
from .guidance_run import KEY, ChannelGroup, Conditionings, GuidanceRun


def check_guidance_channels(model, channels: Sequence[Channel]) -> None:
    """Refuses channels that were made for another model."""
    nulls = {f"The null of channel {quoted(c.name)}": c.null for c in channels if c.null is not None}
    check_conditionings(model, {f"Channel {quoted(c.name)}": c.conditioning for c in channels if c.gradient is None} | nulls)
    own = latent_space(model)
    for channel in channels:
        wanted = channel.gradient.latent_format if channel.gradient else None
        if wanted is not None and not wanted.same(own):
            name = own.name if own.name != wanted.name else f"{own.name} of another VAE"
            raise ValueError(
                f"Channel {quoted(channel.name)} was made for latents of the format {wanted.name}, but {type(model.model).__name__} has {name}. "
                "Use one that was trained on this model's latents."
            )


def _with_gradient_models(model, channels: Sequence[Channel]):
    """The model itself, or a clone that brings what the channels' gradients need into memory with it, and that a gradient passes through
    where one needs that."""
    found = [c.gradient for c in channels if c.gradient is not None]
    if any(gradient.through_denoiser for gradient in found):
        model = gradients.differentiable_patcher(model, "model")
    models = [m for gradient in found for m in getattr(gradient, "models", ())]
    if not models:
        return model
    clone = model.clone()
    clone.set_additional_models(KEY, list(dict.fromkeys([*clone.get_additional_models_with_key(KEY), *models])))
    return clone


class MultiCFG(comfy.samplers.CFGGuider):
    """A guider over one unconditional and any number of channels.

    The `primary` channel, the first positive one without a mask and with the common null, is the guider's positive, its weight the cfg,
    so that with this channel alone the guider is ComfyUI's CFG.
    """

    def __init__(self, model, unconditional, channels: Sequence[Channel], rules: Rules = Rules()):
        super().__init__(_with_gradient_models(model, channels))
        check_conditionings(model, {"The unconditional": unconditional})
        check_guidance_channels(model, channels)
        plain = (i for i, c in enumerate(channels) if not c.negative and c.null is None and c.gradient is None and c.everywhere)
        first = next(plain, None)
        self.primary = None if first is None else channels[first]
        self.set_conds(self.primary.conditioning if self.primary else unconditional, unconditional)
        self.set_cfg(self.primary.weight if self.primary else 1.0)
        self.primary_name = self.primary.name if self.primary else "unconditional"
        names = Conditionings(self.original_conds)
        self.channels = names.keys([c for i, c in enumerate(channels) if i != first], "negative", [self.primary_name])
        self.original_conds |= names.added
        added = [c for channel in channels for c in (channel.conditioning, channel.null) if c is not None]
        if getattr(self.model_patcher, "is_dynamic", bool)() and any(map(comfy.sampler_helpers.cond_has_hooks, added)):
            self.model_patcher = self.model_patcher.get_non_dynamic_delegate()  # as ComfyUI's inner_set_conds does
        self.rules, self.history = rules, RunHistory()

    def begin_guidance(self, scale: NoiseScale) -> GuidanceRun:
        """The guidance of a run that begins."""
        priority = self.primary.priority if self.primary else 0
        return GuidanceRun(scale, ChannelGroup(self.channels, self.rules, priority), self.primary_name)

    def outer_sample(self, *args, **kwargs):
        return self.history.sample(GuidanceRun.of(self).record, self.model_patcher, super().outer_sample, *args, **kwargs)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        positive, negative, cfg = self.pair(x, timestep)
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, negative, positive, cfg, model_options, seed)

    def cfg_at(self, timestep: torch.Tensor) -> float:
        """The primary channel's weight at a timestep; `cfg` is its constant part."""
        run = GuidanceRun.of(self)
        return run.strength(self.rules, self.primary, run.level.at(timestep), self.cfg) if self.primary else 0.0

    def pair(self, x, timestep) -> tuple:
        """(positive, negative, cfg) for ComfyUI's CFG; what is not active at this sigma is left out."""
        positive, negative = self.conds["positive"], self.conds["negative"]
        cfg = self.cfg_at(timestep)
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
    """Registers the hooks of all conditionings again, now with the channels' among them, as ComfyUI does at a run's start."""
    if getattr(guider.model_patcher, "is_dynamic", bool)():
        raise ValueError(
            "A channel's conditioning carries hooks (a LoRA of its own), which the patch cannot register while the model is loaded "
            "dynamically. Use the Multi CFG Guider, or start ComfyUI with --disable-dynamic-vram."
        )
    options = {"transformer_options": {}}  # not the run's: wrappers that it already holds would be added twice
    comfy.sampler_helpers.prepare_model_patcher(guider.model_patcher, guider.conds, options)
    guider.model_options["registered_hooks"] = options["registered_hooks"]


class MultiCFGWrapper:
    """Adds channels to whatever guides a model: their conditionings join those of a run when it starts."""

    def __init__(self, channels: Sequence[Channel], rules: Rules = Rules()):
        self.channels, self.rules, self.history = tuple(channels), rules, RunHistory()

    def install(self, model):
        """A clone of the model with the channels on top of whatever guides it."""
        check_guidance_channels(model, self.channels)
        patched = _with_gradient_models(model, self.channels).clone()
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.join)
        return patched

    def join(self, executor, *args, **kwargs):
        """OUTER_SAMPLE: the run's own conditionings plus the channels'."""
        guider = executor.class_obj
        if not self.rules.plain and "negative" not in guider.conds:
            raise ValueError(
                f"Conflict {quoted(self.rules.conflict)}, norm_cap {self.rules.norm_cap} and rescale {self.rules.rescale} measure against the "
                "negative, which this guider does not have. Use conflict 'sum' with both at 0, or sample with positive and negative."
            )
        run, names = GuidanceRun.of(guider), Conditionings(guider.conds)
        channels = names.keys(self.channels, "negative" if "negative" in guider.conds else None, run.names)
        comfy.samplers.preprocess_conds_hooks(names.added)
        guider.conds |= names.added
        if any("hooks" in c for conditioning in names.added.values() for c in conditioning):
            _register_hooks(guider)
        run.patches.append(ChannelGroup(channels, self.rules))
        return self.history.sample(run.record, guider.model_patcher, executor, *args, **kwargs)


def record_of(source, latent: dict) -> Record:
    """What guidance did in the sampling that made a LATENT; `source` is the guider or the MODEL that sampled it."""
    patcher = getattr(source, "model_patcher", source)
    joins = patcher.wrappers.get(WrappersMP.OUTER_SAMPLE, {}).get(KEY, [])
    own = [source.history] if isinstance(source, MultiCFG) else []
    instead = (
        "Connect the guider of Multi CFG Guider or the model of Multi CFG Patch, and the latent that was sampled with it, before any other "
        "node changes it."
    )
    parts = run_of([*own, *(join.__self__.history for join in joins)], latent, instead)
    return Record([entry for record in parts for entry in record.entries])
