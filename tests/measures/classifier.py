"""What classifier guidance does on the demo model without any prompt: `python . run tests/measures/classifier.py`.

For every scale: the share of pictures that show the asked label, and how varied the rest still is (entropy of what was
not asked for, 1 = as varied as without guidance).
"""

import argparse
from collections import Counter

import numpy as np
from controlled_diffusion.guidance.classifier import ClassifierForce
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host import classifiers
from controlled_diffusion.nodes.host.channels import MultiCFG
from controlled_diffusion.training import demo_checker
from controlled_diffusion.training.demo_world import COLORS, SHAPES

from harness.demo_pictures import Studio

SCALES = (0.0, 2.0, 8.0, 32.0, 64.0)


def shows(picture: np.ndarray, label: str) -> bool:
    return any(label in (t.color, t.shape) for t in demo_checker.read(picture).things)


def entropy(values) -> float:
    """Entropy in bits of the values."""
    shares = np.array(list(Counter(values).values()), dtype=float)
    shares /= shares.sum()
    return float(-(shares * np.log2(shares)).sum())


def rest(picture: np.ndarray, label: str) -> tuple:
    """Background, layout and, of the largest thing, what was not asked for."""
    seen = demo_checker.read(picture)
    things = seen.things[:1]
    return (seen.background, len(seen.things), *((t.shape if label in COLORS else t.color, t.position) for t in things))


def guided(studio: Studio, label: str, scale: float, count: int, seed: int = 4000) -> np.ndarray:
    """Pictures with an empty prompt and one classifier channel."""
    classifier = classifiers.read(classifiers.SHIPPED / "demo_model.safetensors")
    channel = Channel(None, scale, force=ClassifierForce(classifier, classifier.choices(label)))
    guider = MultiCFG(studio.model, studio.prompt(""), [channel])
    return np.concatenate([studio.draw_with(guider, min(32, count - first), seed=seed + first) for first in range(0, count, 32)])


def success(studio: Studio, labels, scale: float, count: int) -> tuple[float, float]:
    """(share that shows its label, mean over labels of the entropy of the rest in bits)."""
    right, bits = [], []
    for label in labels:
        pictures = guided(studio, label, scale, count)
        right += [shows(p, label) for p in pictures]
        bits.append(np.mean([entropy(part) for part in zip(*(rest(p, label)[:2] for p in pictures))]))
    return float(np.mean(right)), float(np.mean(bits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=16, help="pictures for each label")
    count, studio = parser.parse_args().count, Studio()
    labels = (*COLORS, *SHAPES)
    print(
        f"| classifier scale ({count} pictures for each of {len(labels)} labels) | the label is there | entropy of the rest, bits |\n|---|---|---|"
    )
    for scale in SCALES:
        share, bits = success(studio, labels, scale, count)
        print(f"| {scale:g} | {100 * share:.0f} % | {bits:.2f} |")


if __name__ == "__main__":
    main()
