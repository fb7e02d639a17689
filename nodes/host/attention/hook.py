"""One hook on attention for the pack's controls, which read or change a model's attention while it samples.

A control is installed on a MODEL and acts on the conditionings that bear its mark, whatever else is in the batch and however ComfyUI
splits its calls. When a sampling run starts, the control makes its state for that run. At every call of the network the attention layers
that a control wants then are replaced, on top of what other nodes have put there. All other layers and calls run ComfyUI's attention
untouched.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from comfy.patcher_extension import WrappersMP

from ....attention.call import QKSharing, run_controls
from ....attention.layers import Block, Place
from ....attention.run_cache import RunCache
from ..conditionings import KEY, features_of, has_mark
from ..evaluation_order import RunState, leave_uncompiled
from ..noise_levels import Level, NoiseScale, run_noise_scale
from ..progress import keep
from ..run_history import RunHistory, run_of
from .block_text import BlockText
from .dit import Dit, Override, dit_of
from .second_text import filled_up, with_more_text, with_second_text, without_more_text
from .unet import OVERRIDE, SLOTS, BaseAttention, UnetCall, is_unet, unet_places, with_attention

NONE = frozenset()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MarkedParts:
    """Which parts of the network's batches bear a control's mark, and how many tokens their text has."""

    marked: dict[tuple[int, uuid.UUID], int] = field(default_factory=dict)
    others: frozenset[uuid.UUID] = frozenset()

    @classmethod
    def find(cls, conds: Sequence[list[dict] | None], run: dict[str, list[dict]], token: str) -> MarkedParts:
        """In the lists that are evaluated, and in what other nodes may add to them from the run's lists."""
        entries = [(i, c, listed) for i, listed in enumerate(conds) if listed is not None for c in listed]
        evaluated = {c["uuid"] for _, c, _ in entries}
        entries += [(-1, c, listed) for listed in run.values() for c in listed if c["uuid"] not in evaluated]
        ours = {(i, c["uuid"]): _text_tokens(c) for i, c, listed in entries if has_mark(c, listed, token)}
        return cls(ours, frozenset(c["uuid"] for i, c, _ in entries if (i, c["uuid"]) not in ours))

    def in_call(self, options: dict) -> list[tuple[int, int]]:
        """(number, text tokens) of the marked parts of one call. Other nodes may show other indices than ComfyUI; the uuid decides."""
        by_uuid = {u: n for (_, u), n in self.marked.items() if u not in self.others}
        parts = enumerate(zip(options["cond_or_uncond"], options["uuids"]))
        found = [(n, self.marked.get(part, by_uuid.get(part[1]))) for n, part in parts]
        return [(n, tokens) for n, tokens in found if tokens is not None]


def _text_tokens(given: dict) -> int:
    features = features_of(given)
    return features.cond.shape[1] if features is not None else 0


@dataclass(frozen=True)
class NetworkCall:
    """One call of the network: the BaseModel, its latents (rows, C, [frames,] H, W), the tokens of its text and of a second one, the first rows and
    the text tokens of the parts that bear the control's mark, and its other inputs."""

    model: torch.nn.Module
    x: torch.Tensor
    text: int
    more: int
    parts: Sequence[tuple[int, int]]
    conditions: Mapping


