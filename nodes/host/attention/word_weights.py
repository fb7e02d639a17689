"""Word weights inside ComfyUI's sampling: how much attention the tokens of words get, whether or not the text encoder knows weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ....attention.alignment import align
from ....attention.call import QKSharing
from ....attention.layers import Block, chosen
from ....attention.prompt_edits import weights_of, weights_text
from ....attention.prompt_to_prompt import ActiveEdits, Edit, Settings, Window
from ....attention.word_lists import weights_from
from ..conditionings import marked
from ..noise_levels import NoiseScale
from ..prompts import encoded, prompt_of, without_weights
from .dit import check_joint_weights
from .hook import NONE, Control, ControlRun, install, network_of


class WordWeightsRun(ControlRun):
    """Word weights during one run. Prompt-to-Prompt's edit of each row from the row itself."""

    control: WordWeights

    def __init__(self, control: WordWeights, scale: NoiseScale, noise: torch.Tensor):
        super().__init__(control, scale, noise)
        self.edits = ActiveEdits((control.edit,), control.node, self.cache)

    @property
    def acts(self) -> bool:
        return bool(self.weighted)

    @property
    def weighted(self) -> frozenset:
        """The keys of the layers in which words have weights now."""
        return self.control.layers if self.control.edit.acts(self.percent) else NONE

    def wanted(self, kind: str) -> frozenset:
        return self.weighted if kind == "cross" else NONE

    def share_qk(self, call: QKSharing, first: int, tokens: int) -> None:
        edit = self.edits.at(0, self.percent, call.keys(tokens), call.v)
        call.edits |= {row: (row, edit) for row in range(first, first + self.images)}

    def attention_bias(self, tokens: int, place: Block | None) -> torch.Tensor | None:
        if self.dit.cross or place is None or place.key not in self.weighted:
            return None
        return self.cache.get(("bias", tokens, self.images), lambda: self._bias(tokens))

    def _bias(self, tokens: int) -> torch.Tensor:
        bias, start = torch.zeros(self.images, tokens), self.dit.text_start(len(self.control.edit.own), tokens)
        for column, weight in self.control.weights.items():
            bias[:, start + column] = math.log(weight) if weight else -math.inf
        return bias


@dataclass(frozen=True)
class WordWeights(Control):
    """The control: an `edit` in which every word attends for itself, so that weights alone act, on the chosen layers (keys of places)."""

    node: ClassVar = "Word Weights"
    run: ClassVar = WordWeightsRun
    edit: Edit
    weights: dict[int, float]
    layers: frozenset


def prepare(model, clip, text: str, word_weights: str, window: Window, layers: str) -> tuple:
    """(patched model, positive, weights as text); without any weight but 1 the model itself."""
    plain, parts = without_weights(clip, text)
    positive = encoded(clip, plain)
    prompt = prompt_of(clip, plain, positive[0][0].shape[1])
    weights = weights_of(prompt, parts, [pair for line in weights_from(word_weights) for pair in line])
    network = network_of(model)
    keys = chosen(layers, network["places"], "layers")
    if network["dit"]:
        check_joint_weights(network["dit"], weights.values())
    if not weights or window.start == window.end:
        return model, positive, "No word has a weight but 1: nothing changes."
    edit = Edit.from_alignment(align(prompt, prompt, "reweight only"), Settings(window), weights)
    control = WordWeights(edit, weights, keys, **network)
    return install(model, control), marked(positive, control.token), f"{plain}\n{weights_text(prompt, weights)}"
