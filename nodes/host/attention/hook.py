"""One hook on attention for the pack's controls, which read or change what a model looks at while it samples.

A control is installed on a MODEL and acts on the conditionings that bear its mark, whatever else is in the batch and however the host
splits its calls. When a sampling run starts, the control makes its state for that run. At every call of the network replacements are
put on the attention layers that a control wants at that moment, on top of those that other nodes have put there, which are called as
the base. All other layers and moments run the host's attention untouched.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from comfy.patcher_extension import WrappersMP

from ....attention.layers import Block, Place
from ....guidance.schedules import NoiseScale
from ..conditionings import KEY, features_of, origin
from ..noise_levels import run_noise_scale
from .dit import Dit, Override, TokenCall
from .unet import Call, attend

OVERRIDE = "optimized_attention_override"
SLOTS = {"self": "attn1", "cross": "attn2"}




















def _bears(given: dict, listed: list[dict], token: str) -> bool:
    """Whether a conditioning of a run has the mark by itself."""
    return token in origin(given, listed).get(KEY, ())


@dataclass(frozen=True)
class Parts:
    """Which parts of the network's batches bear a control's mark, and how many tokens their text has."""

    marked: dict[tuple[int, uuid.UUID], int] = field(default_factory=dict)
    others: frozenset[uuid.UUID] = frozenset()

    @classmethod
    def of(cls, conds: Sequence[list[dict] | None], run: dict[str, list[dict]], token: str) -> Parts:
        """Of the lists that are evaluated, and of what other nodes may add to them from the run's lists."""
        entries = [(i, c, listed) for i, listed in enumerate(conds) if listed is not None for c in listed]
        there = {c["uuid"] for _, c, _ in entries}
        entries += [(-1, c, listed) for listed in run.values() for c in listed if c["uuid"] not in there]
        ours = {(i, c["uuid"]): _length(c) for i, c, listed in entries if _bears(c, listed, token)}
        return cls(ours, frozenset(c["uuid"] for i, c, _ in entries if (i, c["uuid"]) not in ours))

    def within(self, options: dict) -> list[tuple[int, int]]:
        """(number, text tokens) of the marked parts of one call. Other nodes may show other indices than the host; the uuid decides."""
        by_uuid = {u: n for (_, u), n in self.marked.items() if u not in self.others}
        parts = enumerate(zip(options["cond_or_uncond"], options["uuids"]))
        found = [(n, self.marked.get(part, by_uuid.get(part[1]))) for n, part in parts]
        return [(n, tokens) for n, tokens in found if tokens is not None]


def _length(given: dict) -> int:
    features = features_of(given)
    return features.cond.shape[1] if features is not None else 0


class Run:
    """A control during one sampling run. Subclasses change what they need."""

    places: tuple[Place, ...] = ()
    dit: Dit | None = None  # in the place of a UNet's places
    reached = False  # whether an attention of the DiT came through its hook in this run

    def __init__(self, token: str, scale: NoiseScale, missing: str):
        self.token, self.scale, self.missing = token, scale, missing
        self.parts, self.percent, self.conds, self.started = Parts(), 0.0, {}, False
        self.evaluated: list[torch.Tensor] = []  # what marked conditionings were evaluated for in this prediction
        self.reads = True  # whether what is evaluated now counts for maps

    def sampler(self, sampler, noise: torch.Tensor, sigmas: torch.Tensor, seed: int | None, device: torch.device):
        """The sampler to use in the place of the user's."""
        return sampler

    def before(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """What the prediction is made for."""
        return x

    def after(self, denoised: torch.Tensor) -> torch.Tensor:
        """What becomes of the prediction."""
        return denoised

    def end(self) -> None:
        """The run is over, if only by an error: what it held for the network is let go."""
        self.conds, self.parts, self.evaluated = {}, Parts(), []

    def look(self, conds: Sequence[list[dict] | None], x: torch.Tensor, sigma: float) -> None:
        """The host is about to evaluate these conditionings. What other nodes ask for once more, such as a perturbed guess, is no reading."""
        self.parts, self.percent = Parts.of(conds, self.conds, self.token), self.scale.percent(sigma)
        self.reads = not any(x is before for before in self.evaluated)
        if any(index >= 0 for index, _ in self.parts.marked):
            self.evaluated.append(x)

    @property
    def acts(self) -> bool:
        """Whether it has to do with any layer of a DiT now; always so until one is reached, which shows at once if none can be."""
        return True

    def leaning(self, tokens: int, place: Block | None) -> torch.Tensor | None:
        """For a DiT: (rows of a part, text tokens) to add to the logits of its text, -inf to hide it; None for nothing.

        Without a `place` it is an attention that is left to the host otherwise, in which the text looks at itself.
        """
        return None

    def start(self, conds: dict[str, list[dict]], x: torch.Tensor, sigma: float) -> None:
        """The first prediction of a run: refuses one in which no conditioning bears the mark."""
        if not any(_bears(c, listed, self.token) for listed in conds.values() for c in listed):
            raise ValueError(self.missing)

    def wants(self, kind: str, place: Place | Block) -> bool:
        """Whether it has to do with this layer now."""
        return False

    def borrow(self, call: Call | TokenCall, first: int, tokens: int) -> None:
        """May let rows use queries and keys of others, in the part of the batch that begins with row `first` and has so many text tokens."""

    def edit(self, call: Call | TokenCall, first: int, tokens: int) -> None:
        """May change what attention gives for rows of that part."""

    def see(self, call: Call | TokenCall, first: int, tokens: int) -> None:
        """Reads what attention looked at."""








def _begin(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None, **kwargs):
    """OUTER_SAMPLE: the controls of the model become those of this run."""
    guider = executor.class_obj
    options, device = guider.model_options["transformer_options"], guider.model_patcher.load_device
    scale = run_noise_scale(guider)
    runs = options[KEY] = tuple(control.begin(scale, noise) for control in options[KEY])
    try:
        for run in runs:
            sampler = run.sampler(sampler, noise, sigmas, seed, device)
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs)
    finally:
        for run in runs:
            run.end()


