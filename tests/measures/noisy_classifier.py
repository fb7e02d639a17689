"""How well noisy classifiers read half-finished images: `python . run tests/measures/noisy_classifier.py` (resumable).

Held-out scenes of one thing, in latents of the demo model, at several noise levels. The demo model's own classifier, and one that Train
Noisy Classifier learns from fewer images in fewer steps: how often the likeliest color, shape, texture and background is the true one.
"""

import argparse
import math

import numpy as np
import torch
from controlled_diffusion.nodes.host.guidance.classifier import read
from controlled_diffusion.nodes.host.training import noisy_classifier as host
from controlled_diffusion.training.noisy_classifier import noised

from demo import model as demo_model
from demo import world
from demo.shapes_world import SHAPES
from harness.demo_images import Studio
from measures import script
from measures.script import head, percent, row, say

SIGMAS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 14.0)
LEARN, HELD_OUT = 888, 4242
FACTS = {"color": tuple(world.COLORS), "shape": world.SHAPES, "texture": world.TEXTURES}
FACTS["background"] = tuple(f"{b} background" for b in world.BACKGROUNDS)


def labels_of(scene: world.Scene) -> list[str]:
    """All labels that a scene shows; nothing is said of plain things."""
    words = [word for t in scene.things for word in (t.color, t.shape, t.texture) if word != "plain"]
    return [*dict.fromkeys(words), f"{scene.background} background"]


def latents_of(studio: Studio, scenes: list[world.Scene]) -> torch.Tensor:
    """As the model sees the images when clean, (N, 4, 16, 16)."""
    images = torch.from_numpy(np.stack([world.render(s) for s in scenes])).float() / 255
    return studio.model.model.process_latent_in(torch.cat([studio.vae.encode(part) for part in images.split(32)]))


def learned(studio: Studio, options: argparse.Namespace):
    """What the trainer makes of rendered scenes with their labels, or goes on with."""
    scenes = [demo_model.scene(i, LEARN) for i in range(options.images)]
    images = [torch.from_numpy(world.render(s)).float()[None] / 255 for s in scenes]
    settings = host.Settings(options.steps, options.batch, options.rate, seed=0, kind="independent", size="small")
    labels = ["\n".join(", ".join(labels_of(s)) for s in scenes)]
    return host.learn(studio.model, studio.vae, images, labels, settings, options.name, "continue").model


def shares(classifier, latents: torch.Tensor, scenes: list[world.Scene], sigma: float) -> dict[str, float]:
    """Of each fact the share that is read right at a noise level."""
    log_snr = torch.full((len(latents),), -2 * math.log(sigma))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    logits = classifier.network(noised(latents, log_snr, noise), log_snr)
    known = {label: logits[:, i] for i, label in enumerate(classifier.labels)}
    plain = torch.zeros(len(latents))  # the logit of a texture that has no label
    found = {}
    for fact, names in FACTS.items():
        said = torch.stack([known.get(name, plain) for name in names]).argmax(0).tolist()
        found[fact] = float(np.mean([names[k] in (*labels_of(s), s.things[0].texture) for k, s in zip(said, scenes)]))
    return found


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    name = ("measured", "of the trained classifier; another one starts anew")
    counts = dict(count=(512, "held-out images"), images=(1024, "to learn from"))
    return script.options_of(__doc__, arguments, steps=1000, batch=64, rate=1e-3, name=name, **counts)


def held_out(count: int) -> list[world.Scene]:
    """Scenes of one thing."""
    return [s for s in (demo_model.scene(i, HELD_OUT) for i in range(4 * count)) if len(s.things) == 1][:count]


@torch.inference_mode()
def main() -> None:
    options, studio = options_of(), Studio()
    scenes = held_out(options.count)
    latents = latents_of(studio, scenes)
    say(head(f"{len(scenes)} held-out images, right at sigma", *(f"{s:g}" for s in SIGMAS)))
    shipped = read(SHAPES.files.classifier)
    for name, classifier in (("the demo model's", shipped), ("trained by the node", learned(studio, options))):
        columns = [shares(classifier, latents, scenes, sigma) for sigma in SIGMAS]
        for fact, names in FACTS.items():
            say(row(f"{name}: {fact} of {len(names)}", *(percent(c[fact]) for c in columns)))


if __name__ == "__main__":
    main()
