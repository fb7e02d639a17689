"""DiTs under the pack's hook on attention: which of an attention's tokens are the image and which the text, family by family.

ComfyUI calls one override for every attention of a DiT, without saying whose it is. Its place follows from the number of its tokens: the
image's are known from the latent, the text's from the conditioning. Attentions of text alone or of the image alone that refine the
blocks' inputs are left to ComfyUI.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import comfy.model_base
import torch

from ....attention.call import QKSharing, run_controls
from ....attention.layers import Block
from ....attention.row_plan import RowSelection
from .block_text import EMBEDDERS, BlockText
from .second_text import Parted, Rotary, SecondText


@dataclass(frozen=True)
class Layout:
    """The tokens of a family. `blocks` are the lists of its blocks in order; `cross`: text has an attention of its own.

    `order` of joint attention: "text, image" (with references behind), "text, rest, image" or "image, text". `before` tokens come
    before the text, text and image are each filled up to a `multiple`; `patch`: cells of the latent a token is wide where the network
    does not say.
    """

    blocks: tuple[str, ...]
    order: str = "text, image"
    cross: bool = False
    before: int = 0
    multiple: int = 1
    patch: int | None = None
    beside: bool = False  # the text ends where the image begins


_DOUBLE_SINGLE = ("double_blocks", "single_blocks")
FAMILIES = {  # module of the network under comfy.ldm
    "flux.model": Layout(_DOUBLE_SINGLE),
    "chroma.model": Layout(_DOUBLE_SINGLE),
    "modules.diffusionmodules.mmdit": Layout(("joint_blocks",)),
    "qwen_image.model": Layout(("transformer_blocks",)),
    "mage_flow.model": Layout(("transformer_blocks",)),
    "krea2.model": Layout(("blocks",)),
    "ideogram4.model": Layout(("layers",), patch=1),  # its latents come patched
    "cogvideo.model": Layout(("blocks",)),
    "pixeldit.model": Layout(("patch_blocks",)),
    "aura.mmdit": Layout(("double_layers", "single_layers"), before=8),  # register tokens
    "lumina.model": Layout(("layers",), "text, rest, image"),
    "omnigen.omnigen2": Layout(("layers",), "text, rest, image"),  # references come between
    "boogu.model": Layout(("double_stream_layers", "single_stream_layers"), "text, rest, image"),
    "hunyuan_video.model": Layout(_DOUBLE_SINGLE, "text, rest, image"),  # glyphs, a reference frame
    "hidream.model": Layout(("double_stream_blocks", "single_stream_blocks"), "image, text"),  # T5's, then Llama's
    "lens.model": Layout(("transformer_blocks",), "image, text", patch=1),
    "joyimage.model": Layout(("double_blocks",), "image, text"),
    "wan.model": Layout(("blocks",), cross=True),
    "cosmos.predict2": Layout(("blocks",), cross=True),
    "lightricks.model": Layout(("transformer_blocks",), cross=True, patch=1),
    "kandinsky5.model": Layout(("visual_transformer_blocks",), cross=True),
}
UNSUPPORTED = frozenset({"lightricks.av_model"})  # built on a family, but with attentions of their own: sound beside the image
KNOWN = (
    "Flux, Flux.2, Chroma, SD3, Qwen-Image, Z-Image, Lumina 2, AuraFlow, HunyuanVideo, HunyuanImage, HiDream, OmniGen2, CogVideoX, PixelDiT, "
    "Wan, Cosmos-Predict2, LTX-Video, Kandinsky 5"
)
FLUX2 = getattr(comfy.model_base, "Flux2", ())  # older versions of ComfyUI do not have it


def _patch(network) -> tuple[int, int, int]:
    """(frames, rows, columns) of the latent that make a token."""
    size = getattr(network, "patch_size", getattr(network, "patch", None))
    if size is None:
        return network.patch_temporal, network.patch_spatial, network.patch_spatial
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    return (1, *sizes)[-3:] if len(sizes) < 3 else sizes


@dataclass(frozen=True)
class Dit:
    """A DiT whose attentions can be read."""

    name: str
    layout: Layout
    patch: tuple[int, int, int]
    places: tuple[Block, ...]
    module: str = ""  # of the network under comfy.ldm
    filled_in_front: bool = False  # the model fills short texts up, before their first token
    rotary: Rotary | None = None  # where the image's places come behind the text's

    def text_start(self, length: int, tokens: int) -> int:
        """Where a text of some length begins among the tokens that the network gets."""
        return tokens - length if self.filled_in_front else 0

    @property
    def cross(self) -> bool:
        return self.layout.cross

    def grid(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Frames, rows and columns of tokens of a latent (B, C, [frames,] H, W)."""
        return tuple(math.ceil(n / p) for n, p in zip((1, *shape[2:])[-3:], self.patch))

    def filled(self, tokens: int) -> int:
        """How many tokens the network makes of so many."""
        return -(-tokens // self.layout.multiple) * self.layout.multiple

    @property
    def in_blocks(self) -> bool:
        """Whether a second text comes in at the first block, at the end of all texts, and not behind the first text."""
        return self.module in EMBEDDERS

    def check(self, conditions: Mapping, image: int, text: int, more: int) -> None:
        """Refuses a call of the network in which the places of the text are not known, given numbers of tokens."""
        if self.rotary and conditions.get("ref_latents"):
            raise ValueError(
                f"The conditioning has reference latents, but where {self.name} has the prompt beside them is not known here. Remove the reference "
                "latents, or this model's attention nodes."
            )
        if self.rotary and more and self.filled(text) + more == self.filled(image):
            raise ValueError(
                f"Prompt and negative have as many tokens as the image, {self.filled(image)}, and cannot be told apart from it in {self.name}. Use "
                "another size of the image, or another negative."
            )

    def token_ranges(self, tokens: int, image: int, text: int) -> tuple[slice, slice] | None:
        """Where the image's and the text's tokens are in a joint attention of so many; None where it does not hold both."""
        layout = self.layout
        filled_text, filled = self.filled(text), self.filled(image)
        if tokens < layout.before + filled_text + filled:
            return None
        start = {"text, image": layout.before + filled_text, "text, rest, image": tokens - filled, "image, text": 0}[layout.order]
        words = {"image, text": filled}.get(layout.order, start - text if layout.beside else layout.before)
        return slice(start, start + image), slice(words, words + text)


def _module(model) -> str:
    """The module of a network under comfy.ldm by which its family is known; empty for none."""
    modules = [c.__module__.removeprefix("comfy.ldm.") for c in type(model.get_model_object("diffusion_model")).__mro__]
    return next((m for m in modules if m in FAMILIES), "") if modules[0] not in UNSUPPORTED else ""


def dit_of(model) -> Dit:
    """What is known of a DiT. Raises ValueError that names a network whose attention cannot be reached."""
    network, name = model.get_model_object("diffusion_model"), type(model.model).__name__
    module = _module(model)
    if not module:
        raise ValueError(
            f"{name} ({type(network).__name__}) does not route its attention through ComfyUI's hook, or not in a way that is known here. Use a "
            f"UNet model (SD1.5, SD2, SDXL) or one of: {KNOWN}."
        )
    layout = FAMILIES[module]
    if getattr(network, "pad_tokens_multiple", None):  # Z-Image
        layout = replace(layout, multiple=network.pad_tokens_multiple)
    if getattr(network, "use_cond_type_embedding", False):  # HunyuanVideo 1.5: what it sees of images and glyphs comes first
        layout = replace(layout, beside=True)
    total = sum(len(getattr(network, blocks)) for blocks in layout.blocks)
    patch = (1, layout.patch, layout.patch) if layout.patch else _patch(network)
    in_front, embedder = isinstance(model.model, FLUX2), getattr(network, "rope_embedder", None)
    rotary = Rotary(embedder.axes_dim[0], embedder.theta) if module == "lumina.model" else None
    return Dit(name, layout, patch, tuple(Block(i, total) for i in range(total)), module, in_front, rotary)


def check_joint_weights(dit: Dit, weights: Iterable[float]) -> None:
    """Refuses weights of words that joint attention cannot have."""
    low = next((w for w in weights if w < 0), None)
    if low is not None and not dit.cross:
        raise ValueError(
            f"A word has weight {low:g}, but in the joint attention of {dit.name} a weight scales how much attention a word gets; give 0 (none) "
            "or more, 1 is neutral."
        )


def additive(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A mask as (B or 1, heads or 1, queries or 1, keys), added to logits of the type of `like`."""
    mask = mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    return like.new_zeros(mask.shape).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask


class TokenCall(QKSharing):
    """One attention of a DiT in which the image takes part; the counterpart of `UnetCall`.

    `kind`: "joint" of image and text, in which only the image's queries and keys are shared, or "self" and "cross". `size` is the
    image's (frames, rows, columns) of a `latent` ([frames,] H, W); `ranges` are the tokens of image and text, `options` those of ComfyUI's
    `function`, `parted` holds a second text.
    """

    parted: Parted

    def __init__(self, kind: str, place: Block, latent: tuple, size: tuple, ranges: tuple[slice, slice], qkv: tuple, options: dict, function, *base):
        super().__init__(qkv, *base)
        self.kind, self.place, self.latent, self.size, self.options, self.function = kind, place, latent, size, options, function
        self.image, self.text = ranges
        self.heads_first = bool(options.get("skip_reshape"))
        self.width = self.q.shape[-1] if self.heads_first else self.q.shape[-1] // options["heads"]

    def shared(self, t: torch.Tensor, rows: RowSelection) -> torch.Tensor:
        if self.kind != "joint":
            return super().shared(t, rows)
        axis, out = 2 if self.heads_first else 1, t.clone()
        image = axis, self.image.start, self.image.stop - self.image.start
        out.narrow(*image).copy_(super().shared(t.narrow(*image), rows))
        return out

    def kernel(self, q, k, v, rows):
        """Of joint attention, for the image's queries alone."""
        options = dict(self.options)
        if self.kind == "joint":
            q = q[..., self.image, :]
        if options.get("mask") is not None:
            mask = additive(options["mask"], q)
            mask = mask if len(mask) == 1 else rows.of(mask)
            options["mask"] = mask if self.kind != "joint" or mask.shape[-2] == 1 else mask[..., self.image, :]
        return self.function(q, k, v, **options)

    def second_output(self, rows: RowSelection) -> torch.Tensor:
        return self.parted.second_output(self, self.function, rows)

    def columns(self, words: Sequence[int], tokens: int) -> list[int]:
        """The copies count too."""
        copies = range(max(1, (self.text.stop - self.text.start) // max(tokens, 1)))
        return [self.text.start + c + i * tokens for i in copies for c in words]

    def images(self, values: torch.Tensor) -> torch.Tensor:
        """Values (a, b, frames * h * w) of the image's tokens as (a, b, [frames,] h, w)."""
        return values.unflatten(-1, self.size if self.size[0] > 1 else self.size[1:])


_POSITIONAL = ("heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")


class Override:
    """ComfyUI's attention override during one call of the network. `active` has (run, first row, text tokens) of all that act.

    A second text of `seen` tokens comes behind the `text`, filled up; or, of a `block_text`, at the end of all texts, with what goes before one.
    """

    block_text: BlockText

    def __init__(self, dit: Dit, active: list, batch: int, shape: Sequence[int], text: int, below: Callable | None, seen: int = 0):
        self.dit, self.active, self.batch, self.below = dit, active, batch, below
        self.seen = seen + dit.layout.before if seen and dit.in_blocks else seen
        self.more, self.rotary = dit.filled(self.seen), dit.rotary and replace(dit.rotary, turns={})
        self.latent, self.size, self.text, self.count = tuple(shape[2:]), dit.grid(shape), text, {"joint": 0, "self": 0, "cross": 0}
        self.index: dict[str, int | None] = {}

    @property
    def reached(self) -> bool:
        return any(self.count.values())

    def __call__(self, function, q, k, v, *args, **kwargs):
        options = {**dict(zip(_POSITIONAL, args)), **kwargs}
        axis = 2 if options.get("skip_reshape") else 1
        queries, keys = q.shape[axis], k.shape[axis]
        kind, ranges = self._recognized(queries, keys) if len(q) == self.batch else (None, None)
        text = self._text_keys(kind, ranges, queries, keys) if len(q) == self.batch else None
        if self.more and text is None and self.rotary and queries == self.dit.filled(math.prod(self.size)):  # the image alone
            filling = queries - math.prod(self.size)
            q, k = (self.rotary.ends_moved(t, 0, 0, filling, self.more) for t in (q, k))
        if not self.more or text is None or (kind is None and self.dit.in_blocks):
            return self._attend(function, kind, ranges, text, (q, k, v), (args, kwargs), options)
        parted = Parted((q, k, v), axis, self._second(kind, ranges, text, keys), kind == "cross", options)
        out = self._attend(function, kind, ranges, text, parted.first, ((), parted.options), parted.options, parted)
        if kind is None:
            parted.alone(function)
        return out if kind == "cross" else parted.joined(out)

    def _attend(self, function, kind, ranges, text: slice | None, qkv: tuple, given: tuple, options: dict, parted: Parted | None = None):
        (q, k, v), (args, kwargs) = qkv, given
        keys, place = k.shape[2 if options.get("skip_reshape") else 1], Block(self.count[kind], len(self.dit.places)) if kind else None
        bias = None if text is None else self._bias(keys, text, place, q)
        if bias is not None:
            options = {**options, "mask": bias if options.get("mask") is None else additive(options["mask"], q) + bias}
            args, kwargs = (), options

        def base(q, k, v):
            return self.below(function, q, k, v, *args, **kwargs) if self.below else function(q, k, v, *args, **kwargs)

        if kind is None or self._is_repeated(kind, options):
            return base(q, k, v)
        self.count[kind] += 1
        active = [a for a in self.active if place.key in a[0].wanted(kind)]
        if not active:
            return base(q, k, v)
        call = TokenCall(kind, place, self.latent, self.size, ranges, (q, k, v), options, function, base, self.below is None)
        call.parted = parted
        return run_controls(call, active)

    def _second(self, kind: str | None, ranges, text: slice, keys: int) -> SecondText:
        start, rotary = self.block_text.start if self.dit.in_blocks else text.stop, self.rotary
        place = slice(start, start + self.more)
        if kind != "joint":
            return SecondText(place, self.seen, rotary=rotary)
        image = ranges[0]
        begins = place.stop if self.dit.in_blocks else image.start + self.more  # a reference frame may come first
        return SecondText(place, self.seen, begins, keys - self.more - image.stop if rotary else 0, rotary)

    def _is_repeated(self, kind: str, options: dict) -> bool:
        """Whether a block's attention comes a second time: then it is one of a branch beside the blocks, as Wan VACE has."""
        index = (options.get("transformer_options") or {}).get("block_index")
        before, self.index[kind] = self.index.get(kind), index
        return self.dit.cross and index is not None and index == before

    def _text_keys(self, kind: str | None, ranges, queries: int, keys: int) -> slice | None:
        """The text's keys in an attention, without a second text; None where it has none."""
        if kind in ("joint", "cross"):
            return ranges[1]
        own = keys if self.dit.in_blocks else keys - self.more
        alone = kind is None and queries == keys and own in (self.text, self.dit.filled(self.text)) and keys != math.prod(self.size)
        return slice(0, self.text) if alone else None

    def _bias(self, keys: int, text: slice, place: Block | None, like: torch.Tensor) -> torch.Tensor | None:
        """(rows, 1, 1, keys) to add to the logits; None for nothing."""
        found = [(first, tokens, run.attention_bias(tokens, place)) for run, first, tokens in self.active]
        biases = [(first, bias) for first, tokens, bias in found if bias is not None and tokens and self.text % tokens == 0]
        if not biases:
            return None
        key = "bias", keys, text.start, text.stop, self.batch, like.device, like.dtype, *((first, id(bias)) for first, bias in biases)
        return self.active[0][0].cache.get(key, lambda: self._placed(biases, like.new_zeros(self.batch, 1, 1, keys), text))

    def _placed(self, biases: list[tuple[int, torch.Tensor]], total: torch.Tensor, text: slice) -> torch.Tensor:
        """The sum of biases of the text's tokens; ComfyUI repeats a text shorter than another's."""
        for first, bias in biases:
            total[first : first + len(bias), 0, 0, text] += bias.repeat(1, self.text // bias.shape[1]).to(total)
        return total

    def _recognized(self, queries: int, keys: int) -> tuple[str | None, tuple[slice, slice] | None]:
        """(kind, token ranges without a second text) of an attention of so many queries and keys; None for one that is left to ComfyUI."""
        image, texts = math.prod(self.size), self.text + self.more
        if not self.dit.cross:
            ranges = self.dit.token_ranges(queries - self.more, image, self.text) if queries == keys else None
            return ("joint", ranges) if ranges else (None, None)
        if queries != image or keys not in (image, texts):
            return None, None
        turn = self.count["self"] > self.count["cross"] if image == texts else keys == texts  # self comes first in a block
        return ("cross", (slice(0, image), slice(0, self.text))) if turn else ("self", (slice(0, image), slice(0, keys)))

    def check(self) -> None:
        """Raises ValueError where no attention was recognized so far; later in a run caches of other nodes leave blocks out."""
        if not self.reached and not all(run.reached for run, *_ in self.active):
            raise ValueError(
                f"No attention of {self.dit.name} came through ComfyUI's hook with {math.prod(self.size)} tokens of the image and {self.text} of "
                "the text: another node changes its tokens, or this version of ComfyUI routes it in another way. Remove other patches from the model."
            )
