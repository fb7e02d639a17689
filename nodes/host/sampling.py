"""CFG guiders and the sampler that the pack's own loops run in, so that loading, hooks, previews and cancelling are ComfyUI's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import comfy.utils
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP

from ...inversion.method import Derivative, Trajectory
from .conditionings import active_parts, same_conditioning
from .evaluation_order import AnyOrderSampler
from .progress import Progress


def untouched(model_options: dict) -> bool:
    """Whether no other node takes part in the predictions of a run with these options."""
    options = model_options["transformer_options"]
    hooks = [options.get(k) for k in ("patches", "patches_replace", "optimized_attention_override")]
    kinds = (WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
    hooks += [options.get("wrappers", {}).get(k) for k in kinds]
    return not any(hooks) and not any("function" in k for k in model_options)


class StrictCFGGuider(comfy.samplers.CFGGuider):
    """ComfyUI's CFG that refuses sigmas at which a conditioning is not active; ComfyUI would take zeros as its prediction.

    `evaluations` counts rows of the network's batch for one image, of which the batch holds so many `copies`; `advice` tells the user what
    else to change, `positive_name` what the positive is. While it is `alone`, channels of Multi CFG Patch stay out.
    """

    advice, positive_name, alone = "move end_percent into it", "positive", False
    evaluations, copies = 0, 1

    def denoised(self, x: torch.Tensor, sigma: torch.Tensor, **extra_args) -> torch.Tensor:
        """The prediction at `sigma` (B,)."""
        names = {"positive": self.positive_name} | ({} if self.cfg == 1.0 else {"negative": "negative"})
        for key, name in names.items():
            active = active_parts(self.conds[key], x, sigma)
            if active == 0:
                raise ValueError(
                    f"The {name} conditioning is not active at sigma {float(sigma.max()):.4g}: its timestep range excludes it. Widen the "
                    f"range, or {self.advice}."
                )
            self.evaluations += active * self.copies
        return self(x, sigma, **extra_args)

    def mix(self, x: torch.Tensor, sigma: torch.Tensor, predictions: list[torch.Tensor], model_options: dict, **extra_args) -> torch.Tensor:
        """What guidance, and all that other nodes add to it, makes of known predictions [positive, negative].

        They take the place of ComfyUI's `calc_cond_batch`. Where another node has taken that place, it predicts anew, by its own rule.
        """
        options = {"sampler_calc_cond_batch_function": lambda args: predictions, **model_options}
        return self(x, sigma, model_options=options, **extra_args)

    def _source(self) -> list[dict]:
        """The source's parts, without ControlNet and gligen of the positive, which ComfyUI hands on to all other conditionings."""
        pairs = zip(self.original_conds["source"], self.conds["source"])
        return [{k: v for k, v in part.items() if k not in ("control", "gligen") or own.get(k) is not None} for own, part in pairs]

    @contextlib.contextmanager
    def under_source(self, cfg: float, alone: bool = False):
        """Inside, this guider predicts under the conditioning "source", at this cfg; the positive is "target", where other nodes find it."""
        target, own = self.conds["positive"], self.cfg
        self.conds |= {"positive": self._source(), "target": target}
        self.cfg, self.positive_name, self.alone = cfg, "source", alone
        try:
            yield
        finally:
            self.conds["positive"] = self.conds.pop("target")
            self.cfg, self.positive_name, self.alone = own, "positive", False


