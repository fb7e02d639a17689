"""Prompt-to-Prompt inside the host's sampling: source and target prompts as rows of one conditioning, edited by the attention hook."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import comfy.model_management
import torch

from ...attention.alignment import Alignment, Prompt, align, unknown_word, weights_from, windows_from, words_from
from ...attention.local_blend import Blending, Columns, LocalBlend, Pair, word_map
from ...attention.prompt_to_prompt import Edit, Moment, Rows, Settings, Window
from ...guidance.schedules import NoiseScale
from .attention import KEY, Call, Place, Run, blend_places, chosen_places, install, marked, unet_places
from .joint_attention import Block
from .latents import check_pictures
from .lending import taken
from .prompts import as_rows, encoded, prompt_of
from .shared_noise import with_shared_noise

MISSING = (
    "The model comes from P2P Attention Patch, but none of the conditionings that are sampled is the 'positive' of that node. Connect it to "
    "the sampler's positive (through ControlNet and the like if you want), or use the model from before the node."
)


@dataclass(frozen=True)
class PromptToPrompt:
    """The control: `edits` of the targets, on the layers of `cross` and `self` (keys of places), with a local blend or none."""

    rows: Rows
    edits: tuple[Edit, ...]
    settings: Settings
    places: tuple[Place, ...]
    pixels: int  # of a cell of the latent
    cross: frozenset[tuple[str, int, int]]
    self: frozenset[tuple[str, int, int]]
    scene: Scene
    times: tuple[int, ...]  # how often the conditionings of the source and the targets are repeated
    blend: LocalBlend | None = None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    runs: list[Editing] = field(default_factory=list, compare=False)  # the last one, for who wants to look at its masks

    def blended(self, words: str, protect: str, **shape) -> PromptToPrompt:
        """The same with another local blend; `shape` as of `LocalBlend`."""
        return replace(self, blend=self.scene.blend(words, protect, self.times, **shape), runs=[])

    def begin(self, scale: NoiseScale, noise: torch.Tensor) -> Editing:
        self.runs[:] = [Editing(self, scale, tuple(noise.shape[-2:]))]
        return self.runs[0]


class Editing(Run):
    """Prompt-to-Prompt during one run."""

    def __init__(self, control: PromptToPrompt, scale: NoiseScale, size: tuple[int, int]):
        super().__init__(control.token, scale, MISSING)
        self.control, self.rows, self.size, self.places = control, control.rows, size, control.places
        self.blending = Blending(control.blend, control.rows) if control.blend else None
        self.maps = self.map_layers() if control.blend else frozenset()
        self.moments: dict[tuple, Moment | None] = {}

    def map_layers(self) -> frozenset:
        """The keys of the layers whose maps make masks."""
        return frozenset(p.key for p in blend_places(self.places, self.size))

    def sampler(self, sampler, noise, sigmas, seed, device):
        first = noise[: self.rows.pictures].to(device, torch.float32)
        return with_shared_noise(sampler, first, 1 + self.rows.targets, sigmas, seed)

    def start(self, conds, x, sigma):
        super().start(conds, x, sigma)
        one, blank = self.rows.pictures, [1] * (x.ndim - 1)
        if len(x) != self.rows.total:
            raise ValueError(
                f"{len(x)} pictures are sampled, but P2P Attention Patch made {self.rows.total} rows: {one} of the source, then {one} for each of "
                f"{self.rows.targets} target(s). Connect its 'latent' to the sampler, or with an inversion choose branches 'direct' and as many "
                "pictures in batch_size as were inverted."
            )
        if sigma >= self.scale.sigmas[0] * (1 - 1e-5) and not torch.equal(x, x[:one].repeat(len(x) // one, *blank)):
            raise ValueError(
                "Source and targets start from different noise, so that their maps do not belong together. Connect the 'latent' of P2P "
                "Attention Patch (its batch_index gives all the same noise) and a noise that heeds it, such as RandomNoise; with an inversion, "
                "as many pictures in batch_size as were inverted."
            )

    def before(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        if self.blending is None:
            return x
        mask = self.blending.mask(self.size) if self.blending.blend.acts(self.scale.percent(sigma)) else None
        self.blending.at(sigma)
        return x if mask is None else self.blending.blended(x, mask)

    def after(self, denoised: torch.Tensor) -> torch.Tensor:
        if self.blending is None or not self.blending.blend.acts(self.percent):
            return denoised
        mask = self.blending.mask(self.size)
        if mask is None:
            return denoised
        self.blending.note(self.percent, mask)
        return self.blending.blended(denoised, mask)

    def end(self) -> None:
        super().end()
        self.moments.clear()
        if self.blending is not None:
            self.blending.end()

    def look(self, conds, x, sigma):
        before = self.percent
        super().look(conds, x, sigma)
        if self.percent != before:
            self.moments.clear()

    def moment(self, number: int, columns: int, device: torch.device) -> Moment | None:
        """The edit of a target now, for so many keys."""
        place = number, columns, device
        if place not in self.moments:
            edit = self.control.edits[number]
            more = columns - len(edit.own)
            if more < 0:
                raise ValueError(
                    f"The positive has {columns} tokens, but P2P Attention Patch made {len(edit.own)}: a node between cut it. Remove that node."
                )
            self.moments[place] = (edit.extended(more) if more else edit).at(self.percent, device)
        return self.moments[place]

    @property
    def watching(self) -> bool:
        """Whether the blend needs maps now."""
        return self.blending is not None and self.reads and (self.percent < self.blending.blend.end or self.blending.blend.end == 1.0)

    def looks(self, place: Place | Block) -> bool:
        """Whether a layer's maps make masks now."""
        return self.watching and place.key in self.maps

    def wants(self, kind: str, place: Place) -> bool:
        control = self.control
        if kind == "self":
            return place.key in control.self and control.settings.alpha > 0 and self.percent in control.settings.self
        edits = place.key in control.cross and any(edit.acts(self.percent) for edit in control.edits)
        return edits or self.looks(place)

    def _edits(self, call: Call, first: int, tokens: int) -> list[tuple[int, Moment]]:
        """(number, edit) of the targets that are edited in this cross-attention now."""
        if call.kind != "cross" or call.place.key not in self.control.cross:
            return []
        columns = call.columns(first, tokens)
        found = [(n, self.moment(n, columns, call.q.device)) for n in range(self.rows.targets)]
        return [(n, moment) for n, moment in found if moment is not None]

    def borrow(self, call: Call, first: int, tokens: int) -> None:
        whole = range(self.rows.targets) if call.kind != "cross" else [n for n, moment in self._edits(call, first, tokens) if moment.copies]
        for number in whole:
            for own, source in zip(self.rows.target(number), self.rows.source):
                call.lender[first + own] = first + source

    def edit(self, call: Call, first: int, tokens: int) -> None:
        if call.kind == "self":
            self._blend_self(call, first)
            return
        edits = [(n, moment) for n, moment in self._edits(call, first, tokens) if not moment.copies]
        source = call.probabilities([first + r for r in self.rows.source], tokens) if edits else None
        for number, moment in edits:
            rows = [first + r for r in self.rows.target(number)]
            own = call.probabilities(rows, tokens) if moment.needs_own or not call.plain else None
            call.put(rows, moment(source, own), own, tokens)

    def _blend_self(self, call: Call, first: int) -> None:
        alpha = self.control.settings.alpha
        if alpha < 1:
            rows = [first + r for n in range(self.rows.targets) for r in self.rows.target(n)]
            call.put_output(rows, alpha * taken(call.out, rows) + (1 - alpha) * call.own_output(rows))

    def see(self, call: Call, first: int, tokens: int) -> None:
        if call.kind == "cross" and self.looks(call.place) and call.size is not None and call.covers(self.size):
            for branch in range(1 + self.rows.targets):
                row = first + branch * self.rows.pictures
                p = call.looked_at(list(range(row, row + self.rows.pictures)), tokens)
                self.blending.add(lambda columns, p=p: call.pictures(word_map(p, columns)[:, None])[:, 0], branch)


