"""Keeps results right where the pack evaluates a network in another order than a plain run, whatever other nodes remember of its steps.

A plain run is one falling pass through its sigmas under one pair of prompts. Hooks with keyframes and caches of other nodes count on it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence

import comfy.samplers
import torch
from comfy.hooks import EnumHookType, Hook
from comfy.patcher_extension import WrappersMP

from ...guidance.errors import quoted
from .progress import keep

KEY = "controlled_diffusion.evaluation_order"
OWN = "controlled_diffusion"  # with which the keys of all wrappers of the pack begin
COMPILED = "torch.compile"  # of the wrapper by which ComfyUI's `set_torch_compile_wrapper` puts a compiled network in place
FUNCTION = "model_function_wrapper"
KINDS = (WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)  # from the outside in

_log = logging.getLogger(__name__)


class AnyOrderSampler(comfy.samplers.Sampler):
    """A sampler of the pack that evaluates in an order of its own. Subclasses have `evaluate`.

    `apart`: its sigmas are no steps of one pass, but evaluated each by itself. `latents` are those in the model's own space that nodes give
    out besides what `evaluate` returns; `looks`: nodes give out the latent that they were given.
    """

    apart, looks = False, False
    latents: Sequence[torch.Tensor] = ()

    def evaluate(self, guider, sigmas, extra_args: dict, callback, latent_image, denoise_mask) -> torch.Tensor:
        """As `comfy.samplers.Sampler.sample`."""
        raise NotImplementedError

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        keyframes = Keyframes(() if self.apart else sigmas)
        _prepare((model_wrap.model_options, extra_args["model_options"]), model_wrap.conds, keyframes)
        try:
            return self.evaluate(model_wrap, sigmas, extra_args, callback, latent_image, denoise_mask)
        finally:
            keyframes.restore()


class Restarting(comfy.samplers.Sampler):
    """Runs the first `steps` of a sampler, and then the whole of it: two plain passes, of which the second knows nothing of the first."""

    def __init__(self, sampler, steps: int):
        self.sampler, self.steps = sampler, steps

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        given = (noise, latent_image, denoise_mask)
        self.sampler.sample(model_wrap, sigmas[: self.steps + 1], dict(extra_args), None, *given, True)
        _begin_anew(model_wrap, extra_args["model_options"])
        return self.sampler.sample(model_wrap, sigmas, extra_args, callback, *given, disable_pbar)


class RunState:
    """What a node of the pack keeps in the options of a run. Subclasses that show the whole run forget the first pass of `Restarting`."""

    def begin_anew(self) -> None:
        """Between two passes of one run."""


def _begin_anew(guider, model_options: dict) -> None:
    """Between two passes of one run: hooks go back to their first keyframe, and what nodes remember of the first pass is forgotten."""
    for value in _values(model_options):
        if isinstance(value, RunState):
            value.begin_anew()
    for hook in _hooks(guider.conds.values()):
        hook.initialize_timesteps(guider.inner_model)
    _clear_hook_weights(guider.inner_model, model_options)
    for holder in filter(_remembers, _values(model_options["transformer_options"])):
        holder.reset()


def in_any_order(model_options: dict) -> bool:
    """Whether a run with these options is of an `AnyOrderSampler`."""
    return KEY in model_options


def leave_uncompiled(wrappers: dict, what: str) -> None:
    """Takes the network of TorchCompileModel, which keeps what it saw of options and hooks at its first call, out of the wrappers of a run or of
    a MODEL, {type: {key: [wrapper]}}; `what` needs that."""
    there = wrappers.get(WrappersMP.APPLY_MODEL, {})
    if COMPILED in there:
        wrappers[WrappersMP.APPLY_MODEL] = {key: found for key, found in there.items() if key != COMPILED}
        text = f"{what} runs without torch.compile: a compiled network would not see what changes from step to step."
        _log.warning(text)
        keep(text)


class Keyframes:
    """Gives hooks at every sigma the keyframe that a falling pass through `levels` has there, whatever was evaluated before.

    ComfyUI's `HookKeyframeGroup` only moves forward, so that each evaluation gets a clone of it that has gone through the levels above.
    """

    def __init__(self, levels: torch.Tensor | Sequence[float]):
        self.levels = sorted(set(torch.as_tensor(levels).tolist()), reverse=True)
        self.hooks: dict[int, tuple] = {}  # by id: (hook, its own keyframes, the strength that it was last applied with)

    def at(self, keyframes, sigma: float):
        """A clone of a `HookKeyframeGroup` at a sigma."""
        found, passed = keyframes.clone(), [*(level for level in self.levels if level > sigma), sigma]
        for level in torch.FloatTensor(passed):  # tensors, to compare as ComfyUI does
            found.prepare_current_keyframe(level, {"sample_sigmas": torch.FloatTensor(passed)})
        return found

    def move(self, hook: Hook, sigma: float) -> bool:
        """Moves a hook to a sigma; whether its strength is another than it was last applied with."""
        _, own, applied = self.hooks.get(id(hook), (hook, hook.hook_keyframe, None))
        hook.hook_keyframe = self.at(own, sigma)
        self.hooks[id(hook)] = hook, own, hook.strength
        return applied != hook.strength

    def restore(self) -> None:
        for hook, own, _ in self.hooks.values():
            hook.hook_keyframe = own

    def __call__(self, executor, model, conds, x_in, timestep, model_options):
        """CALC_COND_BATCH: all hooks are moved to the sigma that is evaluated."""
        hooks = {id(hook): hook for hook in _hooks(conds) if not hook.hook_keyframe.is_empty()}
        changed = [self.move(hook, float(timestep[0])) for hook in hooks.values()]
        if any(changed):
            _clear_hook_weights(model, model_options)
        return executor(model, conds, x_in, timestep, model_options)


def _clear_hook_weights(model, model_options: dict) -> None:
    for patcher in (model.current_patcher, *model_options.get("multigpu_clones", {}).values()):
        patcher.clear_cached_hook_weights()


def _hooks(conds: Sequence[list[dict] | None]) -> Iterator[Hook]:
    for part in (part for conditioning in conds for part in conditioning or ()):
        yield from part["hooks"].hooks if part.get("hooks") is not None else ()


def _prepare(both: tuple[dict, dict], conds: dict[str, list[dict]], keyframes: Keyframes) -> None:
    """Changes the options of a run, which are its own: the guider's and the sampler's, from either of which ComfyUI reads wrappers."""
    hooks = list(_hooks(conds.values()))
    found = [both[-1]["transformer_options"], *(h.transformers_dict for h in hooks if h.hook_type == EnumHookType.TransformerOptions)]
    holders = list({id(value): value for value in _values(found) if _remembers(value)}.values())
    reached = Reached()
    for options in both:
        options[KEY] = True
        _refuse_memories(options, reached)
        if any(not hook.hook_keyframe.is_empty() for hook in hooks):
            _put_first(options, (WrappersMP.CALC_COND_BATCH,), keyframes)
        if holders:
            _put_first(options, KINDS[:-1], _forgetting(holders))
    if holders:
        names = sorted({str(getattr(holder, "name", type(holder).__name__)) for holder in holders})
        _log.info("%s would take earlier evaluations for steps of one sampling: switched off in this node.", ", ".join(names))


def _values(value) -> Iterator:
    """Everything that is in containers of containers; of a method, the object that it belongs to."""
    if isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner)
    else:
        yield value.__self__ if inspect.ismethod(value) else value


def _remembers(value) -> bool:
    """Whether an object holds what it saw in a run: like ComfyUI's own holders it can be cloned for a run and reset."""
    return not inspect.isclass(value) and all(callable(getattr(value, name, None)) for name in ("clone", "reset"))


