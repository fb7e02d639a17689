"""Custom Diffusion on ComfyUI's UNets: whole differences of the keys and values of cross-attention, and files of merged concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import comfy.lora
import comfy.model_management
import folder_paths
import torch
from comfy.patcher_extension import WrappersMP

from ....attention.layers import Place
from ....guidance.errors import quoted
from ....training.custom_diffusion import directions, merged, own_rows, without_start
from ..attention.unet import BaseAttention, unet_places, with_attention
from ..fingerprint import stamp, unpatched
from ..model_folder import load_tensors
from ..progress import keep
from ..prompts import encoded
from . import adapters, new_words
from .patch_key import base_keys

KEY = "controlled_diffusion.custom_diffusion"
ENDS = ("attn2.to_k", "attn2.to_v")


def layers_of(model) -> dict[str, torch.Size]:
    """Keys and values of the cross-attention of a UNet. Raises ValueError that names any other network."""
    unet_places(model)
    return {name: shape for name, shape in adapters.weights_of(model).items() if name.endswith(ENDS)}


class Differences(adapters.Adapters):
    """Differences of keys and values, which the first token, the same in every prompt, does not teach."""

    def put_on(self, model) -> None:
        super().put_on(model)
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, partial(_network, unet_places(model)))


@dataclass(frozen=True)
class KeysAndValues:
    """Which weights are trained, as `adapters.Design` for adapters."""

    home: ClassVar = Differences

    def adapters(self, model, seed: int) -> Differences:
        return Differences({name: adapters.Delta(shape) for name, shape in layers_of(model).items()})


def _attend(base: BaseAttention, q, k, v, options: dict) -> torch.Tensor:
    return base(q, without_start(k), without_start(v))


def _network(places: tuple[Place, ...], executor, x, timesteps=None, context=None, y=None, control=None, transformer_options={}, **kwargs):
    """DIFFUSION_MODEL: one call of the network while it learns."""
    if torch.is_grad_enabled():
        transformer_options = with_attention(transformer_options, {place.key: _attend for place in places})
    return executor(x, timesteps, context, y, control, transformer_options, **kwargs)


@dataclass(frozen=True)
class Concept:
    """A trained concept: the LoRA file's tensors, prompts that use its word, and what the file says of itself."""

    name: str
    prompts: tuple[str, ...]
    tensors: dict[str, torch.Tensor]
    about: dict[str, str] = field(default_factory=dict)

    def words(self, encoder: str) -> list[torch.Tensor]:
        """The words that come with the file, (vectors, dim) each."""
        return [t for k, t in self.tensors.items() if k.startswith("bundle_emb.") and k.endswith(f".{encoder}")]

    def says(self, vector: torch.Tensor, encoder: str) -> bool:
        """Whether a vector is one of theirs."""
        return any(torch.allclose(row.to(vector), vector, atol=1e-6) for table in self.words(encoder) for row in table)


def concepts_of(text: str) -> list[Concept]:
    """Concepts of lines 'name = prompt', with their files from the loras folder; a concept may have several lines."""
    prompts: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, sign, prompt = (part.strip() for part in line.partition("="))
        if not (name and sign and prompt):
            raise ValueError(
                f"The line {quoted(line)} does not say 'name = prompt'; write, for example, 'my-cat = a embedding:my-cat cat'."
            )
        prompts.setdefault(name.removesuffix(".safetensors"), []).append(prompt)
    if len(prompts) < 2:
        raise ValueError("There are fewer than two concepts to merge. Write one a line, as 'my-cat = a embedding:my-cat cat'.")
    return [Concept(name, tuple(own), *_file(name)) for name, own in prompts.items()]


def stamps(text: str) -> list[str]:
    """Changes when a file of `concepts_of` does, such as when its concept is trained anew."""
    paths = (_path(line.partition("=")[0].strip()) for line in text.splitlines())
    return [stamp(Path(path)) for path in paths if path]


def _path(name: str) -> str | None:
    return folder_paths.get_full_path("loras", f"{name.removesuffix('.safetensors')}.safetensors")


