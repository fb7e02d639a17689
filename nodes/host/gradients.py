"""Gradients inside the host, whose nodes run in inference mode and whose weights were loaded in it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import comfy.model_patcher
import torch

T = TypeVar("T")
WITHOUT_DERIVATIVE = ("attention_sage", "attention3_sage", "attention_flash")  # attention kernels of the host


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


def hosted(work: Callable[..., T], *given, **more) -> T:
    """What the host makes of something where it works as in any node, in inference mode; tensors of it as ordinary ones.

    Weights that were made in that mode and are moved to the GPU outside it are usable in neither.
    """
    with torch.inference_mode():
        made = work(*given, **more)
    with torch.inference_mode(False):
        return ordinary(made)


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


def differentiable_patcher(patcher, what: str):
    """The patcher itself, or a copy of its own weights where the host loads them dynamically, piece by piece."""
    if not getattr(patcher, "is_dynamic", bool)():
        return patcher
    try:
        return patcher.clone(disable_dynamic=True)
    except RuntimeError as error:
        raise ValueError(
            f"The {what} is loaded dynamically, through which no gradient passes, and cannot be loaded a second time ({error}). Start ComfyUI "
            "with --disable-dynamic-vram, or use one of ComfyUI's own loaders."
        ) from error


def differentiable_vae(vae):
    """The VAE itself, or one like it that is not loaded dynamically."""
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


def without_derivative(error: RuntimeError) -> bool:
    """Whether autograd stopped at an operation that has no derivative, as some of the host's own kernels are."""
    return "no autograd formula" in str(error)


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


def attend_with_derivative(transformer_options: dict) -> None:
    """In these options of a run, attention kernels that have no derivative give way to torch's own, unless a node has taken the slot."""

    def override(kernel, *args, **kwargs):
        return (host_attention.attention_pytorch if kernel.__name__ in WITHOUT_DERIVATIVE else kernel)(*args, **kwargs)

    transformer_options.setdefault("optimized_attention_override", override)


class _Recomputed:
    """One pass through a block, of which autograd keeps the inputs alone: what else it saved is made again when it is needed."""

    def __init__(self, block: torch.nn.Module, given: tuple):
        self.block, self.given, self.count, self.saved = block, _copied(given), 0, {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._forget, self._recall)

    def end(self) -> None:
        self.hooks.__exit__()
        del self.hooks  # which would keep this alive, and what it has made

    def _forget(self, tensor: torch.Tensor) -> int:
        self.count += 1
        return self.count - 1

    def _recall(self, number: int) -> torch.Tensor:
        """Each is given once and not held any longer; who asks again has it made again."""
        if number not in self.saved:
            self.saved = dict(enumerate(self._again()))
        return self.saved.pop(number)

    def _again(self) -> list[torch.Tensor]:
        """All that autograd saves in the pass; copies, as blocks may change it afterwards."""
        saved, weights = [], {p.untyped_storage().data_ptr() for p in self.block.parameters()}

        def keep(tensor: torch.Tensor) -> None:
            own = tensor.untyped_storage().data_ptr() in weights
            saved.append(tensor.detach() if own else laid_out(tensor.detach()))
            # and the graph of this pass gets nothing: none goes backward through it, and it would hold the tensors for longer

        with torch.inference_mode(False), torch.enable_grad():
            args, kwargs = _copied(self.given)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
                self.block.forward(*args, **kwargs)
        return saved


SMALL = 2**14  # numbers whose layout is kept, whatever it costs: masks of a few words are mostly gaps


