"""Makes a demo model's image encoder and its IP-Adapter: `python . run tests/demo/make_ip_adapter.py [--world illustrated]` (resumable).

About a quarter of an hour of one core. The adapter learns on the denoiser that lies in the repository; train it anew after that changes.
tests/measures/ip_adapter.py measures it.
"""

from functools import partial

import comfy.clip_model
import comfy.ops
import numpy as np
import torch
from controlled_diffusion.attention.ip_adapter import decoupled
from controlled_diffusion.nodes.host.attention import ip_adapter
from controlled_diffusion.nodes.host.saved_tensors import mutations_allowed
from controlled_diffusion.training import noisy_classifier
from controlled_diffusion.training.demo.packing import restored
from controlled_diffusion.training.loop import saving

from demo import ip_adapter as recipe
from demo import model as demo_model
from demo.any_world import World, in_one
from demo.make_model import (
    OVERRIDE,
    as_denoised,
    base_model,
    begin,
    learned_on,
    load_average,
    made_once,
    new_tokens,
    parameters_of,
    say,
    shown,
    written,
)
from demo.muon import MuonLoop
from demo.packing import quantized


def pixels_of(world: World, images: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) in [0, 1] as ComfyUI hands them to its image encoder."""
    return comfy.clip_model.clip_preprocess(images.movedim(1, -1), size=world.vision_config["image_size"])


def images_of(world: World, numbers, seed: int = recipe.SEED) -> torch.Tensor:
    """Scenes of one thing, (N, 3, H, W) in [0, 1]."""
    return demo_model.as_images([world.image(world.single(i, seed)) for i in numbers])


def encoder_pixels(world: World) -> torch.Tensor:
    """What the encoder sees of the scenes of one thing, (N, 3, H, W), made once, in half precision."""

    def make(numbers: range) -> dict[str, torch.Tensor]:
        return {"pixels": pixels_of(world, images_of(world, numbers))}

    return made_once(world.state / "ip_adapter_pixels.safetensors", world.singles, 50, make)["pixels"]


def encoder_masks(world: World) -> torch.Tensor:
    """Where the thing is in what `encoder_pixels` shows, (N, 1, H, W) as shares of a pixel, made once."""
    side = world.vision_config["image_size"]

    def make(numbers: range) -> dict[str, torch.Tensor]:
        masks = np.stack([in_one(world.masks(world.single(i, recipe.SEED)), world.size) for i in numbers])
        return {"masks": torch.nn.functional.interpolate(torch.from_numpy(masks)[:, None].float(), side, mode="area")}

    return made_once(world.state / "ip_adapter_masks.safetensors", world.singles, 50, make)["masks"]


def target_latents(autoencoder, world: World) -> torch.Tensor:
    """Latents (N, 4, h, w) of the scenes of one thing that the adapter learns to draw, encoded once."""

    def make(numbers: range) -> dict[str, torch.Tensor]:
        return {"latents": demo_model.encoded(autoencoder.taesd_encoder, images_of(world, numbers))}

    latents = made_once(world.state / "ip_adapter_latents.safetensors", world.targets, 50, make)["latents"]
    return as_denoised(latents, world.weights)


def new_encoder(world: World) -> torch.nn.Module:
    made = comfy.clip_model.CLIPVisionModelProjection(world.vision_config, torch.float32, "cpu", comfy.ops.disable_weight_init)
    return noisy_classifier.initialize(made, recipe.SEED)


def seen(encoder, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings (N, F) of ComfyUI's network, and its last tokens of patches (N, patches, W)."""
    tokens, _, embeds, _ = encoder(pixel_values=pixels, intermediate_output=-2)
    return embeds, tokens[:, 1:]


def embedded(encoder, pixels: torch.Tensor) -> torch.Tensor:
    """The embeddings alone."""
    return seen(encoder, pixels)[0]


def naming_share(world: World, encoder, heads, seed: int = recipe.SEED + 1000) -> dict[str, float]:
    """How often the encoder names each fact of held-out scenes right."""
    count = min(200, world.singles)
    with torch.no_grad():
        embeds = embedded(encoder, pixels_of(world, images_of(world, range(count), seed)))
    truth = recipe.labels(world, [world.single(i, seed) for i in range(count)])
    return {k: float(((embeds @ heads[k].T).argmax(1) == truth[:, i]).float().mean()) for i, k in enumerate(world.facts)}


def words_of(world: World, tower, count: int) -> torch.Tensor:
    """The text's tokens for the look of the first scenes of one thing, (N, tokens, width)."""
    encode_text = torch.no_grad()(partial(demo_model.encode_text, tower))
    return recipe.told(world, [world.single(i, recipe.SEED) for i in range(count)], new_tokens(), encode_text)