class ControlRun(RunState):
    """A control during one sampling run. Subclasses change what they need."""

    reached = False  # whether an attention of the DiT came through its hook in this run

    def __init__(self, control: Control, scale: NoiseScale, noise: torch.Tensor):
        self.control, self.scale, self.dit = control, scale, control.dit
        self.all_layers = frozenset(place.key for place in control.places)
        self.batch, self.latent = len(noise), tuple(noise.shape[2:])  # images, and their [frames,] H, W
        self.parts, self.conds, self.started = MarkedParts(), {}, False
        self.level = self.evaluated_level = Level()  # of the prediction that is made, and of what is evaluated for it
        self.evaluated: list[torch.Tensor] = []  # what marked conditionings were evaluated for in this prediction
        self.reads = True  # whether what is evaluated now counts for maps
        self.images = 1  # of the batch that is evaluated: of nodes that predict several copies at once, all of them
        self.cache = RunCache()  # of what its layers and steps have alike

    @property
    def percent(self) -> float:
        """Of the sampling, of what is evaluated; read where something depends on it, as of a `Level`."""
        return self.evaluated_level.percent

    @property
    def conditionings(self) -> dict[str, list]:
        """Converted conditionings that join those of the run, so that ComfyUI prepares them too."""
        return {}

    def prepare(self, conds: dict[str, list[dict]]) -> None:
        """May change the conditionings of a run before ComfyUI prepares them."""

    def sampler(self, sampler, noise: torch.Tensor, sigmas: torch.Tensor, seed: int | None, device: torch.device):
        """The sampler to use instead of the user's."""
        return sampler

    def follow(self, earlier: ControlRun, device: torch.device) -> None:
        """Before a run that goes on where an earlier one of the same control stopped, as parts of one sampling do."""

    @property
    def missing(self) -> str:
        """The error where no conditioning that is sampled bears the mark."""
        return (
            f"The model comes from {self.control.node}, but none of the conditionings that are sampled is the 'positive' of that node. Connect it to "
            "the sampler's positive (through ControlNet and the like if you want), or use the model from before the node."
        )

    def start(self, conds: dict[str, list[dict]], x: torch.Tensor) -> None:
        """Before the first prediction of a run: refuses one in which no conditioning bears the mark."""
        if not any(has_mark(c, listed, self.control.token) for listed in conds.values() for c in listed):
            raise ValueError(self.missing)

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """The latent that the prediction is made for."""
        return x

    def after(self, denoised: torch.Tensor) -> torch.Tensor:
        """The prediction that the sampler gets."""
        return denoised

    def regions_at(self, level: Level) -> Mapping[str, torch.Tensor | None]:
        """Masks (B, 1, [frames,] h, w) by name that channels may act in, in a prediction at a level; None while not known."""
        return {}

    @property
    def warnings(self) -> list[str]:
        """What the user should know after a run."""
        return []

    def around(self, call: NetworkCall) -> AbstractContextManager:
        """Around each call of the network, whatever conditionings are in it."""
        return nullcontext()

    def end(self) -> None:
        """The run is over, if only by an error: lets go of what it held for the network."""
        self.conds, self.parts, self.evaluated = {}, MarkedParts(), []
        self.cache.known.clear()

    def on_evaluate(self, conds: Sequence[list[dict] | None], x: torch.Tensor, level: Level) -> None:
        """Before ComfyUI evaluates these conditionings. What other nodes evaluate besides, such as a perturbed guess, is not read."""
        self.parts, self.evaluated_level = MarkedParts.find(conds, self.conds, self.control.token), level
        self.reads, self.images = not any(x is before for before in self.evaluated), len(x)
        if any(index >= 0 for index, _ in self.parts.marked):
            self.evaluated.append(x)

    @property
    def acts(self) -> bool:
        """Whether it needs the attention of a DiT now."""
        return any(map(self.wanted, ("self", "cross", "joint")))

    def wanted(self, kind: str) -> frozenset:
        """The keys of the layers that it needs now."""
        return NONE

    @property
    def more_text(self) -> torch.Tensor | None:
        """(rows or 1, tokens, width) of a second text that goes through the network behind the first; None for none now.

        Attention keeps the two apart: what it gives for the first is as without the second. One control at a time may have one.
        """
        return None

    def attention_bias(self, tokens: int, place: Block | None) -> torch.Tensor | None:
        """For a DiT: (rows of a part, text tokens) to add to the logits of its text, -inf to hide it; None for nothing.

        Without a `place` it is an attention that is left to ComfyUI otherwise, in which the text attends to itself. The same one, kept in `cache`,
        as long as nothing changes.
        """
        return None

    def share_qk(self, call: QKSharing, first: int, tokens: int) -> None:
        """May let rows use queries and keys of others, in the part of the batch that begins with row `first` and has so many text tokens."""

    def edit(self, call: QKSharing, first: int, tokens: int) -> None:
        """May change what attention gives for rows of that part."""

    def guide(self, call: QKSharing, first: int, tokens: int) -> None:
        """May change what attention gives for rows of that part after all edits."""

    def on_attention(self, call: QKSharing, first: int, tokens: int) -> None:
        """May read the final attention of that part."""


