"""Prompt-to-Prompt on DiTs.

Where image and text share one attention, the target takes over the source's queries and keys of the image (arXiv 2508.07519): the
layout is the source's, while text and all values stay the target's, so that no alignment of words is needed. Where text has an attention
of its own, it is edited as in a UNet. Words say where the local blend lets the edit act, and how much attention they get.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ....attention.layers import Block
from ....attention.prompt_edits import PromptEdits
from ..conditionings import marked
from ..noise_levels import NoiseScale
from ..prompts import as_filled_rows
from .dit import Dit, check_joint_weights, dit_of
from .hook import install
from .prompt_to_prompt import PromptToPrompt, PromptToPromptRun, Task, batch_latent

BEST = {  # blocks whose maps are cleanest, by network and number of blocks (arXiv 2508.07519, section 3.3)
    ("modules.diffusionmodules.mmdit", 24): (4, 5, 7, 8, 9, 10),
    ("modules.diffusionmodules.mmdit", 38): (16, 18, 20, 21, 24),
    ("flux.model", 57): (11, 12, 14, 17, 18),
}
BLUR = 1.0  # of the maps, in tokens


class DitPromptToPromptRun(PromptToPromptRun):
    """Prompt-to-Prompt on a DiT during one run."""

    control: DitPromptToPrompt

    def __init__(self, control: DitPromptToPrompt, scale: NoiseScale, noise: torch.Tensor):
        super().__init__(control, scale, noise)
        self.length, self.weights_now = max(control.lengths), ()

    def layers_for_maps(self) -> frozenset[int]:
        return map_blocks(self.control.dit)

    def on_evaluate(self, conds, x, level):
        super().on_evaluate(conds, x, level)
        self.weights_now = tuple(tuple(self._weights(1 + n).items()) for n in range(self.rows.targets))

    @property
    def acts(self) -> bool:
        return bool(self.shared or self.mapped or (self.dit.cross and self.edited)) or any(self.weights_now) or len(set(self.control.lengths)) > 1

    def text_start(self, branch: int, tokens: int) -> int:
        return self.dit.text_start(self.control.lengths[branch], tokens)

    def attention_bias(self, tokens: int, place: Block | None) -> torch.Tensor | None:
        weights = self.weights_now if place is not None and place.key in self.control.cross_layers else ()
        return self.cache.get(("bias", tokens, weights), lambda: self._bias(tokens, ((), *weights)))

    def _bias(self, tokens: int, weights: tuple) -> torch.Tensor | None:
        """What hides the filling of shorter texts, and weighs words: (column, weight) of each text."""
        bias = torch.zeros(self.rows.total, tokens)
        for number, length in enumerate(self.control.lengths):
            rows, start = self.branch(number, 0), self.text_start(number, tokens)
            if not self.dit.filled_in_front:
                bias[rows[0] : rows[-1] + 1, length : self.length] = -math.inf
            for column, weight in weights[number] if number < len(weights) else ():
                bias[rows[0] : rows[-1] + 1, start + column] += math.log(weight) if weight else -math.inf
        return bias if bias.any() else None

    def _weights(self, branch: int) -> dict[int, float]:
        """The weights of a target's columns now; edits of cross-attention have theirs in the probabilities."""
        if self.dit.cross:
            return {}
        edit, weights = self.control.edits[branch - 1], self.control.prompts.weights[branch - 1]
        return {c: w for c, w in weights.items() if self.percent in edit.windows.get(c, self.control.settings.cross)}


@dataclass(frozen=True)
class DitPromptToPrompt(PromptToPrompt):
    """The control for a DiT; `lengths` of the texts of the source and the targets, before they were filled up."""

    run: ClassVar = DitPromptToPromptRun
    lengths: tuple[int, ...] = ()

    def blended(self, words: str, protect: str, **shape) -> PromptToPrompt:
        return super().blended(words, protect, **{"blur": BLUR, **shape})


def map_blocks(dit: Dit) -> frozenset[int]:
    """The blocks for masks: those that were measured, else five in the middle."""
    total = len(dit.places)
    known = BEST.get((dit.module, total))
    return frozenset(known or range(max(total // 2 - 2, 0), min(total // 2 + 3, total)))


def _explained(dit: Dit, prompts: PromptEdits) -> str:
    if dit.cross:
        return prompts.text()
    return f"{dit.name}: the image's queries and keys are taken over; the words serve weights and the local blend.\n\n{prompts.text()}"


def prepare(model, clip, task: Task) -> tuple:
    """The same as `prompt_to_prompt.prepare` for a DiT."""
    dit = dit_of(model)
    prompts, conditionings = task.prompts(model, clip)
    check_joint_weights(dit, [w for weights in prompts.weights for w in weights.values()])
    latent, images = batch_latent(model, task.latent, len(conditionings))
    lengths, times = tuple(c[0][0].shape[1] for c in conditionings), (1,) * len(conditionings)
    fields = task.fields(model, prompts, images, times, dit.places)
    edits = tuple(edit.filled(max(lengths)) for edit in prompts.edits(task.settings, times))
    control = DitPromptToPrompt(edits=edits, dit=dit, lengths=lengths, **fields)
    positive = as_filled_rows(conditionings, images, dit.filled_in_front)
    return install(model, control), marked(positive, control.token, len(conditionings)), latent, _explained(dit, prompts)