def train_encoder(world: World, tower, pixels: torch.Tensor) -> torch.nn.Module:
    """The trained encoder; trains it first where its state is not complete."""
    encoder, heads, plan = new_encoder(world), recipe.new_heads(world), world.plans["encoder"]
    parameters, readings = parameters_of(vision=encoder), {f"head.{k}": v for k, v in heads.items()}
    patches = None
    if weight := plan.settings.get("patches"):
        patches = recipe.Patches(encoder_masks(world), recipe.new_patch_heads(world), weight)
        readings |= {f"patch_head.{k}": v for k, v in patches.heads.items()}
    words = None
    if weight := plan.settings.get("words"):
        norm, width = tower.final_layer_norm, world.vision_config["projection_dim"]
        words = recipe.Words.of(words_of(world, tower, len(pixels)), (norm.weight, norm.bias), width, weight)
        readings["head.words"] = words.head
    matrices, state = demo_model.matrices_of(parameters), world.state / "ip_adapter_encoder.safetensors"
    loop = MuonLoop(parameters | readings, steps=plan.steps, learning_rate=plan.rate, warmup=100, average=0.99, matrices=matrices)
    loop.restore(state)
    say(f"encoder: {loop.done} of {plan.steps} steps done")
    truth = recipe.labels(world, [world.single(i, recipe.SEED) for i in range(len(pixels))])
    with mutations_allowed(encoder.parameters):  # ComfyUI's network adds in place
        run = recipe.train_encoder(world, partial(seen, encoder), heads, pixels, truth, loop, batch=plan.batch, patches=patches, words=words)
        shown(saving(loop, run, state))
    load_average(state, vision=encoder)
    encoder.load_state_dict(restored(quantized(encoder.state_dict())))  # as the file will have it
    shares = naming_share(world, encoder, {k: v.detach() for k, v in heads.items()})
    say("  named right on held-out scenes: " + ", ".join(f"{k} {100 * v:.0f} %" for k, v in shares.items()))
    return encoder.requires_grad_(False)


def seeing(unet, names: list, noisy, levels, context, pairs) -> torch.Tensor:
    """The denoiser with an image at weight 1: keys and values of each layer in the order of `names`."""

    def attend(pair, q, k, v, options):
        own = partial(demo_model.attention, heads=options["n_heads"])
        return decoupled(own(q, k, v), q, [pair], 1.0, own)

    patches = {"attn2": {name: partial(attend, pair) for name, pair in zip(names, pairs)}}
    return unet(noisy, levels, context=context, transformer_options={**OVERRIDE, "patches_replace": patches})


def train_adapter(world: World, unet, tower, about: dict, latents: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """The trained adapter's tensors; trains it first where its state is not complete."""
    tokens, encode_text, plan = new_tokens(), torch.no_grad()(partial(demo_model.encode_text, tower)), world.plans["adapter"]
    layers, norm = {place.key: a for place, a in ip_adapter.transformers(unet)}, tower.final_layer_norm
    words = words_of(world, tower, len(features))
    parts = recipe.start([(a.to_k.weight, a.to_v.weight) for a in layers.values()], features, words, (norm.weight, norm.bias))
    matrices, state = [k for k, p in parts.items() if p.ndim == 2], world.state / "ip_adapter.safetensors"
    loop = MuonLoop(parts, steps=plan.steps, learning_rate=plan.rate, warmup=100, average=0.99, matrices=matrices, about=about)
    loop.restore(state)
    say(f"adapter: {loop.done} of {plan.steps} steps done")
    draw, predict = recipe.Batches(world, latents, features, tokens, plan.batch), partial(seeing, world.network(unet), list(layers))
    shown(saving(loop, recipe.train_adapter(predict, encode_text, parts, draw, loop), state))
    with loop.averaged():
        return {k: p.detach().half() for k, p in parts.items()}


def make(world: World) -> None:
    """Encoder and adapter, each trained on from where it stopped, and their files."""
    autoencoder, unet, tower = base_model(world)
    pixels = encoder_pixels(world)
    encoder = train_encoder(world, tower, pixels)
    with torch.no_grad():
        features = torch.cat([embedded(encoder, part.float()) for part in pixels.split(200)])
    about = learned_on(encoder=autoencoder.taesd_encoder, denoiser=unet, text=tower, vision=encoder)
    made = train_adapter(world, unet.requires_grad_(False), tower, about, target_latents(autoencoder, world), features)
    written(quantized(encoder.state_dict()), world.files.encoder)
    written(made, world.files.adapter)


if __name__ == "__main__":
    make(begin(__doc__)[0])
