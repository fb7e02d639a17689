"""Trains the illustrated demo model: `python . run tests/demo/illustrated_model.py train --state DIR`.

`train` goes through VAE, latents and UNet; stopped, it continues where it was when run again, on a CPU or a GPU. `status` says how far it is,
`sheet` draws held-out prompts, `export` writes the weights as one file, `measure` has the reader judge what the model draws and with
`--write` writes its page. The recipe is tests/demo/illustrated_recipe.py.
"""

import argparse
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from comfy.sd1_clip import SD1Tokenizer
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.training.demo.files import FILES
from controlled_diffusion.training.loop import Loop, progress, save_atomically, saving
from safetensors.torch import load_file

from demo import illustrated_reader as reader
from demo import illustrated_recipe as recipe_of
from demo import illustrated_studio as studio
from demo import make_model
from demo import model as demo_model
from demo.fast_norm import use_fast_norm
from demo.make_model import Denoiser, load_average, parameters_of, say, shipped, shown
from demo.muon import MuonLoop
from demo.packing import quantized
from harness.demo_images import Studio
from measures.script import head, percent, row

STATE = Path(__file__).parents[2] / ".host" / "illustrated_model"
PAGE = FILES["illustrated"].model.with_suffix(".md")
SAVE_EVERY = 240  # seconds
GOALS = {"thing": 92, "ground": 97, "color": 95, "place": 90, "style": 90, "both things": 75}


def train_autoencoder(options, recipe) -> torch.nn.Module:
    """The trained VAE; trains it first where its state is not complete and no latents of it are in use."""
    autoencoder, state = shipped()[0].to(options.device), options.state / "vae.safetensors"
    parts = dict(encoder=autoencoder.taesd_encoder, decoder=autoencoder.taesd_decoder)
    parameters = parameters_of(**parts)
    loop = MuonLoop(
        parameters,
        steps=recipe.autoencoder_steps,
        learning_rate=recipe.autoencoder_rate,
        warmup=60,
        average=0.995,
        matrices=[k for k, p in parameters.items() if p.ndim == 4],
    )
    loop.restore(state)
    if (options.state / "latents.safetensors").exists():
        loop.steps = loop.done
    say(f"VAE: {loop.done} of {loop.steps} steps done")
    batches = recipe_of.made_ahead(partial(recipe_of.crops, recipe.autoencoder_scenes), loop.done, loop.steps, options.workers)
    shown(saving(loop, recipe_of.train_autoencoder(*parts.values(), loop, options.device, batches), state, SAVE_EVERY))
    load_average(state, **parts)
    return autoencoder.requires_grad_(False)


