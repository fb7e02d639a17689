"""Gradient checkpointing of a network's blocks: less memory, the same gradients, more time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from comfy.clip_model import CLIPLayer
from comfy.text_encoders.t5 import T5Block

from .saved_tensors import Copies, SavedTensor, map_tensors


class _Recomputed:
    """One pass through a block: autograd keeps its inputs alone; what else it saved is computed again when it is needed."""

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
        return self.saved.pop(number).load()

    def _again(self) -> list[SavedTensor]:
        """All that autograd saves in the pass; copies, as blocks may change it afterwards."""
        saved, copies = [], Copies(self.block.parameters)
        # The graph of this pass gets nothing: none goes backward through it, and it would hold the tensors for longer.
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(copies.save(tensor)), lambda nothing: nothing)
        with torch.inference_mode(False), torch.enable_grad():
            args, kwargs = _copied(self.given)
            with hooks:
                self.block.forward(*args, **kwargs)
        return saved


def _copied(value):
    """A value with copies of its tensors that lead nowhere, and asks for gradients where they did; containers are made anew."""
    return map_tensors(value, lambda t: t.detach().requires_grad_(t.requires_grad).clone())


_FLUX = ("DoubleStreamBlock", "SingleStreamBlock")
# By class name within comfy.ldm: no version of ComfyUI has all these modules, and a probe would compare gradients of the whole network.
RECOMPUTABLE = {  # denoisers whose gradients were compared, and their blocks
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
    network = type(model.diffusion_model)
    return network.__module__.startswith("comfy.ldm.") and network.__name__ in RECOMPUTABLE


def blocks_of(model) -> list[torch.nn.Module]:
    """The blocks of a model that `recomputed` may be given; refuses models with which that was not tried."""
    network = model.diffusion_model
    if not recomputable(model):
        raise ValueError(
            f"checkpointing was not tried with {type(model).__name__} ({type(network).__name__}), where it may give wrong gradients; switch it off. "
            f"It works with the networks {', '.join(RECOMPUTABLE)}."
        )
    return [m for m in network.modules() if type(m).__name__ in RECOMPUTABLE[type(network).__name__]]


def coarse_blocks(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """The blocks of text encoders that do not hold float32: of their weights autograd would keep a float32 copy for every sentence."""
    blocks = [m for module in modules for m in module.modules() if isinstance(m, (CLIPLayer, T5Block))]
    return [b for b in blocks if any(p.dtype != torch.float32 for p in b.parameters())]


@contextmanager
def passes(blocks: Iterable[torch.nn.Module], begin: Callable, end: Callable = lambda made: None) -> Iterator[list]:
    """Inside, each pass through a block begins with `begin(block, (args, kwargs))` and ends with `end` of what that gave. Gives the list of what
    the passes that are running gave, the innermost last."""
    running: list = []

    def before(block, args, kwargs):
        running.append(begin(block, (args, kwargs)))

    def after(block, args, output):
        end(running.pop())

    handles = [b.register_forward_pre_hook(before, with_kwargs=True) for b in blocks]
    handles += [b.register_forward_hook(after, always_call=True) for b in blocks]
    try:
        yield running
    finally:
        while running:  # a stop by the user inside of a block passes hooks by
            end(running.pop())
        for handle in handles:
            handle.remove()


@contextmanager
def recomputed(blocks: Iterable[torch.nn.Module]):
    """Inside, blocks keep nothing for the backward pass but their inputs, and run again in it: less memory, the same gradients, more time."""

    def begin(block: torch.nn.Module, given: tuple) -> _Recomputed | None:
        if not torch.is_grad_enabled():
            return None
        made = _Recomputed(block, given)
        made.hooks.__enter__()
        return made

    with passes(blocks, begin, lambda made: made and made.end()):
        yield
