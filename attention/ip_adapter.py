"""IP-Adapter: an image as a prompt, through a second cross-attention beside the text's (arXiv 2308.06721, section 3.2).

`out = Attn(Q, K_text, V_text) + weight * Attn(Q, K_image, V_image)` in every cross-attention layer: the same queries, a softmax of
its own for the image, then the layer's shared output projection. The unconditional prediction gets the projection of an empty
image, which the adapter was trained to take for *no image*, not the absence of image tokens.

An adapter is two parts of one file: a projection of image features to tokens as wide as the text's, and a pair `to_k_ip`,
`to_v_ip` for each cross-attention layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..guidance.errors import check_choice, quoted
from .layers import Place, names_of
from .word_lists import words_from

COMBINATIONS = ("concat", "add", "average", "batch")
SUPPORTED = "Supported are the SD1.5 and SDXL layouts base, plus, plus-face and full."
HEAD_WIDTH = 64  # of the resampler's attention, in all published files

Weights = dict[str, torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values (N, tokens, width of the layer)
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    bias = weights.get(f"{name}.bias")
    return F.linear(x, weights[f"{name}.weight"].to(x), None if bias is None else bias.to(x))


def _norm(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"].to(x), weights[f"{name}.bias"].to(x))


def multi_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Softmax attention on (B, L, heads * width)."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def project_base(weights: Weights, features: torch.Tensor) -> torch.Tensor:
    """Image embeddings (N, F) to tokens (N, T, width): one linear layer, cut into T tokens, and a norm."""
    tokens = _linear(weights, "proj", features)
    return _norm(weights, "norm", tokens.unflatten(-1, (-1, weights["norm.weight"].shape[0])))


def project_full(weights: Weights, features: torch.Tensor) -> torch.Tensor:
    """Hidden states (N, L, F) to as many tokens (N, L, width): two linear layers and a norm."""
    return _norm(weights, "proj.3", _linear(weights, "proj.2", F.gelu(_linear(weights, "proj.0", features))))


def project_plus(weights: Weights, features: torch.Tensor) -> torch.Tensor:
    """Hidden states (N, L, F) to T tokens (N, T, width): a perceiver resampler with T learned queries."""
    seen = _linear(weights, "proj_in", features)
    latents = weights["latents"].to(seen).expand(len(seen), -1, -1)
    for i in range(_depth(weights)):
        attend, feed = f"layers.{i}.0", f"layers.{i}.1"
        own = _norm(weights, f"{attend}.norm2", latents)
        q = _linear(weights, f"{attend}.to_q", own)
        k, v = _linear(weights, f"{attend}.to_kv", torch.cat([_norm(weights, f"{attend}.norm1", seen), own], 1)).chunk(2, -1)
        latents = latents + _linear(weights, f"{attend}.to_out", multi_head(q, k, v, q.shape[-1] // HEAD_WIDTH))
        inner = F.gelu(_linear(weights, f"{feed}.1", _norm(weights, f"{feed}.0", latents)))
        latents = latents + _linear(weights, f"{feed}.3", inner)
    return _norm(weights, "norm_out", _linear(weights, "proj_out", latents))


def _depth(weights: Weights) -> int:
    """Blocks of a resampler."""
    return len({key.split(".")[1] for key in weights if key.startswith("layers.")})


def _both(*names: str) -> set[str]:
    return {f"{name}.{part}" for name in names for part in ("weight", "bias")}


def _resampler_keys(depth: int) -> set[str]:
    """The names of the weights of a published resampler."""
    keys = {"latents", *_both("proj_in", "proj_out", "norm_out")}
    for i in range(depth):
        keys |= _both(f"layers.{i}.0.norm1", f"layers.{i}.0.norm2", f"layers.{i}.1.0")
        keys |= {f"layers.{i}.{part}.weight" for part in ("0.to_q", "0.to_kv", "0.to_out", "1.1", "1.3")}
    return keys


@dataclass(frozen=True)
class Kind:
    """A published layout: its weights' names by the depth, how it projects, and which weight takes the features."""

    keys: Callable[[int], set[str]]
    project: Callable[[Weights, torch.Tensor], torch.Tensor]
    entrance: str
    hidden: bool  # takes hidden states of the layer before the last, one for each patch; or else the pooled embedding


