"""Makes and measures the demo model: `python . run tests/demo/make_model.py train | refine | cost | measure | sheet`.

`train` makes the weights from nothing and `refine` trains them further (both resumable: run them again after a stop), `cost`
counts what that takes, `measure` writes the table beside the weights, `sheet` draws prompts and images. The recipe is
tests/demo/model.py; this script brings ComfyUI's networks.
"""

import argparse
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import comfy.taesd.taesd
import numpy as np
import torch
from comfy.sd1_clip import SD1Tokenizer
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.training.trainer import digest
from controlled_diffusion.training.demo import checker, config
from controlled_diffusion.training.demo.packing import restored
from controlled_diffusion.training.loop import save_atomically, saving
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from demo import model as demo_model
from demo import world, worlds
from demo.any_world import World
from demo.muon import MuonLoop
from demo.shapes_world import SHAPES
from harness import demo_images
from measures.script import head, percent, row

STATE, WEIGHTS = SHAPES.state, SHAPES.files.model
TABLE = WEIGHTS.with_suffix(".md")
GOALS = {"color": 97, "shape": 92, "background": 97, "position": 95, "bound (two things)": 80}
HELD_OUT, NOISE_SEED = 1234, 5678000
SAME = 0.03  # relative distance of what is made twice: in half precision, by weights in 8 bits, perhaps on another device


def say(text: str) -> None:
    print(text, flush=True)


def shown(steps, every: int = 100):
    """Consumes steps, showing the mean loss and the time left now and then."""
    losses, start = [], time.monotonic()
    for step in steps:
        losses.append(step.loss)
        if step.index % every == 0 or step.index == step.total:
            pace = (time.monotonic() - start) / len(losses)
            left = pace * (step.total - step.index) / 60
            say(f"  step {step.index} of {step.total}  loss {np.mean(losses):.4f}  {pace:.2f} s a step  {left:.0f} min left")
            losses, start = [], time.monotonic()


def new_autoencoder():
    autoencoder = comfy.taesd.taesd.TAESD()
    demo_model.initialize_autoencoder(autoencoder.taesd_encoder, autoencoder.taesd_decoder)
    return autoencoder.to(memory_format=torch.channels_last)