class Guidance(StrictCFGGuider):
    """ComfyUI's CFG; at cfg 1 it needs no negative.

    Where the negative is the positive and no other node can tell them apart, cfg has no effect and is 1 in the run. `direction` changes the
    difference (B, ...) of the predictions, as a method wants. With a `source`, the first half of a batch is predicted under it.
    """

    def __init__(self, model, positive, negative, cfg: float, direction: Callable | None = None, source: list | None = None):
        super().__init__(model)
        self.direction = direction
        if negative is None and cfg != 1.0:
            raise ValueError(f"cfg is {cfg:g}, which needs a negative conditioning. Connect one (its text may be empty), or set cfg to 1.")
        conditionings = {"positive": positive, "negative": negative, "source": source}
        self.inner_set_conds({k: v for k, v in conditionings.items() if v is not None})
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
        """Pre-CFG function: applies `direction`."""
        positive, negative, *more = args["conds_out"]
        guided = args["conds"][1] is not None
        return [negative + self.direction(positive - negative), negative, *more] if guided else args["conds_out"]

    def _same(self) -> bool:
        """Whether positive and negative surely are one prediction."""
        pair = [self.original_conds[name] for name in ("positive", "negative")]
        kinds = [{part.get("prompt_type", name) for part in parts} for name, parts in zip(("positive", "negative"), pair)]
        return same_conditioning(*pair) and kinds[0] == kinds[1]


def derivative_of(guider, extra_args: dict) -> Derivative:
    """The derivative of a running guider's predictions, `guider.denoised(x, sigma, **extra_args)`."""
    sampling = guider.inner_model.model_sampling

    def input_scale(sigma: float) -> float:
        return float(sampling.calculate_input(torch.tensor([sigma], dtype=torch.float64), torch.ones(1, dtype=torch.float64)))

    return Derivative(guider.denoised, input_scale, extra_args)


class CallbackSampler(AnyOrderSampler):
    """Runs a loop through noise levels, `loop(guider, derivative, clean, show)`; `clean` is the latent in the model's own space.

    `phases` are its steps, {name: steps}; for each it calls `show`. `result` is what it returns; where that is a latent, `latent` is the same
    as the VAE takes it. `apart` as of `AnyOrderSampler`.
    """

    def __init__(self, loop: Callable, phases: Mapping[str, int], apart: bool = False):
        self.loop, self.phases, self.result, self.latent, self.apart = loop, phases, None, None, apart

    @property
    def looks(self) -> bool:
        return not torch.is_tensor(self.result)

    @property
    def latents(self) -> list[torch.Tensor]:
        found = self.result.states[0][0] if isinstance(self.result, Trajectory) else self.result
        return [found] if torch.is_tensor(found) else []

    def evaluate(self, guider, sigmas, extra_args, callback, latent_image, denoise_mask):
        progress = Progress(self.phases, lambda: guider.evaluations)

        def show(x: torch.Tensor, denoised: torch.Tensor, steps: int = 1, facts: Callable[[], str] = str) -> None:
            progress.advance(steps, facts)
            if callback is not None:
                callback(progress.done - 1, denoised, x.float(), progress.total)

        self.result = self.loop(guider, derivative_of(guider, extra_args), latent_image, show)
        return latent_image if self.looks else self.result


def run(
    guider, latent: torch.Tensor, sigmas: Sequence[float], loop: Callable, phases: Mapping[str, int], mask=None, seed: int = 0, apart: bool = False
) -> CallbackSampler:
    """Runs a loop on a latent (as the VAE gives it) inside ComfyUI's sampling; arguments as of `CallbackSampler`."""
    sampler = CallbackSampler(loop, phases, apart)
    show = latent_preview.prepare_callback(guider.model_patcher, sum(phases.values()))
    hidden, levels = not comfy.utils.PROGRESS_BAR_ENABLED, torch.FloatTensor(list(sigmas))
    out = guider.sample(torch.zeros_like(latent), latent, sampler, levels, mask, show, hidden, seed)
    sampler.latent = out.to(comfy.model_management.intermediate_device())
    return sampler


class TwoPrompts(StrictCFGGuider):
    """ComfyUI's CFG with a second prompt, `source`, that can temporarily replace the positive one."""

    advice = "keep the node's noise levels (start_percent and end_percent, encode_ratio, n_max) within it"

    def __init__(self, model, source, target, negative, cfg: float):
        super().__init__(model)
        self.inner_set_conds({"positive": target, "negative": negative, "source": source})
        self.set_cfg(cfg)

    def agree(self) -> bool:
        """Whether both prompts ask the network for the same prediction."""
        return same_conditioning(self.original_conds["source"], self.original_conds["positive"])
