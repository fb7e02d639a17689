"""Sliders on the demo model: `python . run tests/measures/slider.py [--sliders size color] [--learn prompts] [--count 16]` (resumable).

A slider is trained from a pair of prompts: "small" and "large", or, of purple things, "blue" and "red"; or from pairs of the world's own images that
differ in nothing else. Prompts of held-out scenes of one
thing are then sampled at strengths from -2 to 2, each with the same seeds. The table has the mean radius of the thing in pixels and how much
more red than blue it is, in how many images the slider's own number rises at every step of the strength, and how alike (PSNR) to strength 0
all is that lies off the thing.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch
from controlled_diffusion.nodes.host.training import adapters
from controlled_diffusion.nodes.host.training import slider as host
from controlled_diffusion.nodes.host.training.denoiser import Objective
from controlled_diffusion.training.demo import checker
from controlled_diffusion.training.objectives import Levels
from controlled_diffusion.training.settings import Data, Settings, Validation

from demo import world
from harness.demo_images import CFG, Studio
from measures import script
from measures.script import head, kept, row, say
from measures.textual_inversion import HELD_OUT, single

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
PAIRS = 77  # seed of the pairs of images
EDGE = 4  # pixels around a thing that its own edge is blurred over
GROUNDS = [f"on a {ground} background" for ground in world.BACKGROUNDS]
PLACES = ("", " on the left", " on the right", " at the top", " at the bottom", " in the center")
COLORS, SHAPES, SIZES = tuple(world.COLORS), world.SHAPES, ("", "large ", "small ")


def attributes(color: bool) -> tuple[str, ...]:
    """What the slider must not change: shapes with places and backgrounds, and colors or sizes."""
    made = [f"{SHAPES[i % 5]}{PLACES[i % 6]} {GROUNDS[i % 4]}" for i in range(30)]
    return tuple((f"{COLORS[(i // 5) % 6]} " if color else SIZES[(i // 5) % 3]) + text for i, text in enumerate(made))


SLIDERS = {  # neutral, positive, negative prompt, what to preserve
    "size": ("a {}", "a large {}", "a small {}", attributes(True)),
    "color": ("a purple {}", "a red {}", "a blue {}", attributes(False)),
}


def prompt_of(index: int, slider: str) -> str:
    """A held-out prompt: no size is said, and of the color slider's things are purple."""
    scene = single(index, HELD_OUT)
    thing = replace(scene.things[0], size="medium", **({"color": "purple"} if slider == "color" else {}))
    rng = np.random.default_rng((index, 5))
    return f"a {thing.color} {thing.shape}{PLACES[int(rng.integers(6))]} on a {scene.background} background".replace("a orange", "an orange")


