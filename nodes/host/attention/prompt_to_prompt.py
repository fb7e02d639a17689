"""Prompt-to-Prompt inside ComfyUI's sampling: source and target prompts as rows of one conditioning, edited by the attention hook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar

import comfy.sample
import comfy.utils
import torch

from ....attention.call import QKSharing
from ....attention.layers import chosen
from ....attention.local_blend import Blending, LocalBlend, coverages
from ....attention.prompt_edits import PromptEdits
from ....attention.prompt_to_prompt import ActiveEdit, ActiveEdits, Edit, Rows, Settings, Window
from ....attention.row_plan import RowSelection
from ..conditionings import marked
from ..latents import check_images, check_latent_channels
from ..noise_levels import NoiseScale
from ..prompts import as_rows, encoded, prompt_of
from ..run_history import RunHistory
from .hook import NONE, Control, ControlRun, controls_of, install
from .shared_noise import with_shared_noise
from .unet import blend_places, unet_places

SHOWN = ("concat_latent_image", "concat_mask")  # of conditionings for inpainting and instruction models


class PromptToPromptRun(ControlRun):
    """Prompt-to-Prompt during one run."""

    control: PromptToPrompt

    def __init__(self, control: PromptToPrompt, scale: NoiseScale, noise: torch.Tensor):
        super().__init__(control, scale, noise)
        self.rows, self.size = control.rows, self.latent[-2:]
        self.blending = self.earlier = None
        self.begin_anew()
        self.map_layers = self.layers_for_maps() if control.blend else frozenset()
        self.active_edits = ActiveEdits(control.edits, control.node, self.cache)
        self.edited = self.shared = self.mapped = NONE

    def begin_anew(self) -> None:
        if self.control.blend:
            self.blending = Blending(self.control.blend, self.rows)
            if self.earlier is not None:
                self.blending.follow(*self.earlier)

    def layers_for_maps(self) -> frozenset:
        """The keys of the layers whose maps make masks."""
        return frozenset(p.key for p in blend_places(self.control.places, self.size))

    def prepare(self, conds):
        """Of images that the network is shown beside the noise, one for each of the source's, every branch gets all in their order; ComfyUI
        would give each image to neighboring rows."""
        for given in chain(*conds.values()):
            shown = {k: given[k] for k in SHOWN if torch.is_tensor(given.get(k)) and 1 < len(given[k]) == self.rows.images}
            given |= {k: t.repeat(1 + self.rows.targets, *[1] * (t.ndim - 1)) for k, t in shown.items()}

    def sampler(self, sampler, noise, sigmas, seed, device):
        first = noise[: self.rows.images].to(device, torch.float32)
        return with_shared_noise(sampler, first, 1 + self.rows.targets, sigmas, seed)

    def follow(self, earlier, device):
        if self.blending is not None:
            self.earlier = earlier.blending, device
            self.blending.follow(*self.earlier)

    def start(self, conds, x):
        super().start(conds, x)
        one, blank = self.rows.images, [1] * (x.ndim - 1)
        if len(x) != self.rows.total:
            raise ValueError(
                f"{len(x)} images are sampled, but P2P Attention Patch made {self.rows.total} rows: {one} of the source, then {one} for each of "
                f"{self.rows.targets} target(s). Connect its 'latent' to the sampler; with an inversion, connect that to its input 'latent' and "
                "choose branches 'direct'."
            )
        if self.level.sigma >= self.scale.sigmas[0] * (1 - 1e-5) and not torch.equal(x, x[:one].repeat(len(x) // one, *blank)):
            raise ValueError(
                "Source and targets start from different noise, so that their maps do not belong together. Connect the 'latent' of P2P "
                "Attention Patch (its batch_index gives all the same noise) and a noise that heeds it, such as RandomNoise; with an inversion, "
                "Inversion Sampler."
            )

    def before(self, x: torch.Tensor) -> torch.Tensor:
        if self.blending is None:
            return x
        mask = self.blending.mask(self.size) if self.blending.blend.acts(self.level.percent) else None
        self.blending.on_level(self.level.sigma)
        return x if mask is None else self.blending.blended(x, mask)

    def after(self, denoised: torch.Tensor) -> torch.Tensor:
        if self.blending is None or not self.blending.blend.acts(self.percent):
            return denoised
        mask = self.blending.mask(self.size)
        if mask is None:
            return denoised
        self.blending.note(self.percent, mask)
        return self.blending.blended(denoised, mask)

    @property
    def warnings(self) -> list[str]:
        if self.blending is None or not self.blending.masks:
            return []
        lines = coverages(self.blending.masks[-1][1], self.blending.blend, self.rows)
        return [f"{line}. {warning} P2P Blend Mask shows where." for line, warning in lines if warning]

    def end(self) -> None:
        super().end()
        self.earlier = None
        if self.blending is not None:
            self.blending.end()

    def on_evaluate(self, conds, x, level):
        """Finds the keys of the layers that it needs now: those whose cross-attention is `edited`, those in which targets use the source's
        queries and keys, of the image in a joint attention, `shared`, and those whose maps make masks, `mapped`."""
        super().on_evaluate(conds, x, level)
        control, blend = self.control, self.control.blend
        self.edited_rows: dict[tuple, dict] = {}  # by what their edits depend on besides the noise level
        self.edited = control.cross_layers if any(edit.acts(self.percent) for edit in control.edits) else NONE
        self.shared = control.self_layers if control.settings.alpha > 0 and self.percent in control.settings.self else NONE
        self.mapped = self.map_layers if blend and self.reads and (self.percent < blend.end or blend.end == 1.0) else NONE

    def wanted(self, kind: str) -> frozenset:
        changed = self.edited if kind == "cross" else self.shared
        return changed if kind == "self" else changed | self.mapped

    def branch(self, number: int, first: int) -> list[int]:
        """The rows of a branch of a part: 0 is the source, then the targets."""
        return [first + row for row in (self.rows.target(number - 1) if number else self.rows.source)]

    def text_start(self, branch: int, tokens: int) -> int:
        """Where the text of a branch begins among the tokens that the network gets."""
        return 0

    def share_qk(self, call: QKSharing, first: int, tokens: int) -> None:
        if call.kind != "cross":
            if call.place.key in self.shared:
                call.source_row[first : first + self.rows.total] = self.branch(0, first) * (1 + self.rows.targets)
        elif call.place.key in self.edited:
            key = first, call.keys(tokens), call.v.device, call.v.dtype
            if key not in self.edited_rows:
                self.edited_rows[key] = self._edited(call, first, key[1])
            call.edits |= self.edited_rows[key]

    def _edited(self, call: QKSharing, first: int, keys: int) -> dict[int, tuple[int, ActiveEdit]]:
        """Each row of a part that is edited now, the row of its source, and how it is edited."""
        active = [(n, self.active_edits.at(n, self.percent, keys, call.v)) for n in range(self.rows.targets)]
        return {
            row: (source, edit)
            for number, edit in active
            if edit
            for row, source in zip(self.branch(1 + number, first), self.branch(0, first))
        }

    def edit(self, call: QKSharing, first: int, tokens: int) -> None:
        """Mixes what targets give with the source's queries and keys with what they give with their own."""
        alpha = self.control.settings.alpha
        if alpha < 1 and call.kind != "cross" and call.place.key in self.shared:
            rows = RowSelection(row for n in range(self.rows.targets) for row in self.branch(1 + n, first))
            call.set_output(rows, alpha * rows.of(call.out) + (1 - alpha) * call.own_output(rows))

    def on_attention(self, call: QKSharing, first: int, tokens: int) -> None:
        """Of a video, the largest of all frames counts."""
        if call.kind == "self" or call.place.key not in self.mapped or call.size is None or not call.covers(self.size):
            return
        asked = self.cache.get(("words", first, tokens), lambda: [self._words(branch, first, tokens) for branch in range(1 + self.rows.targets)])
        maps = call.images(call.word_maps(asked, tokens))
        self.blending.add(maps.amax(2) if maps.ndim == 5 else maps)

    def _words(self, branch: int, first: int, tokens: int) -> tuple[list[int], list[list[int]]]:
        """The rows of a branch of a part, and the tokens of the words whose maps make masks."""
        start = self.text_start(branch, tokens)
        return self.branch(branch, first), [[start + column for column in columns] for columns in self.blending.words(branch)]