KINDS = {
    "base": Kind(lambda depth: _both("proj", "norm"), project_base, "proj.weight", False),
    "plus": Kind(_resampler_keys, project_plus, "proj_in.weight", True),  # plus and plus-face
    "full": Kind(lambda depth: _both("proj.0", "proj.2", "proj.3"), project_full, "proj.0.weight", True),
}


def _kind(projection: Weights, name: str) -> str:
    """The layout, by the names of a projection's weights."""
    keys, depth = set(projection), _depth(projection)
    if found := next((kind for kind, layout in KINDS.items() if keys == layout.keys(depth)), None):
        return found
    if {"proj.0.weight", "norm.weight"} <= keys or any(k.startswith("perceiver_resampler.") for k in keys):
        raise ValueError(
            f"{name} is a FaceID adapter: it takes the embedding of a face recognition network, which CLIP Vision does not give. {SUPPORTED}"
        )
    raise ValueError(f"{name} has an image projection of an unknown layout ({', '.join(sorted(keys)[:4])}, ...). {SUPPORTED}")


def _layers(weights: Weights, name: str) -> tuple[Pair, ...]:
    """The pairs to_k_ip, to_v_ip in the order of their numbers; both (width of the layer, width of the text)."""
    numbers = sorted({int(found[1]) for k in weights if (found := re.fullmatch(r"(\d+)\.to_[kv]_ip\.weight", k))})
    extra = [k for k in weights if not re.fullmatch(r"\d+\.to_[kv]_ip\.weight", k)]
    if extra:
        faces = any("lora" in k for k in extra)
        what = "is a FaceID adapter: it comes with a LoRA" if faces else "has weights of an unknown kind in its layers"
        raise ValueError(f"{name} {what} ({extra[0]}). {SUPPORTED}")
    pairs = [tuple(weights.get(f"{n}.to_{part}_ip.weight") for part in "kv") for n in numbers]
    if not pairs or any(
        k is None or v is None or k.ndim != 2 or k.shape != v.shape or k.shape[1] != pairs[0][0].shape[1] for k, v in pairs
    ):
        raise ValueError(
            f"{name} lacks a to_k_ip or to_v_ip in one of its {len(pairs)} layers, or their shapes differ: the file is damaged. Download it again."
        )
    return tuple(pairs)


@dataclass(frozen=True)
class Adapter:
    """An adapter as it was read: `kind` (a key of KINDS), the projection's weights, and (to_k_ip, to_v_ip) of each layer.

    Layers are in the order of the published files: the encoder's, the decoder's, the middle's. Weights may have any precision
    and device; results have those of the features.
    """

    kind: str
    projection: Weights
    layers: tuple[Pair, ...]
    name: str = "The adapter"

    @property
    def features(self) -> int:
        """Width of the image features that it takes."""
        return self.projection[KINDS[self.kind].entrance].shape[1]

    @property
    def hidden(self) -> bool:
        """Whether it takes the encoder's hidden states (N, L, features) instead of its embedding (N, features)."""
        return KINDS[self.kind].hidden

    @property
    def width(self) -> int:
        """Width of its tokens, which is the text's."""
        return self.layers[0][0].shape[1]

    def tokens(self, features: torch.Tensor) -> torch.Tensor:
        """The tokens (N, T, width) of N images. Raises ValueError where the features have another width."""
        if features.ndim != 2 + self.hidden or features.shape[-1] != self.features:
            raise ValueError(
                f"{self.name} takes {self.features} features from CLIP Vision, but got {features.shape[-1]}: it was made for another encoder. "
                "Load the CLIP Vision model that its page names (1024 and 1280: ViT-H, 1280 and 1664: ViT-bigG)."
            )
        return KINDS[self.kind].project(self.projection, features)

    def keys_values(self, features: torch.Tensor) -> tuple[Pair, ...]:
        """Keys and values (N, T, width of the layer) of N images for every layer."""
        tokens = self.tokens(features)
        return tuple((F.linear(tokens, k.to(tokens)), F.linear(tokens, v.to(tokens))) for k, v in self.layers)

    def check_fits(self, model: str, widths: Sequence[int], text_width: int) -> None:
        """Refuses a model whose cross-attention layers have other widths than the adapter's, or whose text has."""
        own = [k.shape[0] for k, _ in self.layers]
        if own != list(widths) or self.width != text_width:
            raise ValueError(
                f"{self.name} was made for {len(own)} cross-attention layers of widths {_counts(own)} and text of width {self.width}, but {model} "
                f"has {len(widths)} of {_counts(widths)} and text of width {text_width}. Load the adapter for this model's family."
            )


