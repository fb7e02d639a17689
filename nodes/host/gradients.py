"""Gradients inside ComfyUI, whose nodes run in inference mode and whose weights were loaded in it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP

from .evaluation_order import leave_uncompiled
from .saved_tensors import map_tensors, mutations_allowed

T = TypeVar("T")
KEY = "controlled_diffusion.training"
BACKWARD = 4  # memory to ask for, in forward passes: what a backward pass needs is kept until then
DIFFERENTIABLE_ATTENTION = {  # kernels of ComfyUI that autograd can follow; any other gives way to torch's own
    inspect.unwrap(getattr(host_attention, f"attention_{kind}")) for kind in ("basic", "sub_quad", "split", "xformers", "pytorch")
}


def without_history(tensor: torch.Tensor) -> bool:
    """Whether autograd refuses to save a tensor: it was made in inference mode, or is a view of one that was."""
    if tensor.is_inference():
        return True
    try:
        return tensor._version < 0
    except RuntimeError:
        return True


def clone_inference_tensors(value):
    """A value whose tensors that were made in inference mode are replaced by copies; containers are made anew."""
    return map_tensors(value, lambda t: t.clone() if without_history(t) else t)


def run_in_inference_mode(work: Callable[..., T], *given, **more) -> T:
    """Runs ComfyUI's code in inference mode, as in any node; gives its result with ordinary tensors.

    Weights that were made in that mode and are moved to the GPU outside it are usable in neither.
    """
    with torch.inference_mode():
        result = work(*given, **more)
    with torch.inference_mode(False):
        return clone_inference_tensors(result)


def to_normal_tensors(module: torch.nn.Module, device: torch.device | None = None) -> int:
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
def differentiable(copies: bool = True):
    """Inside, autograd records as outside ComfyUI, and its kernels without a derivative are not used. With `copies` networks may change in
    place what autograd has saved, as many of them do."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with torch.inference_mode(False), torch.enable_grad(), mutations_allowed() if copies else nullcontext():
            yield
    finally:
        comfy.model_management.in_training = before


def differentiable_patcher(patcher, what: str):
    """The patcher itself, or a copy of its own weights where ComfyUI loads them dynamically, piece by piece."""
    if not getattr(patcher, "is_dynamic", bool)():
        return patcher
    try:
        return patcher.clone(disable_dynamic=True)
    except RuntimeError as error:
        raise ValueError(
            f"The {what} is loaded dynamically, through which no gradient passes, and cannot be loaded a second time ({error}). Start ComfyUI "
            "with --disable-dynamic-vram, or use one of ComfyUI's own loaders."
        ) from error


_OF_VAE = ("patcher", "first_stage_model", "vae_dtype", "process_output", "latent_dim")


def differentiable_vae(vae):
    """The VAE itself, or one like it that is not loaded dynamically."""
    missing = [name for name in _OF_VAE if not hasattr(vae, name)]
    if missing:
        raise ValueError(
            f"This VAE ({type(vae).__name__}) has no {', '.join(missing)}, and without it no gradient passes through. Use one of ComfyUI's own "
            "loaders, such as Load VAE."
        )
    patcher = differentiable_patcher(vae.patcher, "VAE")
    if patcher is vae.patcher:
        return vae
    own = copy.copy(vae)
    own.patcher, own.first_stage_model = patcher, patcher.model.to(vae.vae_dtype)  # as a VAE has it that is loaded whole
    return own


def differentiable_clip_vision(clip_vision):
    """The CLIP vision model itself, or, where it is loaded dynamically, one like it with a copy of the weights; no loader can make it again."""
    if not getattr(clip_vision.patcher, "is_dynamic", bool)():
        return clip_vision
    own, offload_device = type(clip_vision)(clip_vision.config), clip_vision.patcher.offload_device
    own.model.load_state_dict({k: v.clone() for k, v in clip_vision.model.state_dict().items()}, assign=True)
    own.patcher = comfy.model_patcher.ModelPatcher(own.model, own.load_device, offload_device)
    return own