def _predict(executor, x, timestep, model_options={}, seed=None):
    """PREDICT_NOISE: what goes into a guided prediction, and what comes out."""
    runs = model_options["transformer_options"][KEY]
    for run in runs:
        run.conds, run.evaluated = executor.class_obj.conds, []
        if not run.started:
            run.start(run.conds, x, float(timestep.max()))
            run.started = True
        x = run.before(x, float(timestep.max()))
    denoised = executor(x, timestep, model_options, seed)
    for run in runs:
        denoised = run.after(denoised)
    return denoised


def _conditions(executor, model, conds, x_in, timestep, model_options):
    """CALC_COND_BATCH: which conditionings are about to be evaluated."""
    for run in model_options["transformer_options"][KEY]:
        run.look(conds, x_in, float(timestep.max()))
    return executor(model, conds, x_in, timestep, model_options)


def _network(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
    """APPLY_MODEL: one call of the network, with replacements on the layers that are wanted now."""
    count = len(x) // len(transformer_options["uuids"])
    runs = [(run, run.parts.within(transformer_options)) for run in transformer_options[KEY]]
    active = [(run, n * count, tokens) for run, parts in runs for n, tokens in parts]
    if any(run.dit for run, _, _ in active):
        return _dit(executor, (x, t, c_concat, c_crossattn, control), transformer_options, active, kwargs)
    options = {**transformer_options, "patches_replace": _replacements(transformer_options.get("patches_replace", {}), active, len(x))}
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def _replacements(there: dict, active: list, batch: int) -> dict:
    """The replaced attentions of a UNet with those that are wanted now on top of those that are there."""
    replace = dict(there)
    for kind, slot in SLOTS.items():
        wanted: dict[Place, list] = {}
        for run, first, tokens in active:
            for place in run.places:
                if run.wants(kind, place):
                    wanted.setdefault(place, []).append((run, first, tokens))
        below = replace.get(slot, {})
        on_top = {p.key: partial(attend, p, kind, below.get(p.key, below.get(p.key[:2])), acting, batch) for p, acting in wanted.items()}
        if on_top:
            replace[slot] = {**below, **on_top}
    return replace


def _dit(executor, given: tuple, options: dict, active: list, more: dict) -> torch.Tensor:
    """One call of a DiT, with the host's override of its attentions where something acts."""
    x, text = given[0], given[3]
    acting = [a for a in active if a[0].acts]
    if not acting:
        return executor(*given, options, **more)
    override = Override(acting[0][0].dit, acting, len(x), x.shape, text.shape[1], options.get(OVERRIDE))
    made = executor(*given, {**options, OVERRIDE: override}, **more)
    override.check()
    for run, *_ in acting:
        run.reached = True
    return made


_WRAPPERS = {
    WrappersMP.OUTER_SAMPLE: _begin,
    WrappersMP.PREDICT_NOISE: _predict,
    WrappersMP.CALC_COND_BATCH: _conditions,
    WrappersMP.APPLY_MODEL: _network,
}


def install(model, control):
    """A clone of the model with a control: an object whose `begin(scale, noise)` gives its `Run`."""
    patched = model.clone()
    options = patched.model_options["transformer_options"]
    options[KEY] = (*options.get(KEY, ()), control)
    for kind, wrapper in _WRAPPERS.items():
        if not patched.get_wrappers(kind, KEY):
            patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched
