"""Makes a demo model's noisy classifier: `python . run tests/demo/make_classifier.py [--world illustrated]` (resumable).

It learns from the same scenes as the demo model, in the latents of the autoencoder that lies in the repository; about 10 minutes of 2 cores.
tests/measures/classifier.py measures how it guides.
"""

import numpy as np
import torch
from controlled_diffusion.guidance.classifier import LabeledClassifier, NoisyClassifier
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.guidance import classifier
from controlled_diffusion.nodes.host.latents import latent_space
from controlled_diffusion.training import noisy_classifier
from controlled_diffusion.training.loop import saving
from controlled_diffusion.training.noisy_classifier import LOG_SNR, batch_loss, noised

from demo import model as demo_model
from demo.any_world import World
from demo.make_model import base_model, begin, learned_on, say, scene_latents, shown
from demo.muon import MuonLoop

SEED = 60
HELD_OUT = 0.05  # of the scenes, the last ones, are never trained on


def targets_of(world: World, count: int) -> torch.Tensor:
    """Which labels the first scenes show, 0 or 1 each, (N, labels)."""
    seen = [world.present(world.scene(i)) for i in range(count)]
    return torch.tensor([[float(label in words) for label in world.all_labels] for words in seen])


@torch.no_grad()
def accuracy(network, latents, targets) -> list[tuple[float, float]]:
    """(log-SNR, share of labels that are right) on given scenes."""
    rows = []
    for level in np.linspace(*LOG_SNR, 7):
        log_snr = torch.full((len(latents),), float(level))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED))
        found = network(noised(latents, log_snr, noise), log_snr) > 0
        rows.append((float(level), float((found == (targets > 0.5)).float().mean())))
    return rows


def make(world: World) -> None:
    """Trains it, goes on where it stopped, and writes its file."""
    plan, autoencoder = world.plans["classifier"], base_model(world)[0]
    latents = scene_latents(autoencoder, world)
    latents = (latents - latents.mean()) / latents.std()
    targets = targets_of(world, len(latents))
    network = noisy_classifier.initialize(NoisyClassifier(latents.shape[1], len(world.all_labels)), SEED)
    loop = MuonLoop(
        demo_model.trainable(network), steps=plan.steps, learning_rate=plan.rate, warmup=100, average=0.998,
        matrices=[k for k, p in network.named_parameters() if p.ndim in (2, 4)], about=learned_on(encoder=autoencoder.taesd_encoder),
    )  # fmt: skip
    path = world.state / "classifier.safetensors"
    loop.restore(path)
    learned = len(latents) - int(HELD_OUT * len(latents))
    own = latents[:learned], targets[:learned]
    shown(saving(loop, loop.run(lambda index: batch_loss(network, *own, index, batch=plan.batch, seed=SEED)), path))
    with loop.averaged():
        for level, share in accuracy(network, latents[learned:], targets[learned:]):
            say(f"  log-SNR {level:+.0f}: {100 * share:.1f} % of labels right on held-out scenes")
        target = world.files.classifier
        classifier.save(LabeledClassifier(network, world.all_labels, latent_space(demo.load(world.weights)[0])), target)
        say(f"wrote {target.name}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    make(begin(__doc__)[0])
