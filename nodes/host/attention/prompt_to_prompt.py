"""Prompt-to-Prompt inside the host's sampling: source and target prompts as rows of one conditioning, edited by the attention hook."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import comfy.model_management
import torch

from ....attention.call import taken
from ....attention.layers import Block, Place
from ....attention.local_blend import Blending, LocalBlend, word_map
from ....attention.prompt_edits import Scene, Words
from ....attention.prompt_to_prompt import Edit, Moment, Rows, Settings
from ....guidance.schedules import NoiseScale
from ..conditionings import KEY, marked
from ..latents import check_images
from ..prompts import as_rows, encoded, prompt_of
from .hook import Run, install
from .shared_noise import with_shared_noise
from .unet import Call, blend_places, chosen_places, unet_places

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
        first = noise[: self.rows.images].to(device, torch.float32)
        return with_shared_noise(sampler, first, 1 + self.rows.targets, sigmas, seed)

    def start(self, conds, x, sigma):
        super().start(conds, x, sigma)
        one, blank = self.rows.images, [1] * (x.ndim - 1)
        if len(x) != self.rows.total:
            raise ValueError(
                f"{len(x)} images are sampled, but P2P Attention Patch made {self.rows.total} rows: {one} of the source, then {one} for each of "
                f"{self.rows.targets} target(s). Connect its 'latent' to the sampler, or with an inversion choose branches 'direct' and as many "
                "images in batch_size as were inverted."
            )
        if sigma >= self.scale.sigmas[0] * (1 - 1e-5) and not torch.equal(x, x[:one].repeat(len(x) // one, *blank)):
            raise ValueError(
                "Source and targets start from different noise, so that their maps do not belong together. Connect the 'latent' of P2P "
                "Attention Patch (its batch_index gives all the same noise) and a noise that heeds it, such as RandomNoise; with an inversion, "
                "as many images in batch_size as were inverted."
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
                row = first + branch * self.rows.images
                p = call.looked_at(list(range(row, row + self.rows.images)), tokens)
                self.blending.add(lambda columns, p=p: call.images(word_map(p, columns)[:, None])[:, 0], branch)












def batch_latent(model, latent: dict | None, size: tuple[int, int], images: int, branches: int) -> tuple[dict, int]:
    """The LATENT with all rows, each branch with the noise of the source's, and how many images a branch has."""
    if latent is None:
        form = model.get_model_object("latent_format")
        ratio, device = form.spacial_downscale_ratio, comfy.model_management.intermediate_device()
        latent = {"samples": torch.zeros(images, form.latent_channels, size[0] // ratio, size[1] // ratio, device=device)}
    samples = latent["samples"]
    check_images(samples, "latent", "connect Empty Latent Image, or nothing and set width and height")
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
    batch, images = latent(len(scene.prompts))
    positive, times = as_rows(known, images)
    control = PromptToPrompt(
        Rows(images, len(scene.alignments)),
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
    return install(model, control), marked(positive, control.token, 1 + control.rows.targets), batch, scene.text()