def scene_latents(autoencoder, options, count: int) -> torch.Tensor:
    """Latents of the first `count` training scenes, float16 (count, 4, 24, 24), encoded once."""
    path, side, chunk = options.state / "latents.safetensors", recipe_of.LATENT, 20
    done = load_file(path)["latents"] if path.exists() else torch.empty(0, 4, side, side, dtype=torch.float16)
    painted = recipe_of.made_ahead(recipe_of.image, len(done), count, options.workers)
    while len(done) < count:
        parts = []
        for _ in range(min(50, -(-(count - len(done)) // chunk))):
            batch = demo_model.as_images(list(islice(painted, chunk)))
            parts.append(recipe_of.encode(autoencoder.taesd_encoder, batch, options.device))
        done = torch.cat([done, *parts])
        save_atomically({"latents": done}, path)
        say(f"  encoded {len(done)} of {count} scenes")
    return done[:count]


def new_vocabulary() -> recipe_of.Vocabulary:
    tokenizer = SD1Tokenizer().clip_l.tokenizer
    return recipe_of.Vocabulary(lambda word: tokenizer(word)["input_ids"][1:-1])


def new_denoiser(device: str, ids: list[int]):
    """UNet and text tower with their seeded start values; the tower's token table has the rows `ids` alone."""
    unet, tower = make_model.new_denoiser(recipe_of.UNET_CONFIG)
    table = tower.embeddings.token_embedding
    table.weight = torch.nn.Parameter(table.weight.detach()[ids].clone())
    return unet.to(device), tower.to(device)


def statistics(latents: torch.Tensor) -> tuple[float, float]:
    """Mean and deviation by which latents get unit scale; of the first thousand, so that they stay when more are encoded."""
    first = latents[:1000].float()
    return float(first.mean()), float(first.std())


def denoiser_loop(unet, tower, recipe) -> Loop:
    parameters = parameters_of(unet=unet, text=tower)
    return MuonLoop(
        parameters,
        steps=recipe.denoiser_steps,
        learning_rate=recipe.denoiser_rate,
        warmup=200,
        average=0.995,
        matrices=demo_model.matrices_of(parameters),
    )


def train_denoiser(latents: torch.Tensor, options, recipe, until: int) -> None:
    """Trains UNet and text tower up to step `until`."""
    vocabulary, state = new_vocabulary(), options.state / "denoiser.safetensors"
    unet, tower = new_denoiser(options.device, vocabulary.ids)
    loop = denoiser_loop(unet, tower, recipe)
    loop.restore(state)
    say(f"UNet: {loop.done} of {loop.steps} steps done, {len(latents)} scenes, until step {until}")
    mean, deviation = statistics(latents)
    denoiser = Denoiser(use_fast_norm(unet) if options.device == "cpu" else unet)
    steps = recipe_of.train_denoiser(denoiser, tower, vocabulary.tokens, (latents.float() - mean) / deviation, loop, recipe, options.device)
    shown(islice(saving(loop, steps, state, SAVE_EVERY), max(0, until - loop.done)))
    loop.save(state)


def train(options) -> None:
    """All stages; each goes on where it stopped."""
    options.state.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of.RECIPES[options.device]
    autoencoder = train_autoencoder(options, recipe)
    for scenes, until in recipe.growth:
        if progress(options.state / "denoiser.safetensors")[0] < until:
            train_denoiser(scene_latents(autoencoder, options, scenes), options, recipe, until)


def current(options):
    """VAE, UNet and text tower with the averaged weights of the state, which the training may go on writing."""
    autoencoder, (unet, tower) = shipped()[0], new_denoiser("cpu", new_vocabulary().ids)
    load_average(options.state / "vae.safetensors", encoder=autoencoder.taesd_encoder, decoder=autoencoder.taesd_decoder)
    if (options.state / "denoiser.safetensors").exists():
        load_average(options.state / "denoiser.safetensors", unet=unet, text=tower)
    return autoencoder.requires_grad_(False), unet, tower


def weights_of(autoencoder, latents: torch.Tensor, unet, tower) -> dict[str, torch.Tensor]:
    """All weights under the names of the demo model's file: matrices and convolutions in 8 bits, all else in 16; of the token table only the rows
    that captions use."""
    mean, deviation = statistics(latents)
    unit = (latents[:200].float() - mean) / deviation
    text = {k: v for k, v in tower.state_dict().items() if "token_embedding" not in k}
    weights = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
    weights |= {f"cond_stage_model.clip_l.transformer.text_model.{k}": v for k, v in text.items()}
    weights |= {f"first_stage_model.{k}": v for k, v in autoencoder.state_dict().items()}
    weights |= {
        "cond_stage_model.token_rows": tower.embeddings.token_embedding.weight.detach(),
        "first_stage_model.vae_scale": torch.tensor(demo.LATENT_SCALE * deviation),
        "first_stage_model.vae_shift": torch.tensor(-mean / (demo.LATENT_SCALE * deviation)),
        "preview_colors": demo_model.preview_colors(unit, recipe_of.images(len(unit))),
    }
    matrices = {k: v for k, v in weights.items() if v.ndim > 1 and k != "preview_colors"}
    small = {k: v.half() for k, v in weights.items() if k not in matrices} | quantized(matrices)
    return small | {"cond_stage_model.token_ids": torch.tensor(new_vocabulary().ids, dtype=torch.int32)}


def write_weights(options, path: Path) -> Path:
    """Writes the current weights as one file."""
    (autoencoder, unet, tower), latents = current(options), load_file(options.state / "latents.safetensors")["latents"]
    save_atomically(weights_of(autoencoder, latents, unet, tower), path)
    say(f"wrote {path.name}: {path.stat().st_size / 1e6:.2f} MB, UNet at step {progress(options.state / 'denoiser.safetensors')[0]}")
    return path


def export(options) -> None:
    """Writes the current weights as one file, `--output` or the snapshot of the state."""
    write_weights(options, options.output or options.state / "snapshot.safetensors")


def weights_file(options) -> Path:
    """The weights to draw with: `--weights`, or the current ones."""
    return options.weights or write_weights(options, options.state / "current.safetensors")


def status(options) -> None:
    """How many steps are done, and the PSNR of the VAE on held-out scenes."""
    for part in ("vae", "denoiser"):
        say(f"{part}: {progress(options.state / f'{part}.safetensors')[0]} steps done")
    quality, images, decoded = studio.reconstruct(current(options)[0], options.count)
    say(f"VAE: {quality.mean():.1f} dB on average, lowest {quality.min():.1f} dB")
    if options.output:
        pairs = torch.stack([images, decoded], 1).flatten(0, 1)
        labels = [text for dB in quality for text in ("held-out scene", f"{dB:.1f} dB")]
        studio.draw_sheet(studio.as_arrays(pairs), labels, options.output)


def sheet(options) -> None:
    """Held-out prompts and what the model draws."""
    captions = [caption.text for caption in studio.held_out(options.count)]
    images = Studio(weights_file(options), recipe_of.LATENT).draw(captions, seed=studio.NOISE_SEED)
    studio.draw_sheet(images, captions, options.output or options.state / "sheet.png")


def table(scores: Counter, asked: Counter, options) -> str:
    """The measured shares as a page of Markdown."""
    rows = [row(fact, scores[fact], asked[fact], percent(scores[fact] / asked[fact], 1), goal_of(fact)) for fact in sorted(asked)]
    return f"""# The illustrated demo model, measured

`python . run tests/demo/illustrated_model.py measure --weights nodes/weights/demo_model.safetensors --count {options.count} --write`: held-out
prompts through ComfyUI, KSampler, 20 steps, euler, normal, cfg 4, fixed seeds; read by `training/demo/illustrated_reader.py`.

{chr(10).join([head("claim", "correct", "of", "share", "goal"), *rows])}
"""


def goal_of(fact: str) -> str:
    return f"{GOALS[fact]} %" if fact in GOALS else ""


def of_parts(weights: Path) -> str:
    """What the rest of the page says: autoencoder, size, and how well the reader reads images that need no model."""
    quality = studio.reconstruct(make_model.shipped(weights, recipe_of.UNET_CONFIG)[0], 64)[0]
    return f"""
Autoencoder on {len(quality)} held-out scenes: PSNR mean {quality.mean():.1f} dB, lowest {quality.min():.1f} dB.
All weights: {weights.stat().st_size / 1e6:.2f} MB, matrices and convolutions in 8 bits.

Its reader, `python . run tests/demo/illustrated_reader.py measure`, on images that no model drew:

{reader.table(reader.load(reader.WEIGHTS))}
"""


def measure(options) -> None:
    """Which claims of held-out prompts hold in the images that the model draws; `--output` takes a sheet, wrong ones in red."""
    captions, weights, images = studio.held_out(options.count), weights_file(options), []
    artist = Studio(weights, recipe_of.LATENT)
    for first in range(0, options.count, 32):
        images.extend(artist.draw([caption.text for caption in captions[first : first + 32]], seed=studio.NOISE_SEED + first))
        say(f"  {len(images)} of {options.count} images")
    verdicts = [reader.judge(reading, caption) for reading, caption in zip(reader.read(reader.load(reader.WEIGHTS), images), captions)]
    scores, asked = Counter(), Counter()
    for verdict in verdicts:
        scores.update(fact for fact, holds in verdict.items() if holds)
        asked.update(verdict.keys())
    report = table(scores, asked, options) + of_parts(weights)
    say(report)
    say("things alone: " + ", ".join(studio.by_thing(captions, verdicts)))
    if options.write:
        PAGE.write_text(report, encoding="utf-8")
    if options.output:
        wrong = tuple(i for i, verdict in enumerate(verdicts) if not all(verdict.values()))
        studio.draw_sheet(images, [caption.text for caption in captions], options.output, wrong=wrong)


def main() -> None:
    commands = {"train": train, "status": status, "sheet": sheet, "export": export, "measure": measure}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(commands))
    parser.add_argument("--state", type=Path, default=STATE, help="folder of the resumable state")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=list(recipe_of.RECIPES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--count", type=int, default=32, help="images to draw")
    parser.add_argument("--weights", type=Path, help="file that `export` wrote; the current state if not given")
    parser.add_argument("--output", type=Path, help="file to write")
    parser.add_argument("--write", action="store_true", help="write the measured page beside the weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.workers = recipe_of.workers(options.device)
    commands[options.what](options)


if __name__ == "__main__":
    main()