def laid_out(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that lies in memory as the tensor does, where that takes at most twice its numbers or is small.

    `clone` would close gaps and write repeated rows out; attention kernels of a GPU want their masks aligned as they were saved.
    """
    if type(tensor) is not torch.Tensor or tensor.layout != torch.strided or not tensor.numel():
        return tensor.clone()
    steps = [(size, stride) for size, stride in zip(tensor.shape, tensor.stride()) if stride and size > 1]
    distinct, span = math.prod(size for size, _ in steps), 1 + sum((size - 1) * stride for size, stride in steps)
    if span > max(2 * distinct, SMALL):
        return tensor.clone()
    return tensor.as_strided((span,), (1,)).clone().as_strided(tensor.shape, tensor.stride(), 0)


def _copied(value):
    """A value with copies of its tensors that lead nowhere, and asks for gradients where they did; containers are made anew."""
    if torch.is_tensor(value):
        return value.detach().requires_grad_(value.requires_grad).clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return type(value)(_copied(v) for v in value) if type(value) in (list, tuple) else value


_FLUX = ("DoubleStreamBlock", "SingleStreamBlock")
RECOMPUTABLE = {  # denoisers whose gradients were compared with and without, and their blocks
    "UNetModel": ("ResBlock", "SpatialTransformer"),
    "OpenAISignatureMMDITWrapper": ("JointBlock",),
    "Flux": _FLUX,
    "Chroma": _FLUX,
    "HunyuanVideo": _FLUX,
    "QwenImageTransformer2DModel": ("QwenImageTransformerBlock",),
    "MageFlowTransformer2DModel": ("QwenImageTransformerBlock",),
    "NextDiT": ("JointTransformerBlock",),
    "OmniGen2Transformer2DModel": ("OmniGen2TransformerBlock",),
    "BooguTransformer2DModel": ("OmniGen2TransformerBlock", "BooguDoubleStreamBlock"),
    "MMDiT": ("MMDiTBlock", "DiTBlock"),
    "HiDreamImageTransformer2DModel": ("HiDreamImageBlock",),
    "WanModel": ("WanAttentionBlock",),
    "LTXVModel": ("BasicTransformerBlock",),
    "Kandinsky5": ("TransformerEncoderBlock", "TransformerDecoderBlock"),
    "SingleStreamDiT": ("SingleStreamBlock",),
    "LensTransformer2DModel": ("LensTransformerBlock",),
    "Ideogram4Transformer2DModel": ("Ideogram4TransformerBlock",),
    "CogVideoXTransformer3DModel": ("CogVideoXBlock",),
    "PixDiT_T2I": ("MMDiTBlockT2I", "PiTBlock"),
}


def recomputable(model) -> bool:
    """Whether the blocks of a model may be given to `recomputed`."""
    return type(model.diffusion_model).__name__ in RECOMPUTABLE


def blocks_of(model) -> list[torch.nn.Module]:
    """The blocks of a model that `recomputed` may be given; refuses models with which that was not tried."""
    network = model.diffusion_model
    names = RECOMPUTABLE.get(type(network).__name__)
    if not recomputable(model):
        raise ValueError(
            f"checkpointing was not tried with {type(model).__name__} ({type(network).__name__}), where it may give wrong gradients; switch it off. "
            f"It works with the networks {', '.join(RECOMPUTABLE)}."
        )
    return [m for m in network.modules() if type(m).__name__ in names]


_OF_TEXT = ("CLIPLayer", "T5Block")


def coarse_blocks(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """The blocks of text encoders that do not hold float32: of their weights autograd would keep a float32 copy for every sentence."""
    blocks = [m for module in modules for m in module.modules() if type(m).__name__ in _OF_TEXT]
    return [b for b in blocks if any(p.dtype != torch.float32 for p in b.parameters())]


@contextmanager
def recomputed(blocks: Iterable[torch.nn.Module]):
    """Inside, blocks keep nothing for the backward pass but their inputs, and run again in it: less memory, the same gradients, more time."""
    running: list[_Recomputed] = []

    def before(block, args, kwargs):
        if torch.is_grad_enabled():
            running.append(_Recomputed(block, (args, kwargs)))
            running[-1].hooks.__enter__()

    def after(block, args, output):
        if running and running[-1].block is block:
            running.pop().end()

    handles = [b.register_forward_pre_hook(before, with_kwargs=True) for b in blocks]
    handles += [b.register_forward_hook(after, always_call=True) for b in blocks]
    try:
        yield
    finally:
        while running:  # a stop by the user inside of a block passes hooks by
            running.pop().end()
        for handle in handles:
            handle.remove()


def prepare(guider, what: str = "Guidance through the denoiser", instead: str = ", or switch 'through_denoiser' off") -> None:
    """Readies a running guider for gradients through its model: weights and conditionings become ordinary tensors."""
    patcher = guider.model_patcher
    if getattr(patcher, "is_dynamic", bool)():
        raise ValueError(
            f"{what} needs the whole model in memory, which is loaded dynamically. Start ComfyUI with --disable-dynamic-vram{instead}."
        )
    if "multigpu_clones" in guider.model_options:
        raise ValueError(f"{what} runs on one GPU. Take MultiGPU CFG Split away{instead}.")
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