@dataclass(frozen=True)
class PromptToPrompt(Control):
    """The control: `edits` of the targets on the chosen layers (keys of places), with a local blend or none.

    `rows` says how many branches there are. `times` is how often the conditionings of the source and the targets are repeated.
    """

    node: ClassVar = "P2P Attention Patch"
    run: ClassVar = PromptToPromptRun
    rows: Rows
    edits: tuple[Edit, ...]
    settings: Settings
    pixels: int  # of a cell of the latent
    cross_layers: frozenset
    self_layers: frozenset
    prompts: PromptEdits
    times: tuple[int, ...]
    blend: LocalBlend | None = None

    def blended(self, words: str, protect: str, **shape) -> PromptToPrompt:
        """The same with another local blend; `shape` as of `LocalBlend`."""
        return replace(self, blend=self.prompts.blend(words, protect, self.times, **shape), history=RunHistory())


def batch_latent(model, latent: dict, branches: int) -> tuple[dict, int]:
    """The LATENT with all rows, each branch with the noise of the source's, and how many images a branch has."""
    samples = latent["samples"]
    check_images(samples, "latent", "connect Empty Latent Image, or an inversion")
    check_latent_channels(model, comfy.sample.fix_empty_latent_channels(model, samples))
    rows = {**latent, "samples": samples.repeat(branches, *[1] * (samples.ndim - 1))}
    rows["batch_index"] = list(latent.get("batch_index") or range(len(samples))) * branches
    if latent.get("noise_mask") is not None:
        rows["noise_mask"] = _of_rows(latent["noise_mask"], samples, branches)
    return rows, len(samples)


