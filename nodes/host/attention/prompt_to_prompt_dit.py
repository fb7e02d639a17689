"""Prompt-to-Prompt on DiTs.

Where image and text share one attention, the target takes over the source's queries and keys of the image (arXiv 2508.07519): the
layout is the source's, while text and all values stay the target's, so that no alignment of words is needed. Where text has an attention
of its own, it is edited as in a UNet. Words say where the local blend lets the edit be, and how strongly they are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ....attention.layers import Block, chosen_blocks
from ....attention.prompt_edits import Scene, Words
from ....attention.prompt_to_prompt import Rows, Settings
from ....guidance.schedules import NoiseScale
from ..conditionings import marked
from ..prompts import as_filled_rows
from .dit import Dit, TokenCall, dit_of
from .hook import install
from .prompt_to_prompt import Editing, PromptToPrompt, scene_of

BEST = {  # blocks whose maps are cleanest, by network and number of blocks (arXiv 2508.07519, section 3.3)
    ("modules.diffusionmodules.mmdit", 24): (4, 5, 7, 8, 9, 10),
    ("modules.diffusionmodules.mmdit", 38): (16, 18, 20, 21, 24),
    ("flux.model", 57): (11, 12, 14, 17, 18),
}
BLUR = 1.0  # of the maps, in tokens
BLEND_END = 0.5  # of the sampling, for joint attention; a blend that starts later goes on to the end


@dataclass(frozen=True)
class DitPromptToPrompt(PromptToPrompt):
    """The control for a DiT; `lengths` of the texts of the source and the targets, before they were filled up."""

    dit: Dit | None = None
    lengths: tuple[int, ...] = ()

    def blended(self, words: str, protect: str, **shape) -> PromptToPrompt:
        return super().blended(words, protect, **{"blur": BLUR, **shape})

    def begin(self, scale: NoiseScale, noise: torch.Tensor) -> DitEditing:
        self.runs[:] = [DitEditing(self, scale, tuple(noise.shape[-2:]))]
        return self.runs[0]


def map_blocks(dit: Dit) -> frozenset[int]:
    """The blocks for masks: those that were measured, else five in the middle."""
    total = len(dit.places)
    known = BEST.get((dit.module, total))
    return frozenset(known or range(max(total // 2 - 2, 0), min(total // 2 + 3, total)))


class DitEditing(Editing):
    """Prompt-to-Prompt on a DiT during one run."""

    control: DitPromptToPrompt

    def __init__(self, control: DitPromptToPrompt, scale: NoiseScale, size: tuple[int, int]):
        super().__init__(control, scale, size)
        self.dit, self.length = control.dit, max(control.lengths)

    def map_layers(self) -> frozenset[int]:
        return map_blocks(self.control.dit)

    @property
    def acts(self) -> bool:
        unequal = len(set(self.control.lengths)) > 1
        edits = self.dit.cross and any(edit.acts(self.percent) for edit in self.control.edits)
        weights = any(self._weights(1 + n) for n in range(self.rows.targets))
        return not self.reached or unequal or edits or weights or self.watching or self._open

    @property
    def _open(self) -> bool:
        settings = self.control.settings
        return settings.alpha > 0 and self.percent in settings.self

    def _exchanges(self, place: Block) -> bool:
        return self._open and place.key in self.control.self

    def wants(self, kind: str, place: Block) -> bool:
        if kind in ("joint", "self") and self._exchanges(place):
            return True
        edits = place.key in self.control.cross and any(edit.acts(self.percent) for edit in self.control.edits)
        return (kind != "self" and self.looks(place)) or (kind == "cross" and edits)

    def leaning(self, tokens: int, place: Block | None) -> torch.Tensor | None:
        made, control = torch.zeros(self.rows.total, tokens), self.control
        weighs = place is not None and place.key in control.cross
        for branch, length in enumerate(control.lengths):
            rows = self.rows.source if branch == 0 else self.rows.target(branch - 1)
            lead = self.dit.lead(length, tokens)
            if not self.dit.filled_in_front:
                made[rows.start : rows.stop, length : self.length] = -math.inf
            for column, weight in self._weights(branch).items() if branch and weighs else ():
                made[rows.start : rows.stop, lead + column] += math.log(weight) if weight else -math.inf
        return made if made.any() else None

    def _weights(self, branch: int) -> dict[int, float]:
        """The weights of a target's columns now; edits of cross-attention have theirs in the probabilities."""
        if self.dit.cross:
            return {}
        edit, weights = self.control.edits[branch - 1], self.control.scene.weights[branch - 1]
        return {c: w for c, w in weights.items() if self.percent in edit.windows.get(c, self.control.settings.cross)}

    def borrow(self, call: TokenCall, first: int, tokens: int) -> None:
        if call.kind == "cross" or self._exchanges(call.place):
            super().borrow(call, first, tokens)

    def edit(self, call: TokenCall, first: int, tokens: int) -> None:
        if call.kind != "cross":
            if self._exchanges(call.place):
                self._blend_self(call, first)
            return
        source = [first + r for r in self.rows.source]
        for number, moment in self._edits(call, first, tokens):
            if not moment.copies:
                call.put_edited(source, [first + r for r in self.rows.target(number)], moment)

    def see(self, call: TokenCall, first: int, tokens: int) -> None:
        if call.kind == "self" or not self.looks(call.place) or not call.covers(self.size):
            return
        for branch, length in enumerate(self.control.lengths):
            rows = self.rows.source if branch == 0 else self.rows.target(branch - 1)
            self.blending.add(self._look(call, [first + r for r in rows], tokens, self.dit.lead(length, tokens)), branch)

    def _look(self, call: TokenCall, rows: list[int], tokens: int, lead: int) -> Callable[[tuple[int, ...]], torch.Tensor]:
        """The map (images, h, w) of columns; of a video, where they are looked at in any frame."""

        def look(columns: tuple[int, ...]) -> torch.Tensor:
            found = call.shares(rows, tokens, [[lead + c for c in columns]])[:, 0]
            return found.unflatten(-1, call.size).amax(1)

        return look


