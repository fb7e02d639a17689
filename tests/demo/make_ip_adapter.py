"""Makes the demo model's image encoder and its IP-Adapter: `python . run tests/demo/make_ip_adapter.py` (resumable).

About a quarter of an hour of one core. The adapter learns on the denoiser that lies in the repository; train it anew after that changes.
"""

from functools import partial
from pathlib import Path

import comfy.clip_model
import comfy.ops
import torch
from controlled_diffusion.attention.ip_adapter import decoupled
from controlled_diffusion.nodes.host.attention import ip_adapter
from controlled_diffusion.nodes.host.demo import DEMO_ENCODER
from controlled_diffusion.nodes.host.saved_tensors import mutations_allowed
from controlled_diffusion.training import noisy_classifier
from controlled_diffusion.training.demo import config
from controlled_diffusion.training.demo.packing import restored
from controlled_diffusion.training.loop import save_atomically, saving

from demo import ip_adapter as recipe
from demo import model as demo_model
from demo import world
from demo.make_model import OVERRIDE, STATE, as_denoised, begin, load_average, made_once, new_tokens, parameters_of, say, shipped, shown
from demo.muon import MuonLoop
from demo.packing import quantized

ENCODER_STEPS, ENCODER_RATE, ENCODER_BATCH = 2600, 1e-3, 32
STEPS, RATE, BATCH = 400, 8e-4, 24
SCENES = 6000
ADAPTER, ENCODER = ip_adapter.ADAPTERS.shipped / "demo_model.safetensors", DEMO_ENCODER
SIZE = config.VISION_CONFIG["image_size"]


def pixels_of(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) in [0, 1] as ComfyUI hands them to its image encoder."""
    return comfy.clip_model.clip_preprocess(images.movedim(1, -1), size=SIZE)


def scene_data(autoencoder, path: Path, count: int) -> dict[str, torch.Tensor]:
    """Latents (N, 4, 16, 16) and encoder pixels (N, 3, 64, 64) of the first scenes, made once, in half precision."""

    def make(numbers: range) -> dict[str, torch.Tensor]:
        images = demo_model.as_images([world.render(recipe.scene(i)) for i in numbers])
        return {"latents": demo_model.encoded(autoencoder.taesd_encoder, images), "pixels": pixels_of(images)}

    return made_once(path, count, 50, make)


def new_encoder() -> torch.nn.Module:
    made = comfy.clip_model.CLIPVisionModelProjection(config.VISION_CONFIG, torch.float32, "cpu", comfy.ops.disable_weight_init)
    return noisy_classifier.initialize(made, recipe.SEED)


def embedded(encoder, pixels: torch.Tensor) -> torch.Tensor:
    """The embeddings (N, F) of ComfyUI's network."""
    return encoder(pixel_values=pixels, intermediate_output=-2)[2]


def naming_share(encoder, heads, seed: int = recipe.SEED + 1000, count: int = 200) -> dict[str, float]:
    """How often the encoder names each fact of held-out scenes right."""
    scenes = [recipe.scene(i, seed) for i in range(count)]
    with torch.no_grad():
        embeds = embedded(encoder, pixels_of(demo_model.as_images([world.render(s) for s in scenes])))
    truth = recipe.labels(scenes)
    return {k: float(((embeds @ heads[k].T).argmax(1) == truth[:, i]).float().mean()) for i, k in enumerate(recipe.NAMED)}


def train_encoder(data: dict, state: Path, steps: int) -> torch.nn.Module:
    """The trained encoder; trains it first where its state is not complete."""
    encoder, heads = new_encoder(), recipe.new_heads()
    parameters, readings = parameters_of(vision=encoder), {f"head.{k}": v for k, v in heads.items()}
    matrices = demo_model.matrices_of(parameters)
    loop = MuonLoop(parameters | readings, steps=steps, learning_rate=ENCODER_RATE, warmup=100, average=0.99, matrices=matrices)
    loop.restore(state)
    say(f"encoder: {loop.done} of {steps} steps done")
    truth = recipe.labels([recipe.scene(i) for i in range(len(data["pixels"]))])
    with mutations_allowed(encoder.parameters):  # ComfyUI's network adds in place
        run = recipe.train_encoder(partial(embedded, encoder), heads, data["pixels"], truth, loop, batch=ENCODER_BATCH)
        shown(saving(loop, run, state))
    load_average(state, vision=encoder)
    encoder.load_state_dict(restored(quantized(encoder.state_dict())))  # as the file will have it
    shares = naming_share(encoder, {k: v.detach() for k, v in heads.items()})
    say("  named right on held-out scenes: " + ", ".join(f"{k} {100 * v:.0f} %" for k, v in shares.items()))
    return encoder.requires_grad_(False)


def seeing(unet, names: list, noisy, levels, context, pairs) -> torch.Tensor:
    """The denoiser with an image at weight 1: keys and values of each layer in the order of `names`."""

    def attend(pair, q, k, v, options):
        own = partial(demo_model.attention, heads=options["n_heads"])
        return decoupled(own(q, k, v), q, [pair], 1.0, own)

    patches = {"attn2": {name: partial(attend, pair) for name, pair in zip(names, pairs)}}
    return unet(noisy, levels, context=context, transformer_options={**OVERRIDE, "patches_replace": patches})


def train_adapter(unet, tower, latents: torch.Tensor, features: torch.Tensor, state: Path, steps: int) -> dict[str, torch.Tensor]:
    """The trained adapter's tensors; trains it first where its state is not complete."""
    tokens, encode_text = new_tokens(), torch.no_grad()(partial(demo_model.encode_text, tower))
    layers, norm = {place.key: a for place, a in ip_adapter.transformers(unet)}, tower.final_layer_norm
    words = recipe.told([recipe.scene(i) for i in range(len(features))], tokens, encode_text)
    parts = recipe.start([(a.to_k.weight, a.to_v.weight) for a in layers.values()], features, words, (norm.weight, norm.bias))
    loop = MuonLoop(parts, steps=steps, learning_rate=RATE, warmup=100, average=0.99, matrices=[k for k, p in parts.items() if p.ndim == 2])
    loop.restore(state)
    say(f"adapter: {loop.done} of {steps} steps done")
    draw = recipe.Batches(latents, features, tokens, BATCH)
    shown(saving(loop, recipe.train_adapter(partial(seeing, unet, list(layers)), encode_text, parts, draw, loop), state))
    with loop.averaged():
        return {k: p.detach().half() for k, p in parts.items()}


def written(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(tensors, path)
    say(f"wrote {path.name} in {path.parent.name}: {path.stat().st_size / 1e6:.2f} MB")


def make() -> None:
    """Encoder and adapter, each trained on from where it stopped, and their files."""
    STATE.mkdir(parents=True, exist_ok=True)
    autoencoder, unet, tower = shipped()
    data = scene_data(autoencoder, STATE / "ip_adapter_scenes.safetensors", SCENES)
    encoder = train_encoder(data, STATE / "ip_adapter_encoder.safetensors", ENCODER_STEPS)
    with torch.no_grad():
        features = torch.cat([embedded(encoder, part.float()) for part in data["pixels"].split(200)])
    latents = as_denoised(data["latents"])
    made = train_adapter(unet.requires_grad_(False), tower, latents, features, STATE / "ip_adapter.safetensors", STEPS)
    written(quantized(encoder.state_dict()), ENCODER)
    written(made, ADAPTER)


def main() -> None:
    begin(__doc__)
    make()


if __name__ == "__main__":
    main()