def _file(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    path = _path(name)
    if path is None:
        raise ValueError(
            f"There is no {quoted(name + '.safetensors')} in the loras folder. Train it with Train Keys and Values (Custom Diffusion), or correct the name."
        )
    return load_tensors(Path(path))


def _features(clip, prompt: str, concept: Concept | None = None) -> torch.Tensor:
    """The features (n, width) of what a prompt says, float64: without what begins, ends and fills it.

    `concept`: of its own words alone, if it has any. What follows them is nearly the same in the prompts of all concepts. Raises ValueError
    where the prompt names none of them.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    features = encoded(clip, prompt)[0][0][0].double().cpu()
    part = new_words.encoders(clip)[0]
    tokens = [token for chunk in part.tokenizer.tokenize_with_weights(prompt) for token in chunk]
    vectors = [i for i, (token, *_) in enumerate(tokens) if torch.is_tensor(token)] if concept else []
    own = [i for i in vectors if concept.says(tokens[i][0], part.key)]
    if concept and not own and concept.words(part.key):
        raise ValueError(
            f"The line {quoted(f'{concept.name} = {prompt}')} names no word that {quoted(concept.name)} was trained with. Write "
            f"embedding:{concept.name} where the word belongs, or copy the embedding file that was saved beside it into the embeddings folder."
        )
    if own or vectors:
        return features[own or vectors]
    ends = [i for i, (token, *_) in enumerate(tokens) if not torch.is_tensor(token) and token == part.tokenizer.end_token]
    return features[1 : max(2, ends[0] if ends else len(tokens))]


def _weight(model, key: str) -> torch.Tensor:
    return unpatched(model, key, model.model_state_dict(key)[key]).detach().double().cpu()


def merge(model, clip, concepts: Sequence[Concept], regular: Sequence[str]) -> dict[str, torch.Tensor]:
    """A LoRA file of whole differences with which each concept's words get the keys and values that its own file gives them."""
    layers, base = layers_of(model), base_keys(model, clip)
    for c in concepts:
        keep(*(f"{quoted(c.name)} was trained on another {k}, or with other LoRAs on it" for k, key in base.items() if c.about.get(k, key) != key))
    features = own_rows([torch.cat([_features(clip, prompt, c) for prompt in c.prompts]) for c in concepts])
    rows = torch.cat(features)
    along = directions(rows, torch.cat([_features(clip, text) for text in regular]))
    patches = [_patches(model, c, layers) for c in concepts]
    found = {}
    for layer in layers:
        comfy.model_management.throw_exception_if_processing_interrupted()
        key = f"{layer}.weight"
        weight = _weight(model, key)
        trained = [comfy.lora.calculate_weight(p.get(key, []), weight.float(), key).double() for p in patches]
        values = torch.cat([c @ w.T for c, w in zip(features, trained)])
        found[f"{layer}.diff"] = (merged(weight, rows, values, along) - weight).float()
    return found


def _patches(model, concept: Concept, layers: dict[str, torch.Size]) -> dict[str, list]:
    """ComfyUI's patches of a concept's file. Raises ValueError where it changes more than keys and values, or nothing."""
    bare = model.clone()
    bare.patches = {}
    own = adapters.patched(bare, {k: v for k, v in concept.tensors.items() if not k.startswith("bundle_emb.")}).patches
    other = sorted(key for key in own if key.removesuffix(".weight") not in layers)
    if other or not own:
        what = f"changes {other[0]}" if other else "has nothing for this model"
        raise ValueError(
            f"{quoted(concept.name)} {what}; only keys and values of cross-attention can be merged, as Custom Diffusion trains them."
        )
    return own


def save_merged(name: str, tensors: dict[str, torch.Tensor], concepts: Sequence[Concept], if_exists: str) -> str:
    """Writes the file; gives the name that it has."""
    name = adapters.LORAS.choose(name, if_exists)
    adapters.save(name, tensors, {}, {"format": "lora", "concepts": "; ".join(f"{c.name} = {p}" for c in concepts for p in c.prompts)})
    return name