def _counts(widths: Sequence[int]) -> str:
    return ", ".join(f"{list(widths).count(w)} x {w}" for w in sorted(set(widths)))


_IN_UNET = re.compile(r"unet\.(.+\.processor)\.(.+)")


def _unet_order(path: str) -> tuple[int, list[int]]:
    """Where a cross-attention of a UNet, under its name in diffusers, comes in the published files."""
    return ("down_blocks", "up_blocks", "mid_block").index(path.partition(".")[0]), [int(n) for n in re.findall(r"\d+", path)]


def _published(weights: Weights) -> Weights:
    """Weights under the names of published files.

    The reference training script leaves `image_proj_model`, `adapter_modules` and the whole `unet`, which holds the layers too; they may be
    there alone, as safetensors files hold shared tensors once.
    """
    found = {re.sub(r"^image_proj_model\.", "image_proj.", re.sub(r"^adapter_modules\.", "ip_adapter.", k)): v for k, v in weights.items()}
    if any(k.startswith("ip_adapter.") for k in found):
        return found
    inside = {k: match for k in weights if (match := _IN_UNET.fullmatch(k))}
    paths = sorted({match[1] for match in inside.values()}, key=_unet_order)
    return found | {f"ip_adapter.{paths.index(match[1])}.{match[2]}": weights[k] for k, match in inside.items()}


def recognize(weights: Weights, name: str) -> Adapter:
    """The adapter in the tensors of a file, by their names and shapes. Raises ValueError that names what is not supported."""
    weights = _published(weights)
    projection, layers = (
        {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)} for prefix in ("image_proj.", "ip_adapter.")
    )
    if not projection or not layers:
        raise ValueError(
            f"{name} is no IP-Adapter for a UNet: it has {len(projection)} weights in 'image_proj' and {len(layers)} in 'ip_adapter', "
            f"beside {', '.join(sorted({k.split('.')[0] for k in weights})[:4])}. {SUPPORTED}"
        )
    found = Adapter(_kind(projection, name), projection, _layers(layers, name), name)
    try:
        images = torch.empty(1, *[2] * found.hidden, found.features, device="meta")
        found.keys_values(images)
    except (RuntimeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"{name} is damaged: the shapes of its weights do not fit together, so that it makes no tokens of width {found.width} ({error}). "
            "Download it again."
        ) from error
    return found