def parameters_of(**modules: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {f"{prefix}.{k}": p for prefix, module in modules.items() for k, p in demo_model.trainable(module).items()}


def load_average(state: Path, **modules: torch.nn.Module) -> None:
    weights = load_file(state)
    for prefix, module in modules.items():
        start = f"average/{prefix}."
        module.load_state_dict({k[len(start) :]: v for k, v in weights.items() if k.startswith(start)})


def train_autoencoder(recipe) -> torch.nn.Module:
    """The trained autoencoder; trains it first where its state is not complete."""
    autoencoder, state = new_autoencoder(), STATE / "vae.safetensors"
    parts = dict(encoder=autoencoder.taesd_encoder, decoder=autoencoder.taesd_decoder)
    parameters = parameters_of(**parts)
    convolutions, rate = [k for k, p in parameters.items() if p.ndim == 4], recipe.autoencoder_rate
    loop = MuonLoop(parameters, steps=recipe.autoencoder_steps, learning_rate=rate, warmup=60, average=0.998, matrices=convolutions)
    loop.restore(state)
    say(f"autoencoder: {loop.done} of {loop.steps} steps done")
    shown(saving(loop, demo_model.train_autoencoder(*parts.values(), loop), state))
    load_average(state, **parts)
    return autoencoder.requires_grad_(False)


def made_once(path: Path, count: int, chunk: int, make: Callable[[range], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What `make` gives for `count` items, so many at a time, in half precision; kept in a file from which it goes on after a stop. Raises
    ValueError where the file's first item is another than would be made now."""
    done = load_file(path) if path.exists() else {}
    for k, first in make(range(1)).items() if done else ():
        if (first - done[k][: len(first)].float()).norm() > SAME * first.norm():
            raise ValueError(f"{path} was made by other weights or of other scenes. Remove it, or give the ones it was made with.")
    for first in range(len(next(iter(done.values()), ())), count, chunk):
        new = make(range(first, min(first + chunk, count)))
        done = {k: torch.cat([*([done[k]] if done else []), v.half()]) for k, v in new.items()}
        if first // chunk % 20 == 19 or first + chunk >= count:
            save_atomically(done, path)
            say(f"  made {min(first + chunk, count)} of {count}")
    return {k: v[:count] for k, v in done.items()}


def scene_latents(autoencoder, world: World = SHAPES) -> torch.Tensor:
    """Latents of the training scenes, encoded once."""

    def make(numbers: range) -> dict[str, torch.Tensor]:
        images = demo_model.as_images([world.image(world.scene(i)) for i in numbers])
        return {"latents": demo_model.encoded(autoencoder.taesd_encoder, images)}

    return made_once(world.state / "latents.safetensors", world.scenes, 100, make)["latents"].float()


def as_denoised(raw: torch.Tensor, weights: Path | None = None) -> torch.Tensor:
    """Latents of the autoencoder as the denoiser of a file takes them, or the one that lies in the repository."""
    stored = load_file(weights or WEIGHTS)
    scale, shift = (stored[f"first_stage_model.vae_{name}"].float() for name in ("scale", "shift"))
    return (raw.float() / scale + shift) * demo.LATENT_SCALE


OVERRIDE = {"optimized_attention_override": lambda _, q, k, v, heads, *a, **kw: demo_model.attention(q, k, v, heads)}


class Denoiser(torch.nn.Module):
    """ComfyUI's UNet with the recipe's attention, whose backward pass is fast."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, levels, context):
        return self.unet(x, levels, context=context, transformer_options=OVERRIDE)


def new_denoiser(unet_config: dict = config.UNET_CONFIG) -> tuple[torch.nn.Module, torch.nn.Module]:
    """UNet and text tower with their seeded start values."""
    supported = demo.DemoModel({**unet_config})
    supported.set_inference_dtype(torch.float32, None)
    unet = supported.get_model({}, "", device="cpu").diffusion_model
    tower = demo.DemoClip(dtype=torch.float32).clip_l.transformer.text_model
    demo_model.initialize_denoiser(unet, tower)
    return unet.to(memory_format=torch.channels_last), tower


def new_tokens() -> demo_model.Tokens:
    tokenizer = SD1Tokenizer().clip_l.tokenizer
    return demo_model.Tokens(lambda word: tokenizer(word)["input_ids"][1:-1])


def begin(description: str, **choices: list[str]) -> tuple[World, argparse.Namespace]:
    """The world and the arguments that a script is given: one for each of `choices`, and the number of threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, options in choices.items():
        parser.add_argument(name, choices=options)
    worlds.add_options(parser)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return worlds.chosen(given), given


def train_denoiser(unet, tower, latents: torch.Tensor, state: Path, *, steps: int, rate: float, batch: int, noisy_share: float = 0.0):
    parameters = parameters_of(unet=unet, text=tower)
    loop = MuonLoop(parameters, steps=steps, learning_rate=rate, warmup=200, average=0.99, matrices=demo_model.matrices_of(parameters))
    loop.restore(state)
    say(f"denoiser: {loop.done} of {loop.steps} steps done")
    latents = (latents - latents.mean()) / latents.std()
    steps = demo_model.train_denoiser(Denoiser(unet), tower, new_tokens(), latents, loop, batch=batch, noisy_share=noisy_share)
    shown(saving(loop, steps, state))
    load_average(state, unet=unet, text=tower)


def shipped(path: Path | None = None, unet_config: dict = config.UNET_CONFIG):
    """Autoencoder, denoiser and text tower of a file, or as they lie in the repository."""
    weights, autoencoder, (unet, tower) = restored(load_file(path or WEIGHTS)), new_autoencoder(), new_denoiser(unet_config)

    def part(prefix):
        return {k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)}

    rows, ids = weights["cond_stage_model.token_rows"], weights["cond_stage_model.token_ids"]
    unet.load_state_dict(part("model.diffusion_model."))
    tower.load_state_dict(part("cond_stage_model.clip_l.transformer.text_model."), strict=False)
    tower.embeddings.token_embedding.weight.data[ids.long()] = rows.float()
    autoencoder.load_state_dict(part("first_stage_model."))
    return autoencoder.requires_grad_(False), unet, tower


def base_model(world: World):
    """Autoencoder, denoiser and text tower of a world, for adapters to learn on."""
    world.state.mkdir(parents=True, exist_ok=True)
    return shipped(world.weights, world.unet_config)


def learned_on(**parts: torch.nn.Module) -> dict[str, str]:
    """What a state says of the frozen networks that its training learns on, so that it is not continued on others."""
    return {name: digest([*part.state_dict().values()]) for name, part in parts.items()}


def written(tensors: dict[str, torch.Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(tensors, path, about)
    say(f"wrote {path.name} in {path.parent.name}: {path.stat().st_size / 1e6:.2f} MB")


def scene_images(count: int, seed: int = config.SEEDS["scenes"]) -> torch.Tensor:
    return demo_model.as_images([world.render(demo_model.scene(i, seed)) for i in range(count)])


def export(autoencoder, latents: torch.Tensor, unet, tower) -> None:
    """Everything in one fp16 file; of the token table only the rows that training changed."""
    mean, deviation = float(latents.mean()), float(latents.std())
    table = tower.embeddings.token_embedding.weight.detach()
    ids = (table != config.start_tokens(*table.shape)).any(1).nonzero().flatten()
    weights = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
    text = {k: v for k, v in tower.state_dict().items() if "token_embedding" not in k}
    weights |= {f"cond_stage_model.clip_l.transformer.text_model.{k}": v for k, v in text.items()}
    weights |= {f"first_stage_model.{k}": v for k, v in autoencoder.state_dict().items()}
    weights |= {
        "cond_stage_model.token_rows": table[ids],
        "first_stage_model.vae_scale": torch.tensor(demo.LATENT_SCALE * deviation),
        "preview_colors": demo_model.preview_colors((latents[:200] - mean) / deviation, scene_images(min(200, len(latents)))),
        "first_stage_model.vae_shift": torch.tensor(-mean / (demo.LATENT_SCALE * deviation)),
    }
    weights = {k: v.half() for k, v in weights.items()} | {"cond_stage_model.token_ids": ids.int()}
    WEIGHTS.parent.mkdir(exist_ok=True)
    save_atomically(weights, WEIGHTS)
    say(f"wrote {WEIGHTS.name}: {WEIGHTS.stat().st_size / 1e6:.2f} MB, {len(ids)} token rows")


def train(options) -> None:
    """From nothing."""
    STATE.mkdir(parents=True, exist_ok=True)
    recipe, (unet, tower) = demo_model.RECIPE, new_denoiser()
    autoencoder = train_autoencoder(recipe)
    latents = scene_latents(autoencoder, replace(SHAPES, state=STATE, scenes=recipe.scenes))
    steps, rate = recipe.denoiser_steps, recipe.denoiser_rate
    train_denoiser(unet, tower, latents, STATE / "denoiser.safetensors", steps=steps, rate=rate, batch=recipe.batch)
    export(autoencoder, latents, unet, tower)


def refine(options) -> None:
    """Trains the denoiser and the text tower that lie in the repository further."""
    STATE.mkdir(parents=True, exist_ok=True)
    recipe, (autoencoder, unet, tower) = demo_model.RECIPE, shipped()
    latents = scene_latents(autoencoder, replace(SHAPES, state=STATE, scenes=recipe.scenes))
    steps, rate, share = recipe.refine_steps, recipe.refine_rate, recipe.refine_noisy_share
    state = STATE / "refined.safetensors"
    train_denoiser(unet, tower, latents, state, steps=steps, rate=rate, batch=recipe.batch, noisy_share=share)
    export(autoencoder, latents, unet, tower)


def operations(loss) -> float:
    """Floating point operations of a loss and its gradient."""
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return float(counter.get_total_flops())


def cost(options) -> None:
    """What the training takes in floating point operations, stage by stage; no clock, so the same on every machine."""
    recipe, autoencoder, (unet, tower) = demo_model.RECIPE, new_autoencoder(), new_denoiser()
    parameters_of(encoder=autoencoder.taesd_encoder, decoder=autoencoder.taesd_decoder, unet=unet, text=tower)
    crops, latents, ids = torch.rand(8, 3, 64, 64), torch.randn(recipe.batch, 4, 16, 16), torch.zeros(recipe.batch, 77, dtype=torch.long)
    levels = torch.full((recipe.batch,), 500.0)
    one_autoencoder = operations(lambda: autoencoder.taesd_decoder(autoencoder.taesd_encoder(crops)).mean())
    one_denoiser = operations(lambda: Denoiser(unet)(latents, levels, demo_model.encode_text(tower, ids)).mean())
    denoising = (("denoiser", recipe.denoiser_steps, one_denoiser), ("denoiser, refined", recipe.refine_steps, one_denoiser))
    for name, steps, one in (("autoencoder", recipe.autoencoder_steps, one_autoencoder), *denoising):
        say(f"  {name}: {steps} steps x {one / 1e12:.3f} = {steps * one / 1e12:.0f} TFLOP")


def held_out(count: int) -> list[world.Caption]:
    """Captions of scenes that training never saw."""
    scenes = [demo_model.scene(i, HELD_OUT) for i in range(count)]
    return [world.random_caption(s, np.random.default_rng((HELD_OUT, i, 1))) for i, s in enumerate(scenes)]


@torch.inference_mode()
def reconstruction(vae, count: int = 64) -> np.ndarray:
    """PSNR in dB of held-out scenes through the autoencoder as shipped."""
    images = scene_images(count, HELD_OUT)
    decoded = torch.cat([vae.decode(vae.encode(p.movedim(0, -1)[None])) for p in images])
    return demo_model.psnr(decoded.movedim(-1, 1), images).numpy()


def score(captions, images) -> dict[str, tuple[int, int]]:
    """For each kind of claim: how many hold, of how many."""
    right, asked = Counter(), Counter()
    for caption, image in zip(captions, images):
        for fact, holds in checker.judge(checker.read(image), caption).items():
            name = f"bound ({'two things' if len(caption.claims) == 2 else 'one thing'})" if fact == "bound" else fact
            right[name] += holds
            asked[name] += 1
    return {name: (right[name], asked[name]) for name in sorted(asked)}


def table(scores: dict, quality: np.ndarray, count: int) -> str:
    goals = {name: f"{GOALS[name]} %" if name in GOALS else "" for name in scores}
    rows = [row(name, right, asked, percent(right / asked, 1), goals[name]) for name, (right, asked) in scores.items()]
    size = WEIGHTS.stat().st_size / 1e6
    told = f"PSNR mean {quality.mean():.1f} dB, lowest {quality.min():.1f} dB (goal 30 dB). "
    return f"""# The demo model, measured

`python . run tests/demo/make_model.py measure --count {count}`: held-out prompts through ComfyUI, KSampler, 20 steps, euler,
normal, cfg 4, fixed seeds; read by `training/demo/checker.py`.

{chr(10).join([head("claim", "correct", "of", "share", "goal"), *rows])}

Autoencoder on {len(quality)} held-out scenes: {told}
All weights: {size:.2f} MB, fp16.
"""


def measure(options) -> None:
    studio = demo_images.Studio()
    captions, images = held_out(options.count), []
    for first in range(0, options.count, 32):
        images.extend(studio.draw([c.text for c in captions[first : first + 32]], seed=NOISE_SEED + first))
        say(f"  {len(images)} of {options.count} images")
    report = table(score(captions, images), reconstruction(studio.vae), options.count)
    say(report)
    if options.write:
        TABLE.write_text(report, encoding="utf-8")


def sheet(options) -> None:
    """Prompts and images, 8 in a row."""
    captions, cell, font = held_out(options.count), 200, ImageFont.load_default(11)
    images = demo_images.Studio().draw([c.text for c in captions], seed=NOISE_SEED)
    paper = Image.new("RGB", (8 * cell, -(-len(captions) // 8) * cell), "white")
    draw = ImageDraw.Draw(paper)
    for i, (caption, image) in enumerate(zip(captions, images)):
        x, y = i % 8 * cell, i // 8 * cell
        paper.paste(Image.fromarray(image), (x + 36, y + 4))
        good = checker.judge(checker.read(image), caption)["bound"]
        text = "\n".join(textwrap.wrap(caption.text, 28))
        draw.multiline_text((x + 100, y + 136), text, anchor="ma", align="center", font=font, fill="black" if good else "red")
    paper.save(options.output)
    say(f"wrote {options.output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "refine", "cost", "measure", "sheet"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--count", type=int, default=256, help="prompts to measure or draw")
    parser.add_argument("--write", action="store_true", help="write the measured table beside the weights")
    parser.add_argument("--output", type=Path, default=Path("demo_sheet.png"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    {"train": train, "refine": refine, "cost": cost, "measure": measure, "sheet": sheet}[options.what](options)


if __name__ == "__main__":
    main()