def _begin(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None, **kwargs):
    """OUTER_SAMPLE: the controls of the model begin their runs, and keep them for the latent that comes out."""
    guider, sample = executor.class_obj, executor
    options, device = guider.model_options["transformer_options"], guider.model_patcher.load_device
    scale, controls = run_noise_scale(guider), options[KEY]
    leave_uncompiled(options["wrappers"], controls[0].node)
    runs = options[KEY] = tuple(control.run(control, scale, noise) for control in controls)
    guider.conds |= {name: listed for run in runs for name, listed in run.conditionings.items()}
    for control, run in zip(controls, runs):
        run.prepare(guider.conds)
        for earlier in control.history.before(noise, latent_image, sigmas)[-1:]:
            run.follow(earlier, device)
        sample = partial(control.history.sample, run, guider.model_patcher, sample)
    try:
        for run in runs:
            sampler = run.sampler(sampler, noise, sigmas, seed, device)
        return sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs)
    finally:
        for run in runs:
            run.end()
        _warn([f"{run.control.node}: {warning}" for run in runs for warning in run.warnings])


def _warn(warnings: list[str]) -> None:
    """In the log, and on the node that samples."""
    for warning in warnings:
        _log.warning(warning)
    keep(*warnings)


def _predict(executor, x, timestep, model_options={}, seed=None):
    """PREDICT_NOISE: what goes into a guided prediction, and what comes out."""
    runs = model_options["transformer_options"][KEY]
    level = Level(timestep, runs[0].scale)
    for run in runs:
        run.conds, run.evaluated, run.level = executor.class_obj.conds, [], level
        if not run.started:
            run.start(run.conds, x)
            run.started = True
        x = run.before(x)
    denoised = executor(x, timestep, model_options, seed)
    for run in runs:
        denoised = run.after(denoised)
    return denoised


def _evaluate(executor, model, conds, x_in, timestep, model_options):
    """CALC_COND_BATCH: the conditionings that are about to be evaluated."""
    for run in model_options["transformer_options"][KEY]:
        run.on_evaluate(conds, x_in, run.level.at(timestep))
    return executor(model, conds, x_in, timestep, model_options)


