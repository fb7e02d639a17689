"""Word weights inside ComfyUI's sampling: how much attention the tokens of words get, whether or not the text encoder knows weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ....attention.alignment import align
from ....attention.call import QKSharing
from ....attention.layers import Block, Place, chosen_blocks, chosen_places
from ....attention.prompt_edits import weights_of, weights_text
from ....attention.prompt_to_prompt import ActiveEdits, Edit, Settings, Window
from ....attention.word_lists import weights_from
from ..conditionings import marked
from ..noise_levels import NoiseScale
from ..prompts import encoded, prompt_of, without_weights
from .dit import Dit, check_joint_weights, dit_of
from .hook import Control, ControlRun, install
from .unet import is_unet, unet_places


@dataclass(frozen=True)
class WordWeights(Control):
    """The control: an `edit` in which every word attends for itself, so that weights alone act, on the chosen layers (keys of places)."""

    node: ClassVar = "Word Weights"
    edit: Edit
    weights: dict[int, float]
    layers: frozenset
    places: tuple[Place, ...] = ()  # of a UNet
    dit: Dit | None = None

    def begin(self, scale: NoiseScale, noise: torch.Tensor) -> WordWeightsRun:
        return WordWeightsRun(self, scale)


class WordWeightsRun(ControlRun):
    """Word weights during one run. Prompt-to-Prompt's edit of each row from the row itself."""

    control: WordWeights

    def __init__(self, control: WordWeights, scale: NoiseScale):
        super().__init__(control, scale)
        self.places, self.dit = control.places, control.dit
        self.edits = ActiveEdits((control.edit,), control.node, self.cache)

    @property
    def acts(self) -> bool:
        return not self.reached or self.control.edit.acts(self.percent)

    def acts_on(self, place: Place | Block) -> bool:
        return place.key in self.control.layers and self.control.edit.acts(self.percent)

    def wants(self, kind: str, place: Place | Block) -> bool:
        return kind == "cross" and self.acts_on(place)

    def share_qk(self, call: QKSharing, first: int, tokens: int) -> None:
        edit = self.edits.at(0, self.percent, call.keys(tokens), call.v)
        call.edits |= {row: (row, edit) for row in range(first, first + self.images)}

    def attention_bias(self, tokens: int, place: Block | None) -> torch.Tensor | None:
        if self.dit.cross or place is None or not self.acts_on(place):
            return None
        return self.cache.get(("bias", tokens, self.images), lambda: self._bias(tokens))

    def _bias(self, tokens: int) -> torch.Tensor:
        bias, start = torch.zeros(self.images, tokens), self.dit.text_start(len(self.control.edit.own), tokens)
        for column, weight in self.control.weights.items():
            bias[:, start + column] = math.log(weight) if weight else -math.inf
        return bias


def prepare(model, clip, text: str, word_weights: str, window: Window, layers: str) -> tuple:
    """(patched model, positive, weights as text); without any weight but 1 the model itself."""
    plain, parts = without_weights(clip, text)
    positive = encoded(clip, plain)
    prompt = prompt_of(clip, plain, positive[0][0].shape[1])
    weights = weights_of(prompt, parts, [pair for line in weights_from(word_weights) for pair in line])
    fields = _unet_fields(model, layers) if is_unet(model) else _dit_fields(model, layers)
    if "dit" in fields:
        check_joint_weights(fields["dit"], weights.values())
    if not weights or window.start == window.end:
        return model, positive, "No word has a weight but 1: nothing changes."
    edit = Edit.from_alignment(align(prompt, prompt, "reweight only"), Settings(window), weights)
    control = WordWeights(edit=edit, weights=weights, **fields)
    return install(model, control), marked(positive, control.token), f"{plain}\n{weights_text(prompt, weights)}"


def _unet_fields(model, layers: str) -> dict:
    places = unet_places(model)
    return dict(places=places, layers=chosen_places(layers, places, "layers"))


def _dit_fields(model, layers: str) -> dict:
    dit = dit_of(model)
    return dict(dit=dit, layers=chosen_blocks(layers, dit.places, "layers"))