def attend_with_derivative(transformer_options: dict) -> None:
    """In these options of a run, attention kernels without a derivative give way to torch's own, unless a node has taken the slot."""

    def override(kernel, *args, **kwargs):
        return (kernel if kernel in DIFFERENTIABLE_ATTENTION else host_attention.attention_pytorch)(*args, **kwargs)

    transformer_options.setdefault("optimized_attention_override", override)


def prepare(guider, what: str = "Guidance through the denoiser", instead: str = ", or switch 'through_denoiser' off") -> None:
    """Readies a running guider for gradients through its model: weights and conditionings become ordinary tensors."""
    patcher = guider.model_patcher
    if getattr(patcher, "is_dynamic", bool)():
        raise ValueError(
            f"{what} needs the whole model in memory, which is loaded dynamically. Start ComfyUI with --disable-dynamic-vram{instead}."
        )
    if "multigpu_clones" in guider.model_options:
        raise ValueError(f"{what} runs on one GPU. Take MultiGPU CFG Split away{instead}.")
    to_normal_tensors(guider.inner_model, patcher.load_device)
    with torch.inference_mode(False):
        guider.conds = clone_inference_tensors(guider.conds)
    for conditioning in guider.conds.values():
        for part in conditioning or ():
            _normal_control_tensors(part.get("control"))


def _normal_control_tensors(control) -> None:
    while control is not None:
        for name in ("control_model", "t2i_model"):
            if isinstance(getattr(control, name, None), torch.nn.Module):
                to_normal_tensors(getattr(control, name))
        control = control.previous_controlnet


def check_whole(patchers) -> None:
    """Refuses models that are only partly in memory: what autograd keeps of their borrowed weights is overwritten."""
    for patcher in patchers:
        if getattr(patcher.model, "model_lowvram", False):
            size, free = patcher.model_size() / 2**30, patcher.get_free_memory(patcher.load_device) / 2**30
            raise ValueError(
                f"{type(patcher.model).__name__} ({size:.1f} GB) does not fit into memory whole, which gradients need; {free:.1f} GB are free. "
                "Use a smaller model or a smaller precision of it, or close what else uses the memory."
            )


def trainable(model, clip=None, what: str = "Training"):
    """A MODEL, and a CLIP if given, as `what` needs them: clones that do not load dynamically, the model bringing the CLIP along."""
    model = differentiable_patcher(model, "model").clone()
    _check_uncompiled(model, what)
    if "multigpu_clones" in model.model_options:
        raise ValueError(f"{what} runs on one GPU. Take MultiGPU CFG Split away.")
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _load_whole)
    leave_uncompiled(model.wrappers, what)
    if clip is None:
        return model, None
    own = clip.clone()
    own.patcher = differentiable_patcher(own.patcher, "text encoder")
    own.cond_stage_model = own.patcher.model
    model.set_additional_models(KEY, [own.patcher])
    return model, own


def _check_uncompiled(model, what: str) -> None:
    """Refuses a network that another node has compiled in part, in its place: ComfyUI's own node can be left out of a run."""
    parts = [name for name, part in (*model.model.named_modules(), *model.object_patches.items()) if hasattr(part, "_orig_mod")]
    if parts:
        raise ValueError(
            f"{what} cannot use a network whose part {parts[0]} is compiled: changes to its layers would have no effect. Connect the model from "
            "before the node that compiles it, or use ComfyUI's TorchCompileModel."
        )


def _load_whole(executor, model, noise_shape, conds, model_options=None, **more):
    """ComfyUI's loading, with no part of a model left out and room for a backward pass."""
    more["force_full_load"] = True
    return executor(model, [noise_shape[0] * BACKWARD, *noise_shape[1:]], conds, model_options=model_options, **more)


def half_precision_scale(model) -> float:
    """Where gradients pass through float16, by what a loss starts to be multiplied so that they do not vanish."""
    return 2.0**12 if model.model.get_dtype_inference() == torch.float16 else 1.0