@dataclass(frozen=True)
class ImagePrompt:
    """Keys and values, for every layer, of N images and of the empty image, (N, T, width) and (1, T, width).

    `combine`: all tokens in one softmax (`concat`), a softmax for each image and the sum of the results (`add`), or image i for
    image i of the batch (`batch`). `average` is one image already, see `image_prompt`.
    """

    images: tuple[Pair, ...]
    nothing: tuple[Pair, ...]
    combine: str = "concat"

    @property
    def count(self) -> int:
        """How many images there are."""
        return self.images[0][0].shape[0]

    def terms(self, images: Pair, nothing: Pair, shown: Sequence[bool], size: int) -> list[Pair]:
        """Keys and values of the attentions to add up in a layer, whose pairs these are, for all rows of a batch.

        `shown` says for each part of the batch whether it sees the images or the empty one; a part has `size` rows.
        """
        seen, blank = self._parts(images), self._parts(nothing)
        if size % len(seen[0][0]):
            raise ValueError(
                f"There are {len(seen[0][0])} images for a batch of {size} images; with combine 'batch' give one image, or one for each image."
            )
        return [tuple(_rows([a if s else b for s in shown], size) for a, b in zip(*both)) for both in zip(seen, blank)]

    def _parts(self, pair: Pair) -> list[Pair]:
        """The pairs of the attentions to add up, each of one image for all images or of one for each; of the empty image as many."""
        count = self.count
        if self.combine == "concat":
            return [tuple(t.flatten(0, 1)[None] if len(t) == count else t.repeat(1, count, 1) for t in pair)]
        if self.combine == "add":
            return [tuple(t[i % len(t)][None] for t in pair) for i in range(count)]
        return [pair]


def _rows(parts: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """(1 or n, T, C) tensors, each repeated to `size` rows, one under the other."""
    return torch.cat([p.repeat(size // len(p), 1, 1) for p in parts])


def image_prompt(adapter: Adapter, features: torch.Tensor, empty: torch.Tensor, combine: str = "concat") -> ImagePrompt:
    """The prompt of images with these features (N, ...). `empty` (1, ...) are those of no image: zeros where the adapter takes
    the embedding, and those of a zero image where it takes hidden states. `average` takes the mean of the features."""
    check_choice("combine", combine, COMBINATIONS)
    if combine == "average":
        features = features.mean(0, keepdim=True)
    return ImagePrompt(adapter.keys_values(features), adapter.keys_values(empty), combine)


def decoupled(
    text: torch.Tensor, q: torch.Tensor, terms: Sequence[Pair], weight: float, attention: Attention,
    rows: torch.Tensor | None = None, mask: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The text's attention (B, L, C) plus `weight` times the images', with the same queries (equation 8 of the paper).

    `attention(q, k, v)` is softmax attention on (R, L, C); `terms` hold (R, T, C) keys and values. Only `rows` (R,) change where they
    are given; the others stay bit for bit. `mask` (R, L, 1) scales the images' part.
    """
    seen = q if rows is None else q[rows]
    first, *more = (attention(seen, k, v) for k, v in terms)
    image = sum(more, first).to(text)
    if mask is not None:
        image = image * mask.to(image)
    return text.add(image, alpha=weight) if rows is None else text.index_add(0, rows, image, alpha=weight)


def mask_tokens(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A mask (M, H, W) as weights of a layer's tokens, (M, height * width, 1)."""
    small = F.interpolate(mask[:, None].float(), (height, width), mode="bilinear", antialias=True)
    return small.flatten(2).transpose(1, 2)


_ENTRY = re.compile(r"(.+):(-?\d+(?:\.\d+)?|-?\.\d+)")


def layer_weights(text: str, layers: Sequence[Place]) -> list[float]:
    """A factor for each layer from a text such as `all:0, output3-5:1, input4.1:0.5, 1/2:0.3`; later entries win, all else is 1.

    Raises ValueError with the entry that cannot be read, or that names no layer of the model.
    """
    weights = dict.fromkeys(layers, 1.0)
    for entry in words_from(text):
        match = _ENTRY.fullmatch(entry.replace(" ", ""))
        chosen = Place.named(match[1], layers) if match else []
        if not chosen:
            raise ValueError(
                f"layer_weights has {quoted(entry)}, which is {'no layer of this model' if match else 'no NAME:WEIGHT'}. Write names with "
                f"weights, such as 'all:0, output:0.5', of: {names_of(layers)}"
            )
        weights |= dict.fromkeys(chosen, float(match[2]))
    return list(weights.values())