def _forgetting(holders: list) -> Callable:
    """A wrapper of any kind: before an evaluation, everything forgets the earlier ones."""

    def forget(executor, *args, **kwargs):
        for holder in holders:
            holder.reset()
        return executor(*args, **kwargs)

    return forget


def _put_first(options: dict, kinds: Sequence[str], wrapper: Callable) -> None:
    """Puts a wrapper around those that are there."""
    wrappers = options["transformer_options"].setdefault("wrappers", {})
    for kind in kinds:
        there = wrappers.get(kind, {})
        wrappers[kind] = {KEY: [wrapper, *there.get(KEY, [])], **{key: found for key, found in there.items() if key != KEY}}


class Reached:
    """Refuses wrappers of other nodes that answer from memory: neither what they wrap was called, nor the network by themselves."""

    def __init__(self):
        self.count = 0

    def inside(self, executor, *args, **kwargs):
        """The innermost wrapper of its kind."""
        self.count += 1
        return executor(*args, **kwargs)

    def around(self, name: str) -> Callable:
        """A wrapper around those of a node."""

        def checked(executor, *args, **kwargs):
            before = self.count
            result = executor(*args, **kwargs)
            if self.count == before:
                raise ValueError(
                    f"A node on the model (wrapper {name}) gave a result from memory instead of evaluating the network, as caches do. This "
                    "node evaluates in another order than a sampler, where such results are wrong. Connect the model from before the cache."
                )
            return result

        return checked


def _refuse_memories(options: dict, reached: Reached) -> None:
    """Puts checks around the wrappers of other nodes."""
    wrappers = options["transformer_options"].setdefault("wrappers", {})
    others = {kind: [key for key in wrappers.get(kind, {}) if not str(key).startswith(OWN)] for kind in KINDS}
    function = options.get(FUNCTION)
    if not any(others.values()) and function is None:
        return
    for kind in KINDS:
        found = wrappers.get(kind, {})
        wrappers[kind] = found | {key: [reached.around(f"{quoted(key)} of {kind}"), *found[key], reached.inside] for key in others[kind]}
    _put_first(options, KINDS, reached.inside)
    if function is not None:
        options[FUNCTION] = lambda apply_model, args: reached.around(quoted(FUNCTION))(function, apply_model, args)
