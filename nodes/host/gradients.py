"""Gradients inside the host, whose nodes run in inference mode and whose weights were loaded in it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager, nullcontext

import comfy.model_management
import torch


def without_history(tensor: torch.Tensor) -> bool:
    """Whether autograd refuses to save a tensor: it was made in inference mode, or is a view of one that was."""
    if tensor.is_inference():
        return True
    try:
        return tensor._version < 0
    except RuntimeError:
        return True


def ordinary(value):
    """A value with copies in the place of its tensors that were made in inference mode; containers are made anew."""
    if torch.is_tensor(value):
        return value.clone() if without_history(value) else value
    if isinstance(value, dict):
        return {k: ordinary(v) for k, v in value.items()}
    return type(value)(ordinary(v) for v in value) if type(value) in (list, tuple) else value


def heal(module: torch.nn.Module, device: torch.device | None = None) -> int:
    """Gives a module ordinary parameters and buffers of the same values, on `device` alone if given; says how many."""
    count = 0
    with torch.inference_mode(False):
        for part in module.modules():
            for own in (part._parameters, part._buffers):
                for name, p in own.items():
                    if p is not None and (device is None or p.device == device) and without_history(p):
                        own[name] = torch.nn.Parameter(p.detach().clone(), False) if own is part._parameters else p.clone()
                        count += 1
    return count


@contextmanager
def differentiable(mutations: bool = True):
    """Inside, autograd records as outside the host, and the host's kernels without a derivative are not used.

    With `mutations` networks may change in place what autograd has saved, as many of the host do; every operation then passes through
    Python. Without it, autograd raises where that happens.
    """
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    allowed = torch.autograd.graph.allow_mutation_on_saved_tensors() if mutations else nullcontext()
    try:
        with torch.inference_mode(False), torch.enable_grad(), allowed:
            yield
    finally:
        comfy.model_management.in_training = before


def mutated(error: RuntimeError) -> bool:
    """Whether autograd stopped because something that it had saved was changed in place."""
    return "modified by an inplace operation" in str(error)


@contextmanager
def norms_keep_their_inputs(modules: Iterable[torch.nn.Module]):
    """Inside, norm layers work on copies: the host's text encoders add to what their norms have seen, and need no more than this."""
    norms = [m for module in modules for m in module.modules() if type(m).__name__.endswith("Norm")]
    handles = [m.register_forward_pre_hook(lambda m, given: (given[0].clone(), *given[1:])) for m in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def prepare(guider) -> None:
    """Readies a running guider for gradients through its model: weights and conditionings become ordinary tensors."""
    patcher = guider.model_patcher
    if getattr(patcher, "is_dynamic", bool)():
        raise ValueError(
            "Guidance through the denoiser needs the whole model in memory, which is loaded dynamically. Start ComfyUI with "
            "--disable-dynamic-vram, or switch 'through_denoiser' off."
        )
    if "multigpu_clones" in guider.model_options:
        raise ValueError("Guidance through the denoiser runs on one GPU. Take MultiGPU CFG Split away, or switch 'through_denoiser' off.")
    heal(guider.inner_model, patcher.load_device)
    with torch.inference_mode(False):
        guider.conds = ordinary(guider.conds)
    for conditioning in guider.conds.values():
        for part in conditioning or ():
            _heal_controls(part.get("control"))


def _heal_controls(control) -> None:
    while control is not None:
        for name in ("control_model", "t2i_model"):
            if isinstance(getattr(control, name, None), torch.nn.Module):
                heal(getattr(control, name))
        control = control.previous_controlnet