def _checked(dit: Dit, scene: Scene) -> None:
    """Refuses weights that joint attention cannot have."""
    low = [w for weights in scene.weights for w in weights.values() if w < 0]
    if low and not dit.cross:
        raise ValueError(
            f"word_weights has {low[0]:g}, but in the joint attention of {dit.name} a weight scales how much a word is looked at; give 0 (not at "
            "all) or more, 1 is neutral."
        )


def _explained(dit: Dit, scene: Scene) -> str:
    if dit.cross:
        return scene.text()
    return f"{dit.name}: the image's queries and keys are taken over; the words serve weights and the local blend.\n\n{scene.text()}"


def prepared(
    model, clip, prompts: tuple[str, list[str]], operation: str, words: Words, settings: Settings, layers: tuple[str, str], blend: tuple[float, float],
    latent: Callable[[int], tuple[dict, int]],
) -> tuple:  # fmt: skip
    """The same as `prompt_to_prompt.prepared` for a DiT."""
    dit = dit_of(model)
    scene, known = scene_of(model, clip, prompts, operation, words)
    _checked(dit, scene)
    batch, images = latent(len(scene.prompts))
    lengths = tuple(c[0][0].shape[1] for c in known)
    times = (1,) * len(known)
    positive = as_filled_rows(known, images, dit.filled_in_front)
    end = 1.0 if dit.cross or blend[1] >= BLEND_END else BLEND_END
    control = DitPromptToPrompt(
        rows=Rows(images, len(scene.alignments)),
        edits=tuple(edit.filled(max(lengths)) for edit in scene.edits(settings, times)),
        settings=settings,
        places=(),
        pixels=model.get_model_object("latent_format").spacial_downscale_ratio,
        cross=chosen_blocks(layers[0], dit.places, "cross_layers"),
        self=chosen_blocks(layers[1], dit.places, "self_layers"),
        scene=scene,
        times=times,
        blend=scene.blend(words.blend, words.protect, times, threshold=blend[0], start=blend[1], end=end, spread=0, blur=BLUR),
        dit=dit,
        lengths=lengths,
    )
    return install(model, control), marked(positive, control.token, 1 + control.rows.targets), batch, _explained(dit, scene)
