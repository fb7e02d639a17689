"""Makes a demo model's noisy classifier: `python . run tests/demo/make_classifier.py [--world illustrated]` (resumable).

It learns from the same scenes as the demo model, in the latents of the autoencoder that lies in the repository; about 10 minutes of 2 cores.
At its end, and when it is run again, it says how well held-out scenes are told apart in noise; tests/measures/classifier.py measures how it
guides.
"""

import math

import torch
from controlled_diffusion.guidance.classifier import LabeledClassifier, NoisyClassifier
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.host.guidance import classifier
from controlled_diffusion.nodes.host.latents import latent_space
from controlled_diffusion.training import noisy_classifier
from controlled_diffusion.training.loop import saving
from controlled_diffusion.training.noisy_classifier import batch_loss, begin_at_shares, noised, shares_as_logits

from demo import model as demo_model
from demo.any_world import World
from demo.fast_norm import use_fast_norm
from demo.make_model import base_model, begin, learned_on, say, scene_latents, shown
from demo.muon import MuonLoop
from measures.script import head, percent, row

SEED = 60
HELD_OUT = 0.05  # of the scenes, the last ones, are never trained on
LEVELS = (200, 500, 800)  # noise levels of 1000 at which scenes are read


def targets_of(world: World, count: int) -> torch.Tensor:
    """Which labels the first scenes show, 0 or 1 each, (N, labels)."""
    seen = [world.present(world.scene(i)) for i in range(count)]
    return torch.tensor([[float(label in words) for label in world.all_labels] for words in seen])


def average_precision(scores: torch.Tensor, has: torch.Tensor) -> float:
    """Mean precision at each image (N,) that has the label, the highest score first; at chance the share that has it."""
    found = has[scores.argsort(descending=True)]
    return float((found.cumsum(0) / torch.arange(1, len(found) + 1) * found).sum() / found.sum())


@torch.no_grad()
def told(network, latents: torch.Tensor, targets: torch.Tensor, known: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(average precision, mean rise of log p over that of the shares `known` where a label is present) of each label (labels,) at a level."""
    kept = float(demo_model.alphas_cumprod()[level])
    log_snr = torch.full((len(latents),), math.log(kept / (1 - kept)))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED))
    parts = zip(noised(latents, log_snr, noise).split(64), log_snr.split(64))
    logits = torch.cat([network(x, s) for x, s in parts])
    precision = [average_precision(*columns) for columns in zip(logits.T, targets.T)]
    rise = torch.nn.functional.logsigmoid(logits) - torch.nn.functional.logsigmoid(known)
    return torch.tensor(precision), (rise * targets).sum(0) / targets.sum(0)


def report(world: World, network, latents: torch.Tensor, targets: torch.Tensor, known: torch.Tensor) -> None:
    """A table of each fact's labels by noise level."""
    say(head(f"{len(latents)} held-out scenes: average precision, rise of log p", *(f"level {level}" for level in LEVELS)))
    found = [told(network, latents, targets, known, level) for level in LEVELS]
    for fact, labels in world.labels.items():
        which = [world.all_labels.index(label) for label in labels]
        cells = (f"{percent(float(precision[which].mean()))}, {float(rise[which].mean()):+.2f}" for precision, rise in found)
        say(row(f"{fact}, {percent(float(targets[:, which].mean()))} at chance", *cells))


def make(world: World) -> None:
    """Trains it, goes on where it stopped, and writes its file."""
    plan, autoencoder = world.plans["classifier"], base_model(world)[0]
    latents = scene_latents(autoencoder, world)
    latents = (latents - latents.mean()) / latents.std()
    targets = targets_of(world, len(latents))
    learned = len(latents) - int(HELD_OUT * len(latents))
    own = latents[:learned], targets[:learned]
    network = noisy_classifier.initialize(NoisyClassifier(latents.shape[1], len(world.all_labels), **plan.settings), SEED)
    network = use_fast_norm(begin_at_shares(network, own[1], "independent").to(memory_format=torch.channels_last))
    loop = MuonLoop(
        demo_model.trainable(network), steps=plan.steps, learning_rate=plan.rate, warmup=100, average=0.998,
        matrices=[k for k, p in network.named_parameters() if p.ndim in (2, 4)], about=learned_on(encoder=autoencoder.taesd_encoder),
    )  # fmt: skip
    path = world.state / "classifier.safetensors"
    loop.restore(path)

    def loss_of(index: int) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return batch_loss(network, *own, index, batch=plan.batch, seed=SEED)

    shown(saving(loop, loop.run(loss_of), path))
    with loop.averaged():
        report(world, network, latents[learned:], targets[learned:], shares_as_logits(own[1], "independent"))
        target = world.files.classifier
        classifier.save(LabeledClassifier(network, world.all_labels, latent_space(demo.load(world.weights)[0])), target)
        say(f"wrote {target.name}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    make(begin(__doc__)[0])