@dataclass(frozen=True)
class Words:
    """What the user says of words, as the node's texts."""

    weights: str = ""
    windows: str = ""
    blend: str = ""
    protect: str = ""


@dataclass(frozen=True)
class Scene:
    """A source prompt and its targets, aligned. Two targets may be one text with different weights."""

    alignments: tuple[Alignment, ...]
    weights: tuple[dict[int, float], ...]  # of columns, for each target
    weighted: tuple[tuple[int, ...], ...]  # words of each target that have a weight
    words: Words

    @classmethod
    def of(cls, source: Prompt, targets: Sequence[Prompt], operation: str, words: Words) -> Scene:
        lines = weights_from(words.weights) or [[]]
        if len(targets) == 1:
            targets = list(targets) * len(lines)
        if len(lines) not in (1, len(targets)):
            raise ValueError(
                f"word_weights has {len(lines)} lines for {len(targets)} targets. Give one line for all of them, one for each, or one target for "
                "all lines."
            )
        lines = lines * len(targets) if len(lines) == 1 else lines
        for words_of_line in {w for line in lines for w, _ in line}:
            if not any(t.find(words_of_line) for t in targets):
                raise unknown_word(words_of_line, targets)
        weights = tuple(_weights(target, line) for target, line in zip(targets, lines))
        weighted = tuple(tuple(i for w, _ in line for i in _found(target, w)) for target, line in zip(targets, lines))
        return cls(tuple(align(source, t, operation) for t in targets), weights, weighted, words)

    @property
    def prompts(self) -> list[Prompt]:
        return [self.alignments[0].source, *(a.target for a in self.alignments)]

    def edits(self, settings: Settings, times: Sequence[int]) -> tuple[Edit, ...]:
        """The edits of all targets; `times` is how often the source's and the targets' conditionings are repeated."""
        windows, made = windows_from(self.words.windows), []
        for phrase, _ in windows:
            if not any(a.target.find(phrase) for a in self.alignments):
                raise unknown_word(phrase, self.prompts[1:])
        for alignment, weights, n in zip(self.alignments, self.weights, times[1:]):
            own = {c: Window(*w) for phrase, w in windows for c in alignment.target.columns(_found(alignment.target, phrase))}
            made.append(Edit.of(alignment, settings, weights, own).repeated(times[0], n))
        return tuple(made)

    def blend(self, words: str, protect: str, times: Sequence[int], **shape) -> LocalBlend | None:
        """The local blend of words, and of words to protect; None where there are none. `shape` as of `LocalBlend`."""
        made = LocalBlend(self._columns(words, times), self._columns(protect, times), **shape)
        return None if made.empty else made

    def _columns(self, text: str, times: Sequence[int]) -> tuple[Pair, ...]:
        """For each target the columns of words, and of what they stand for in the other prompt, in the source and in the target."""
        phrases, chosen = words_from(text), []
        for phrase in phrases:
            if phrase != "*" and not any(p.find(phrase) for p in self.prompts):
                raise unknown_word(phrase, self.prompts)
        for number, (alignment, n) in enumerate(zip(self.alignments, times[1:])):
            found = [self._places(phrase, number) for phrase in phrases]
            sides = (alignment.source, times[0]), (alignment.target, n)
            chosen.append(tuple(_repeated(p, {i for words in found for i in words[side]}, n) for side, (p, n) in enumerate(sides)))
        return tuple(chosen)

    def _places(self, phrase: str, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Indices of a phrase's words in the source and in a target, '*' being all that changes; what it stands for where it is not there."""
        alignment = self.alignments[number]
        if phrase == "*":
            source, target = alignment.changed()
            target = (*target, *self.weighted[number])
            return (*source, *alignment.origins(target)), target
        source, target = _found(alignment.source, phrase), _found(alignment.target, phrase)
        source = source or alignment.origins(target)
        return source, target or alignment.counterparts(source)

    def text(self) -> str:
        """The alignments and weights for people."""
        made = []
        for alignment, weights in zip(self.alignments, self.weights):
            words = [(w.text, weights[w.columns[0]]) for w in alignment.target.words if w.columns[0] in weights]
            made.append("\n".join([alignment.text(), *(f"  x {value:g} {word}" for word, value in words)]))
        return "\n\n".join(made)


def _found(prompt: Prompt, phrase: str) -> tuple[int, ...]:
    return tuple(i for words in prompt.find(phrase) for i in words)


def _repeated(prompt: Prompt, words: Iterable[int], times: int) -> Columns:
    """The columns of words in a conditioning that is repeated so many times."""
    return tuple(sorted(c + i * prompt.length for c in prompt.columns(words) for i in range(times)))


def _weights(prompt: Prompt, line: Iterable[tuple[str, float]]) -> dict[int, float]:
    weights: dict[int, float] = {}
    for phrase, value in line:
        weights |= dict.fromkeys(prompt.columns(_found(prompt, phrase)), value)
    return weights


def batch_latent(model, latent: dict | None, size: tuple[int, int], pictures: int, branches: int) -> tuple[dict, int]:
    """The LATENT with all rows, each branch with the noise of the source's, and how many pictures a branch has."""
    if latent is None:
        form = model.get_model_object("latent_format")
        ratio, device = form.spacial_downscale_ratio, comfy.model_management.intermediate_device()
        latent = {"samples": torch.zeros(pictures, form.latent_channels, size[0] // ratio, size[1] // ratio, device=device)}
    samples = latent["samples"]
    check_pictures(samples, "latent", "connect Empty Latent Image, or nothing and set width and height")
    made = {**latent, "samples": samples.repeat(branches, *[1] * (samples.ndim - 1))}
    made["batch_index"] = list(latent.get("batch_index") or range(len(samples))) * branches
    mask = latent.get("noise_mask")
    if mask is not None and len(mask) > 1:
        made["noise_mask"] = mask.repeat(branches, *[1] * (mask.ndim - 1))
    return made, len(samples)


def scene_of(model, clip, prompts: tuple[str, list[str]], operation: str, words: Words) -> tuple[Scene, list[list]]:
    """The scene of a source prompt and its targets, and the conditionings of its prompts."""
    if any(isinstance(c, PromptToPrompt) for c in model.model_options.get("transformer_options", {}).get(KEY, ())):
        raise ValueError(
            "The model already comes from a P2P Attention Patch, and two of them are not kept apart. Give all targets to one node, a line each, "
            "or connect the model from before the other node."
        )
    known = {text: encoded(clip, text) for text in (prompts[0], *prompts[1])}
    read = {text: prompt_of(clip, text, given[0][0].shape[1]) for text, given in known.items()}
    scene = Scene.of(read[prompts[0]], [read[text] for text in prompts[1] or prompts[:1]], operation, words)
    return scene, [known[p.text] for p in scene.prompts]


def prepared(
    model, clip, prompts: tuple[str, list[str]], operation: str, words: Words, settings: Settings, layers: tuple[str, str], blend: tuple[float, float],
    latent: Callable[[int], tuple[dict, int]],
) -> tuple:  # fmt: skip
    """(patched model, positive, latent, alignment as text). `layers`: where cross and self act; `blend`: threshold and start;
    `latent(branches)` as `batch_latent`."""
    places = unet_places(model)
    scene, known = scene_of(model, clip, prompts, operation, words)
    batch, pictures = latent(len(scene.prompts))
    positive, times = as_rows(known, pictures)
    control = PromptToPrompt(
        Rows(pictures, len(scene.alignments)),
        scene.edits(settings, times),
        settings,
        places,
        model.get_model_object("latent_format").spacial_downscale_ratio,
        chosen_places(layers[0], places, "cross_layers"),
        chosen_places(layers[1], places, "self_layers"),
        scene,
        tuple(times),
        scene.blend(words.blend, words.protect, times, threshold=blend[0], start=blend[1]),
    )
    return install(model, control), marked(positive, control.token), batch, scene.text()
