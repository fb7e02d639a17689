"""Prompt-to-Prompt on tiny random models, and other nodes' attention that tests watch."""

import comfy.sample
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from controlled_diffusion.attention.negative_attention import Strength
from controlled_diffusion.nodes.attention_maps import AttentionMapView
from controlled_diffusion.nodes.host.attention.hook import Control, controls_of
from controlled_diffusion.nodes.host.attention.negative_attention import prepare
from controlled_diffusion.nodes.host.attention.unet import unet_places
from controlled_diffusion.nodes.host.model_tag import family
from controlled_diffusion.nodes.host.prompts import encoded
from controlled_diffusion.nodes.prompt_to_prompt import P2PAttentionPatch, P2PLocalBlend, P2POptions
from controlled_diffusion.nodes.word_weights import WordWeights
from safetensors.torch import save_file

from host import tiny, tiny_dits
from node_schema import defaults

ALL = dict(cross_end=1.0, self_end=1.0, self_layers="all")
OFF = dict(cross_end=0.0, self_end=0.0)
ON_MARKED = {  # (model, conditioning) of nodes that act on the rows of their own conditioning, of a model and a CLIP
    "weights": lambda model, clip: WordWeights.execute(model, clip, "a red circle", "red: 3", 0.0, 1.0, "all").args[:2],
    "negative": lambda model, clip: prepare(model, encoded(clip, "green"), Strength(), encoded(clip, "a red circle")),
}
BLEND = dict(blend_words="words", protect_words="protect_words", blend_threshold="threshold", blend_start="start_percent")


def patch(model, clip, targets, source, images=1, latent=None, **knobs):
    """(model, positive, negative, latent, alignment) of P2P Attention Patch for a latent of 8 x 8, or of the DiT's size.

    `knobs` of P2P Options, and of P2P Local Blend by the names in BLEND, go to these nodes.
    """
    options = {k: v for k, v in knobs.items() if k in defaults(P2POptions)}
    blend = {BLEND[k]: v for k, v in knobs.items() if k in BLEND}
    own = {k: v for k, v in knobs.items() if k not in options and k not in BLEND}
    empty = tiny_dits.empty(clip.name, images) if isinstance(clip, tiny_dits.Clip) else torch.zeros(images, 4, 8, 8)
    given = defaults(P2PAttentionPatch, family(model)) | dict(source=source, targets=targets, latent=latent or {"samples": empty}) | own
    given["options"] = P2POptions.execute(**defaults(P2POptions) | options).args[0]
    patched, *rest = P2PAttentionPatch.execute(model, clip, **given).args
    return with_blend(patched, **dict(words="") | blend) if blend else patched, *rest


def sample(model, positive, negative, latent, *_, cfg=4.0, sampler="euler", scheduler="normal", seed=7, steps=4, **more):
    noise = comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))
    settings = (steps, cfg, sampler, scheduler, positive, negative, latent["samples"])
    return comfy.sample.sample(model, noise, *settings, disable_pbar=True, seed=seed, **more)


def with_blend(model, **knobs):
    return P2PLocalBlend.execute(model, **defaults(P2PLocalBlend, family(model)) | knobs).args[0]


def control_of(model, kind: type = Control):
    """The last control of a kind on a model."""
    return controls_of(model, kind)[0]


def last_run(model, kind: type = Control):
    """The run of a control that made the latest latent."""
    return list(control_of(model, kind).history.made.values())[-1].runs[-1]


def masks_of(model) -> list:
    return last_run(model).blending.masks


def view(source, latent, words="", rows="mean", layers="all", word="", threshold=0.4, image=None):
    """(table, mask, maps, latent) of Attention Map View."""
    return AttentionMapView.execute(source, {"samples": latent}, words, rows, layers, word, threshold, image).args


def differ(a, b) -> float:
    return float((a - b).abs().max())


def shrunk(model):
    """With ComfyUI's Deep Shrink, which halves the image of some layers in the first half of the sampling."""
    return PatchModelAddDownscale.execute(model, 1, 2.0, 0.0, 0.5, False, "bicubic", "bicubic").args[0]


def with_fewer_tokens(model, count: int):
    """Flux with another node that leaves so many tokens of the text."""
    patched, names = model.clone(), ("txt", "txt_ids")
    cut = lambda args: {k: v[:, :count] if k in names else v for k, v in args.items()}  # noqa: E731
    patched.model_options["transformer_options"].setdefault("patches", {})["post_input"] = [cut]
    return patched


def clip_with_word(folder, vectors: int = 3):
    """A tiny CLIP with an embedding file 'thing' of so many vectors."""
    save_file({"clip_l": torch.randn(vectors, tiny.CONTEXT, generator=torch.Generator().manual_seed(0))}, folder / "thing.safetensors")
    clip = tiny.clip(dtype=torch.float32, embedding_directory=str(folder))
    clip.tokenizer.clip_l.embedding_size = tiny.CONTEXT
    return clip


class Probabilities:
    """Another node's cross-attention: ComfyUI's, with its probabilities kept."""

    def __init__(self, model):
        self.model, self.seen = model.clone(), {p.key: [] for p in unet_places(model)}
        for place in unet_places(model):
            self.model.set_model_attn2_replace(self._keep(place.key), *place.key)

    def _keep(self, key):
        def attend(q, k, v, options):
            heads = [t.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for t in (q, k)]
            p = (heads[0] @ heads[1].transpose(-1, -2) / heads[0].shape[-1] ** 0.5).softmax(-1)
            part = len(p) // len(options["cond_or_uncond"])
            self.seen[key].append(p[options["cond_or_uncond"].index(0) * part :][:part])
            return optimized_attention(q, k, v, options["n_heads"])

        return attend


class Keys:
    """Another node's override: keeps queries and keys of each attention, heads first, and gives ComfyUI's result."""

    def __init__(self, model):
        self.model, self.seen = model.clone(), []
        self.model.model_options["transformer_options"]["optimized_attention_override"] = self._keep

    def _keep(self, function, q, k, v, *args, **kwargs):
        heads = args[0] if args else kwargs["heads"]
        if not kwargs.get("skip_reshape"):
            q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
        self.seen.append((q.clone(), k.clone(), kwargs.get("mask", args[1] if len(args) > 1 else None)))
        return function(*([q, k] if kwargs.get("skip_reshape") else [t.transpose(1, 2).flatten(2) for t in (q, k)]), v, *args, **kwargs)

    def blocks(self, tokens: int, keys: int):
        return [s for s in self.seen if s[0].shape[2] == tokens and s[1].shape[2] == keys]

    def joint(self, least: int):
        """Attentions of at least so many tokens over the same."""
        return [s for s in self.seen if s[0].shape[2] == s[1].shape[2] >= least]
