"""Makes the demo model's noisy classifier: `python . run tests/demo/make_classifier.py` (resumable; about 10 minutes on 2 cores).

It learns from the same scenes as the demo model, in the latents of the autoencoder that lies in the repository.
"""

import numpy as np
import torch
from controlled_diffusion.guidance.classifier import LabeledClassifier, NoisyClassifier
from controlled_diffusion.nodes.host.guidance import classifier
from controlled_diffusion.training import noisy_classifier
from controlled_diffusion.training.loop import saving
from controlled_diffusion.training.noisy_classifier import LOG_SNR, batch_loss, noised

from demo import model as demo_model
from demo.make_model import STATE, begin, say, scene_latents, shipped, shown
from demo.muon import MuonLoop
from demo.world import BACKGROUNDS, COLORS, SHAPES, TEXTURES, Scene

STEPS, RATE, BATCH, SEED = 3000, 1e-3, 64, 60
LABELS = (*COLORS, *SHAPES, *TEXTURES[1:], *(f"{b} background" for b in BACKGROUNDS))
HELD_OUT = 1000  # the last scenes are never trained on


def present(scene: Scene) -> list[float]:
    """Which labels a scene shows, 0 or 1 each."""
    seen = {f"{scene.background} background"}
    for thing in scene.things:
        seen |= {thing.color, thing.shape, thing.texture}
    return [float(label in seen) for label in LABELS]


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


def main() -> None:
    begin(__doc__)
    recipe, autoencoder = demo_model.RECIPE, shipped()[0]
    latents = scene_latents(autoencoder, recipe)
    latents = (latents - latents.mean()) / latents.std()
    targets = torch.tensor([present(demo_model.scene(i)) for i in range(len(latents))])
    network = noisy_classifier.initialize(NoisyClassifier(latents.shape[1], len(LABELS)), SEED)
    loop = MuonLoop(
        demo_model.trainable(network), steps=STEPS, learning_rate=RATE, warmup=100, average=0.998,
        matrices=[k for k, p in network.named_parameters() if p.ndim in (2, 4)],
    )  # fmt: skip
    path = STATE / "classifier.safetensors"
    loop.restore(path)
    trained = slice(0, len(latents) - HELD_OUT), slice(len(latents) - HELD_OUT, None)
    own = latents[trained[0]], targets[trained[0]]
    shown(saving(loop, loop.run(lambda index: batch_loss(network, *own, index, batch=BATCH, seed=SEED)), path))
    with loop.averaged():
        for level, share in accuracy(network, latents[trained[1]], targets[trained[1]]):
            say(f"  log-SNR {level:+.0f}: {100 * share:.1f} % of labels right on held-out scenes")
        target = classifier.CLASSIFIERS.shipped / "demo_model.safetensors"
        classifier.save(LabeledClassifier(network, LABELS, "DemoLatent"), target)
        say(f"wrote {target.name}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
