"""What classifier guidance does on the demo model without any prompt: `python . run tests/measures/classifier.py`.

For every scale: the share of images that show the asked label, and how varied the rest still is: the effective number of different
images for each label (Vendi score).
"""

import numpy as np
from controlled_diffusion.guidance.classifier import ClassifierGradient
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host.guidance.classifier import CLASSIFIERS, read
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.training.demo import checker

from demo.world import COLORS, SHAPES
from harness.demo_images import Studio
from measures.script import head, options_of, percent, row, say

SCALES = (0.0, 2.0, 8.0, 32.0, 64.0)


def shows(image: np.ndarray, label: str) -> bool:
    return any(label in (t.color, t.shape) for t in checker.read(image).things)


def rest(image: np.ndarray, label: str) -> tuple:
    """What was not asked for: background, number of things and, of the largest, its other name, place, size and texture."""
    seen = checker.read(image)
    thing = seen.things[0] if seen.things else None
    looks = (thing.shape if label in COLORS else thing.color, thing.position, thing.size, thing.texture) if thing else "----"
    return seen.background, len(seen.things), *looks


def vendi(descriptions) -> float:
    """The effective number of different images, the Vendi score (arXiv 2210.02410, definition 3.1); two images are as similar as the
    share of words that they have in common."""
    words = np.array([[str(word) for word in d] for d in descriptions])
    similar = (words[:, None] == words[None]).mean(-1)
    shares = np.linalg.eigvalsh(similar / len(words)).clip(1e-12)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def guided(studio: Studio, label: str, scale: float, count: int, seed: int = 4000) -> np.ndarray:
    """Images with an empty prompt and one classifier channel."""
    classifier = read(CLASSIFIERS.shipped / "demo_model.safetensors")
    channel = Channel(None, scale, gradient=ClassifierGradient(classifier, classifier.choices(label)))
    guider = MultiCFG(studio.model, studio.prompt(""), [channel])
    return np.concatenate([studio.draw_with(guider, min(32, count - first), seed=seed + first) for first in range(0, count, 32)])


def success(studio: Studio, labels, scale: float, count: int) -> tuple[float, float]:
    """(share that shows its label, mean over labels of the effective number of different images)."""
    right, different = [], []
    for label in labels:
        images = guided(studio, label, scale, count)
        right += [shows(p, label) for p in images]
        different.append(vendi([rest(p, label) for p in images]))
    return float(np.mean(right)), float(np.mean(different))


def main() -> None:
    count, studio, labels = options_of(__doc__, count=(16, "images for each label")).count, Studio(), (*COLORS, *SHAPES)
    title = f"classifier scale ({count} images for each of {len(labels)} labels)"
    say(head(title, "the label is present", "different images for each label"))
    for scale in SCALES:
        share, different = success(studio, labels, scale, count)
        say(row(f"{scale:g}", percent(share), f"{different:.1f}"))


if __name__ == "__main__":
    main()