def _of_rows(mask: torch.Tensor, samples: torch.Tensor, branches: int) -> torch.Tensor:
    """A noise mask for all rows, each branch with that of the source's images as ComfyUI deals masks out; for a video, masks of less than five
    dimensions are those of its frames, the same in every row."""
    if samples.ndim == 5 and mask.ndim < 5:
        return mask
    masks = mask if samples.ndim == 5 else mask.reshape(-1, 1, *mask.shape[-2:])
    return mask if len(masks) == 1 else comfy.utils.repeat_to_batch_size(masks, len(samples)).repeat(branches, *[1] * (masks.ndim - 1))


@dataclass(frozen=True)
class Options:
    """What P2P Options asks for."""

    alpha: float = Settings.alpha
    cross_start: float = Settings.cross.start
    self_start: float = Settings.self.start
    word_windows: str = ""
    cross_layers: str = "all"
    self_layers: str = "1/2"

    def settings(self, cross_end: float, self_end: float) -> Settings:
        """Raises ValueError where a window ends before it starts."""
        cross, own = (_window(name, start, end) for name, start, end in (("cross", self.cross_start, cross_end), ("self", self.self_start, self_end)))
        return Settings(cross, own, self.alpha)


def _window(name: str, start: float, end: float) -> Window:
    if start > end:
        raise ValueError(
            f"{name}_start is {start}, but {name}_end is {end}: a window cannot end before it starts. Give {name}_start at most {end}, or a "
            f"larger {name}_end; where both are the same nothing is taken over."
        )
    return Window(start, end)


@dataclass(frozen=True)
class Task:
    """What P2P Attention Patch is asked for. `latent` is the LATENT of the source's images."""

    source: str
    targets: Sequence[str]
    latent: dict
    options: Options
    operation: str
    word_weights: str
    cross_end: float
    self_end: float

    @property
    def settings(self) -> Settings:
        return self.options.settings(self.cross_end, self.self_end)

    def prompts(self, model, clip) -> tuple[PromptEdits, list[list]]:
        """The aligned prompts, and the conditioning of each."""
        if controls_of(model, PromptToPrompt):
            raise ValueError(
                "The model already comes from a P2P Attention Patch, and two of them are not kept apart. Give all targets to one node, a line each, "
                "or connect the model from before the other node."
            )
        known = {text: encoded(clip, text) for text in (self.source, *self.targets)}
        read = {text: prompt_of(clip, text, conditioning[0][0].shape[1]) for text, conditioning in known.items()}
        targets = [read[text] for text in self.targets or (self.source,)]
        prompts = PromptEdits.from_prompts(read[self.source], targets, self.operation, self.word_weights, self.options.word_windows)
        return prompts, [known[p.text] for p in prompts.prompts]

    def fields(self, model, prompts: PromptEdits, images: int, times: Sequence[int], places: Sequence) -> dict:
        """The fields of the control that a UNet and a DiT have alike."""
        return dict(
            places=places,
            rows=Rows(images, len(prompts.alignments)),
            settings=self.settings,
            pixels=model.get_model_object("latent_format").spacial_downscale_ratio,
            cross_layers=chosen(self.options.cross_layers, places, "cross_layers"),
            self_layers=chosen(self.options.self_layers, places, "self_layers"),
            prompts=prompts,
            times=tuple(times),
        )


def prepare(model, clip, task: Task) -> tuple:
    """(patched model, positive, latent, alignment as text) of a UNet."""
    places = unet_places(model)
    prompts, conditionings = task.prompts(model, clip)
    latent, images = batch_latent(model, task.latent, len(conditionings))
    positive, times = as_rows(conditionings, images)
    control = PromptToPrompt(edits=prompts.edits(task.settings, times), **task.fields(model, prompts, images, times, places))
    return install(model, control), marked(positive, control.token, len(conditionings)), latent, prompts.text()
