"""The pack's patches, each on a model beside the run without it, for benchmarks and tests of what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import comfy.samplers
import torch
from comfy.ldm.modules.attention import optimized_attention
from controlled_diffusion.attention.ip_adapter import image_prompt, recognize
from controlled_diffusion.attention.prompt_to_prompt import Edit, Settings, Window
from controlled_diffusion.guidance.directions import Shaping
from controlled_diffusion.guidance.multi_cfg import Channel, Rules
from controlled_diffusion.guidance.record import Record
from controlled_diffusion.guidance.schedules import Ramp, Schedule
from controlled_diffusion.nodes.attention_maps import AttentionMapCapture
from controlled_diffusion.nodes.bdia import BDIAInverter
from controlled_diffusion.nodes.belm import BELMInverter
from controlled_diffusion.nodes.ddim import DDIMInverter
from controlled_diffusion.nodes.edict import EDICTInverter
from controlled_diffusion.nodes.host.attention import ip_adapter
from controlled_diffusion.nodes.host.attention.unet import SLOTS, unet_places
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG, MultiCFGWrapper
from controlled_diffusion.nodes.image_guidance import ImageGuidanceChannel
from controlled_diffusion.nodes.inversion import InversionSampler
from controlled_diffusion.nodes.negative_attention import NegativeAttention
from controlled_diffusion.nodes.word_regions import WordRegions
from controlled_diffusion.nodes.word_weights import WordWeights

import explicit
from adapters import published
from bench.shapes import Shape
from host import tiny
from host.editing import control_of, patch
from node_schema import defaults

CFG, TWO_IMAGES, ONE_PROMPT = "ComfyUI's CFG", "ComfyUI's CFG, 2 images", "ComfyUI, one prompt"
SOURCE, SWAP, INSERT = "a red cat on a mat", "a blue cat on a mat", "a very fluffy red cat on a mat"
ENCODED = {"base": (1024,), "plus": (257, 1280)}  # what the encoder gives of an image


@dataclass(frozen=True)
class Case:
    """A way to sample, `run(sigmas)`. A step of it is compared with `times` steps of the case `base`, which evaluate as much."""

    run: Callable[[torch.Tensor], object]
    base: str = ""
    times: float = 1


class Silent(Record):
    """Writes nothing down."""

    def note(self, *values):
        pass


class Unrecorded(MultiCFG):
    def begin_guidance(self, scale):
        return replace(super().begin_guidance(scale), record=Silent())


def guider_of(model, positive: list, negative: list, cfg: float = 7.5) -> comfy.samplers.CFGGuider:
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(positive, negative)
    made.set_cfg(cfg)
    return made


@dataclass
class Classic:
    """Published Prompt-to-Prompt: all attentions explicit, all maps of up to 32 x 32 queries added up, edits in their place."""

    edit: Edit
    maps: dict[tuple, torch.Tensor] = field(default_factory=dict)

    def install(self, model):
        patched = model.clone()
        for place in unet_places(model):
            for kind, slot in SLOTS.items():
                patched.set_model_patch_replace(partial(self.attend, (kind, *place.key)), slot, *place.key)
        return patched

    def attend(self, key: tuple, q, k, v, options: dict) -> torch.Tensor:
        p, small = explicit.probabilities(q, k, options["n_heads"]), q.shape[1] <= 32**2
        first = 2 * options["cond_or_uncond"].index(0)
        if key[0] == "cross":
            p[first + 1] = explicit.edited(self.edit, 0.5, p[first], p[first + 1])
        elif small:
            p[first + 1] = p[first]
        if small:
            self.maps[key] = self.maps.get(key, 0) + p[first : first + 2]
        return explicit.attended(p, v)


@dataclass
class Least:
    """The operations that words inserted into a prompt need, for one image with all windows open, and no Python besides."""

    edit: Edit
    known: dict[int, tuple] = field(default_factory=dict)  # by the width of values: the edit, their factors, and what gathers the denominator

    def install(self, model, self_layers: frozenset):
        patched = model.clone()
        for place in unet_places(model):
            patched.set_model_attn2_replace(self.cross, *place.key)
            if place.key in self_layers:
                patched.set_model_attn1_replace(self.self, *place.key)
        return patched

    def cross(self, q, k, v, options: dict) -> torch.Tensor:
        first, heads = 2 * options["cond_or_uncond"].index(0), options["n_heads"]
        if v.shape[-1] not in self.known:
            edit, factors = self.edit.at_percent(0.5, v), v.new_ones(len(v), v.shape[1], 1)
            factors[first + 1] = edit.own
            self.known[v.shape[-1]] = edit.mapped, factors, edit.own_sum.expand(1, *v.shape[1:])
        mapper, factors, sums = self.known[v.shape[-1]]
        both = slice(first, first + 2)
        gathered = torch.cat([mapper @ v[first + 1 : first + 2], sums])
        mapped, total = optimized_attention(q[both], k[both], gathered, heads).split(1)
        out = optimized_attention(q, k, v * factors, heads)
        out[first + 1 : first + 2].add_(mapped).div_(total)
        return out

    def self(self, q, k, v, options: dict) -> torch.Tensor:
        last = 2 * options["cond_or_uncond"].index(0) + 1
        q, k = (torch.cat([t[:last], t[last - 1 : last], t[last + 1 :]]) for t in (q, k))
        return optimized_attention(q, k, v, options["n_heads"])


@dataclass(frozen=True)
class Cases:
    """The cases of a model of a shape. `side` is that of the latent, in cells; `channels` are the numbers of channels to guide with."""

    model: object
    shape: Shape
    side: int
    channels: tuple[int, ...] = (1, 2, 3)

    def text(self, seed: int) -> list:
        return self.shape.conditioning(seed)

    def sampled(self, guider, rows: int = 1) -> Callable:
        """A run of a guider by ComfyUI's euler; all rows start from one noise."""
        empty = self.shape.latent(1, self.side)
        noise, empty = (t.repeat(rows, 1, 1, 1) for t in (torch.randn(empty.shape, generator=torch.Generator().manual_seed(2)), empty))
        euler = comfy.samplers.sampler_object("euler")
        return lambda sigmas: guider.sample(noise, empty, euler, sigmas, disable_pbar=True, seed=0)

    def cfg(self, model, rows: int = 1) -> Callable:
        """A run of ComfyUI's CFG."""
        return self.sampled(guider_of(model, self.text(1), self.text(0)), rows)

    def plain(self) -> Iterator[tuple[str, Case]]:
        """What the others are compared with: ComfyUI alone, on as many rows."""
        yield CFG, Case(self.cfg(self.model))
        yield ONE_PROMPT, self.rows(1)

    def rows(self, count: int) -> Case:
        """A prompt alone on so many images, which are as many rows of the network's batch."""
        return Case(self.sampled(guider_of(self.model, self.text(1), self.text(0), 1.0), count))

    def guidance(self) -> Iterator[tuple[str, Case]]:
        """Multi CFG by its number of channels, and with all that a channel can have."""
        yield "Multi CFG, report off", Case(self.sampled(Unrecorded(self.model, self.text(0), self._channels(1))), CFG)
        for count in self.channels:
            base = CFG if count == 1 else f"{count + 1} rows"
            if count > 1:
                yield base, self.rows(count + 1)
            yield f"Multi CFG, {count} channels", Case(self._guided(self._channels(count)), base)
        rules = Rules("project", 20.0, 0.5, Shaping(0.5, -0.5, 15.0))
        ramp, mask = Schedule(Ramp(1.0, 0.5, True)), torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(3))
        yield "Multi CFG, a schedule", Case(self._guided([replace(c, schedule=ramp) for c in self._channels(1)]), CFG)
        last = max(self.channels)
        all_of_it = [replace(c, schedule=ramp, mask=mask if i else None, priority=i) for i, c in enumerate(self._channels(last))]
        yield f"Multi CFG, {last} channels, schedules, masks, APG", Case(self._guided(all_of_it, rules), CFG if last == 1 else f"{last + 1} rows")
        added = MultiCFGWrapper([Channel(self.text(2), 2.0)]).install(self.model)
        yield "3 rows", self.rows(3)
        yield "Multi CFG Patch, 1 channel", Case(self.cfg(added), "3 rows")

    def _channels(self, count: int) -> list[Channel]:
        return [Channel(self.text(i), 2.0) for i in range(1, count + 1)]

    def _guided(self, channels: list[Channel], rules: Rules = Rules()) -> Callable:
        return self.sampled(MultiCFG(self.model, self.text(0), channels, rules))

    def gradients(self) -> Iterator[tuple[str, Case]]:
        """Image guidance with a tiny VAE."""
        reference, vae = torch.rand(1, 8 * self.side, 8 * self.side, 3), tiny.vae()
        for name, through in (("", False), (", through the denoiser", True)):
            [channel] = ImageGuidanceChannel.execute(self.model, vae, "layout", through, 0, image=reference).args[0]
            yield f"image guidance, layout{name}", Case(self._guided([*self._channels(1), channel]), CFG)

    def adapters(self) -> Iterator[tuple[str, Case]]:
        """IP-Adapter."""
        base, fading = self._adapted(self.model, "base"), Schedule(Ramp(1.0, 0.5, True))
        yield "IP-Adapter, base (4 tokens)", Case(self.cfg(base), CFG)
        yield "IP-Adapter, a schedule", Case(self.cfg(self._adapted(self.model, "base", schedules=(fading,))), CFG)
        yield "IP-Adapter, a mask", Case(self.cfg(self._adapted(self.model, "base", mask=torch.rand(1, 64, 64))), CFG)
        yield "IP-Adapter, twice", Case(self.cfg(self._adapted(base, "base")), CFG)
        yield "IP-Adapter, plus (16 tokens)", Case(self.cfg(self._adapted(self.model, "plus")), CFG)

    def _adapted(self, model, kind: str, **settings):
        """The model under a patch of an image that is noise, by an adapter of random weights."""
        shape = dict(width=768) if kind == "plus" else {}
        widths = [layer.to_k.weight.shape[0] for layer in ip_adapter.layers_of(model).values()]
        adapter = recognize(published(kind, ENCODED[kind][-1], self.shape.width, widths, **shape), kind)
        prompt = image_prompt(adapter, torch.randn(1, *ENCODED[kind]), torch.zeros(1, *ENCODED[kind]))
        return ip_adapter.patch_for(model, adapter, prompt, **settings).install(model)

    def attention(self) -> Iterator[tuple[str, Case]]:
        """Prompt-to-Prompt and maps."""
        clip = tiny.clip(dtype=torch.float32)
        given = defaults(AttentionMapCapture) | dict(prompt=SOURCE, words="cat, mat")
        capturing, positive = AttentionMapCapture.execute(self.model, clip, **given).args
        yield "Attention Map Capture, 2 words", Case(self.sampled(guider_of(capturing, self._as_wide(positive, 1), self.text(0))), CFG)
        yield TWO_IMAGES, Case(self.cfg(self.model, 2))
        edits = {"swap": dict(targets=SWAP), "insert words": dict(targets=INSERT), "insert words, local blend": dict(targets=INSERT, blend_words="*")}
        for name, own in edits.items():
            latent = {"samples": self.shape.latent(1, self.side)}
            patched, positive, *_ = patch(self.model, clip, source=SOURCE, latent=latent, **own)
            run = self.sampled(guider_of(patched, self._as_wide(positive, 1), self.text(0)), 2)
            yield f"Prompt-to-Prompt, {name}", Case(run, TWO_IMAGES)
        weighing, positive, _ = WordWeights.execute(self.model, clip, **defaults(WordWeights) | dict(text=f"{SOURCE}, (cat:1.5)")).args
        yield "Word Weights", Case(self.sampled(guider_of(weighing, self._as_wide(positive, 1), self.text(0))), CFG)
        refusing = NegativeAttention.execute(self.model, self.text(2), **defaults(NegativeAttention)).args[0]
        yield "Negative Attention", Case(self.cfg(refusing), CFG)
        given = defaults(WordRegions) | dict(prompt=SOURCE, phrases="red cat\nmat", find_percent=0.0, start_percent=0.0, anchors=0.1, spread=0)
        finding, positive = WordRegions.execute(self.model, clip, **given).args
        wide = self._as_wide(positive, 1)
        yield "Word Regions", Case(self.sampled(guider_of(finding, wide, self.text(0))), CFG)
        channels = Channel(wide, 2.0), Channel(self.text(2), 2.0, region="red cat")
        yield "3 rows", self.rows(3)
        yield "Word Regions, a channel", Case(self.sampled(MultiCFG(finding, self.text(0), channels)), "3 rows")

    def classic(self) -> Iterator[tuple[str, Case]]:
        """The published way of Prompt-to-Prompt, with all windows open; and the least that our own way may cost."""
        patched = patch(self.model, tiny.clip(dtype=torch.float32), source=SOURCE, targets=INSERT, latent={"samples": self.shape.latent(1, self.side)})[0]
        edit = Edit.from_alignment(control_of(patched).prompts.alignments[0], Settings(Window(0.0, 1.0), Window(0.0, 1.0)))
        yield TWO_IMAGES, Case(self.cfg(self.model, 2))
        yield "Prompt-to-Prompt, classic, insert words", Case(self.cfg(Classic(edit).install(self.model), 2), TWO_IMAGES)
        least = Least(edit).install(self.model, control_of(patched).self_layers)
        yield "Prompt-to-Prompt, insert words, fewest operations", Case(self.cfg(least, 2), TWO_IMAGES)

    def _as_wide(self, conditioning: list, seed: int) -> list:
        """A conditioning with random features of the model's width; what else it holds stays."""
        features, extras = conditioning[0]
        [[rows, own]] = self.shape.conditioning(seed, len(features))
        return [[rows, {**extras, **own}]]

    def inversions(self) -> Iterator[tuple[str, Case]]:
        """Inverters, which evaluate without guidance, and the way back with it."""
        image = {"samples": self.shape.latent(1, self.side) + 0.1}
        inverters = {DDIMInverter: 1, BDIAInverter: 1, BELMInverter: 1, EDICTInverter: 2}
        for node, times in inverters.items():
            yield node.GET_SCHEMA().display_name, Case(self._inverting(node, image), ONE_PROMPT, times)
        inverted = self._inverting(DDIMInverter, image)
        kept: dict[int, object] = {}

        def back(sigmas):
            steps = len(sigmas) - 1
            kept[steps] = kept.get(steps) or inverted(sigmas)
            return InversionSampler.execute(self.model, kept[steps], 7.5, "edit", positive=self.text(1), negative=self.text(0))

        yield "Inversion Sampler", Case(back, CFG)

    def _inverting(self, node, image: dict) -> Callable:
        given = dict(model=self.model, source=self.text(1), image=image)
        return lambda sigmas: node.execute(**defaults(node) | given | dict(steps=len(sigmas) - 1)).args[0]

    def of(self, kinds: tuple[str, ...]) -> dict[str, Case]:
        """The cases of some of the methods above, the plain ones first."""
        return dict(found for kind in ("plain", *kinds) for found in getattr(self, kind)())