def drawn_pair(index: int, slider: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Images of both ends, and a caption that says neither."""
    scene = single(index, PAIRS)
    thing = scene.things[0]
    thing = replace(thing, x=min(max(thing.x, 38), 90), y=min(max(thing.y, 38), 90))
    ends = [dict(size="small", radius=19), dict(size="large", radius=33)] if slider == "size" else [dict(color="blue"), dict(color="red")]
    before, after = (world.render(replace(scene, things=(replace(thing, **end),))) for end in ends)
    color = thing.color if slider == "size" else "purple"
    return before, after, f"a {color} {thing.shape} on a {scene.background} background".replace("a orange", "an orange")


def asked_of(slider: str, o: argparse.Namespace) -> tuple[host.Slider, Data]:
    if o.learn == "prompts":
        return host.Slider("prompts", *SLIDERS[slider][1:], o.guidance, o.images, 128), Data()
    before, after, captions = zip(*(drawn_pair(i, slider) for i in range(o.images)))
    ends = [[torch.from_numpy(np.stack(images)).float() / 255] for images in (before, after)]
    return host.Slider(o.learn, before=ends[0], after=ends[1]), Data(captions=captions)


def learn(studio: Studio, slider: str, name: str, o: argparse.Namespace):
    neutral = SLIDERS[slider][0]
    asked, data = asked_of(slider, o)
    settings = Settings(o.steps, o.batch, o.rate, seed=0, warmup=10, average=o.average)
    look = Validation(neutral.replace("{}", "red circle"), count=0, steps=o.sampling_steps, cfg=CFG)
    design = adapters.Design(rank=o.rank, layers=o.layers)
    objective = Objective(Levels(o.timesteps, low=o.low), o.weighting)
    with torch.inference_mode(False), torch.no_grad():
        task = host.prepare(studio.model, studio.clip, studio.vae, data, neutral, asked, design, objective, settings, look)
        return host.dreambooth.finish(task, studio.model, name, resume=True)


def measured(images: list[np.ndarray]) -> dict:
    """The numbers of one prompt's images at all strengths."""
    things = [checker.read(image).things[:1] for image in images]
    whole = all(things)
    masks = [t[0].mask for t in things if t]
    around = np.any(masks, axis=0) if masks else np.zeros((128, 128), bool)
    for _ in range(EDGE):
        around = checker._dilate(around)
    middle, apart = images[len(images) // 2].astype(float), []
    for image in images:
        error = np.square(image.astype(float) - middle)[~around].mean()
        apart.append(float(10 * np.log10(255**2 / max(error, 1e-3))))
    radius = [float(np.sqrt(t[0].mask.sum() / np.pi)) if t else 0.0 for t in things]
    redness = [float((i[t[0].mask, 0].astype(float) - i[t[0].mask, 2]).mean()) if t else 0.0 for i, t in zip(images, things)]
    same = [bool(t) and t[0].shape == things[len(images) // 2][0].shape for t in things] if whole else [False] * len(images)
    return {"radius": radius, "redness": redness, "apart": apart, "shape": same}


def judged(studio: Studio, slider: str, lora: dict):
    def verdicts(first: int, count: int) -> list[dict]:
        prompts, drawn = [prompt_of(first + i, slider) for i in range(count)], []
        for strength in STRENGTHS:
            with torch.inference_mode():
                model = host.adapters.comfy.sd.load_lora_for_models(studio.model, None, lora, strength, 0.0)[0]
            drawn.append(studio.draw(prompts, seed=9000 + first, model=model))
        return [measured(list(images)) for images in zip(*drawn)]

    return verdicts


def lines(slider: str, found: list[dict]) -> list[str]:
    own = "radius" if slider == "size" else "redness"
    rising = np.mean([bool((np.diff(v[own]) > 0).all()) for v in found])
    made = []
    for i, strength in enumerate(STRENGTHS):
        radius, redness, apart, shape = (np.mean([v[k][i] for v in found]) for k in ("radius", "redness", "apart", "shape"))
        worst = np.percentile([v["apart"][i] for v in found], 10)
        made.append(row(slider, f"{strength:g}", f"{radius:.1f}", f"{redness:.0f}", f"{100 * shape:.0f} %", f"{apart:.1f}", f"{worst:.1f}"))
    return [*made, row(slider, "rises throughout", f"{100 * rising:.0f} %", "", "", "", "")]


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    return script.options_of(
        __doc__, arguments, sliders=dict(nargs="*", choices=list(SLIDERS), default=list(SLIDERS)), count=16, steps=80, batch=2, images=48, rate=0.004,
        average=0.0, rank=8, layers="attn2", guidance=1.0, sampling_steps=10, timesteps="uniform", low=0.0, weighting="own",
        name=("slider", "another one starts anew"), learn=dict(choices=host.LEARN, default=host.LEARN[0]),
    )  # fmt: skip


def main() -> None:
    o, studio = options_of(), Studio()
    say(head("slider", "strength", "radius", "red - blue", "same shape", "dB off the thing", "a tenth below"))
    for slider in o.sliders:
        name = f"{o.name}-{o.learn.replace(' ', '-')}-{slider}"
        made = learn(studio, slider, name, o)
        say("\n".join(lines(slider, kept(name, o.count, judged(studio, slider, made.lora)))))


if __name__ == "__main__":
    main()