def _network(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
    """APPLY_MODEL: one call of the network, with replacements on the layers that are wanted now."""
    size, tokens = len(x) // len(transformer_options["uuids"]), 0 if c_crossattn is None else c_crossattn.shape[1]
    runs = [(run, [(n * size, text) for n, text in run.parts.in_call(transformer_options)]) for run in transformer_options[KEY]]
    active = [(run, first, text) for run, parts in runs for first, text in parts]
    more = next((text for run, _, _ in active if (text := run.more_text) is not None), None)
    with ExitStack() as stack:
        for run, parts in runs:
            stack.enter_context(run.around(NetworkCall(executor.class_obj, x, tokens, 0 if more is None else more.shape[1], parts, kwargs)))
        if any(run.dit for run, _, _ in active):
            return _dit(executor, (x, t, c_concat, c_crossattn, control), transformer_options, active, kwargs, more)
        c_crossattn, count = (c_crossattn, 0) if more is None else (with_more_text(c_crossattn, more), more.shape[1])
        options = _unet_options(transformer_options, active, len(x), tokens, count)
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def _unet_options(options: dict, active: list, batch: int, text: int, more: int) -> dict:
    """The options with replacements of the attentions of a UNet that are wanted now."""
    for kind in SLOTS:
        wanted: dict[Place, list] = {}
        for run, first, tokens in active:
            keys = run.wanted(kind)
            for place in (place for place in run.control.places if place.key in keys):
                wanted.setdefault(place, []).append((run, first, tokens))
        options = with_attention(options, {p.key: partial(_attend, kind, p, acting, batch, text, more) for p, acting in wanted.items()}, kind)
    return options


def _attend(kind: str, place: Place, active: list, batch: int, text: int, more: int, base: BaseAttention, q, k, v, options: dict) -> torch.Tensor:
    k, v, second = without_more_text(k, v, text, more) if more and kind == "cross" else (k, v, ())
    call = UnetCall(kind, place, (q, k, v), options, base, batch, text)
    call.more = second
    return run_controls(call, active)


def _dit(executor, inputs: tuple, options: dict, active: list, kwargs: dict, more: torch.Tensor | None) -> torch.Tensor:
    """One call of a DiT, with ComfyUI's override of its attentions where a control acts."""
    x, t, c_concat, text, control = inputs
    acting = [a for a in active if a[0].acts or not a[0].reached]  # so that an unreachable network shows at once
    if not acting:
        return executor(*inputs, options, **kwargs)
    dit = acting[0][0].dit
    override = Override(dit, acting, len(x), x.shape, text.shape[1], options.get(OVERRIDE), 0 if more is None else more.shape[1])
    dit.check(kwargs, math.prod(override.size), text.shape[1], override.more)
    if more is not None and dit.in_blocks:
        override.block_text = BlockText(dit.module, more, len(dit.places))
        options = override.block_text.options(options)
    elif more is not None:
        text, options, kwargs = with_second_text(text, filled_up(more, override.more), options, kwargs)
    out = executor(x, t, c_concat, text, control, {**options, OVERRIDE: override}, **kwargs)
    override.check()
    for run, *_ in acting:
        run.reached = True
    return out


_WRAPPERS = {
    WrappersMP.OUTER_SAMPLE: _begin,
    WrappersMP.PREDICT_NOISE: _predict,
    WrappersMP.CALC_COND_BATCH: _evaluate,
    WrappersMP.APPLY_MODEL: _network,
}


def controls_of(source, kind: type) -> list:
    """The controls of a kind on a MODEL, or on a guider over it; the last installed first."""
    patcher = getattr(source, "model_patcher", source)
    controls = getattr(patcher, "model_options", {}).get("transformer_options", {}).get(KEY, ())
    return [control for control in reversed(controls) if isinstance(control, kind)]


def installed(source, kind: type[Control]) -> list:
    """The same. Raises ValueError where there is none."""
    controls = controls_of(source, kind)
    if not controls:
        raise ValueError(f"{type(source).__name__} does not come from {kind.node}. Connect the model of that node, or a guider over it.")
    return controls


def runs_of(source, kind: type[Control], latent: dict) -> tuple:
    """The runs of such controls that made a LATENT. Raises ValueError where none is known."""
    next_step = f"Connect the latent that was sampled with {kind.node}, and the model or guider that sampled it."
    return run_of([control.history for control in installed(source, kind)], latent, next_step)


@dataclass(frozen=True)
class Control:
    """What is installed on a model, and during each sampling its `run`. `token` marks conditionings, `history` keeps the runs by what they sampled.

    `node` is the display name of the node that does it; `places` are the model's attentions, `dit` is what is known of a DiT.
    """

    node: ClassVar = ""
    run: ClassVar[type[ControlRun]] = ControlRun
    places: tuple[Place, ...] | tuple[Block, ...] = field(default=(), kw_only=True)
    dit: Dit | None = field(default=None, kw_only=True)
    token: str = field(default_factory=lambda: uuid.uuid4().hex, kw_only=True)
    history: RunHistory = field(default_factory=RunHistory, kw_only=True, compare=False)


def network_of(model) -> dict:
    """The fields `places` and `dit` of a control for a MODEL. Raises ValueError that names a network whose attention cannot be reached."""
    dit = None if is_unet(model) else dit_of(model)
    return dict(places=unet_places(model) if dit is None else dit.places, dit=dit)


def install(model, control: Control):
    """A clone of the model with a control."""
    patched = model.clone()
    options = patched.model_options["transformer_options"]
    options[KEY] = (*options.get(KEY, ()), control)
    for kind, wrapper in _WRAPPERS.items():
        if not patched.get_wrappers(kind, KEY):
            patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched
