"""What classifier guidance does on a demo model without any prompt: `python . run tests/measures/classifier.py [--world illustrated]`.

For every scale: the share of images that show the asked label, and how varied the rest still is: the effective number of different
images for each label (Vendi score).
"""

from collections.abc import Sequence

import numpy as np
from controlled_diffusion.guidance.classifier import ClassifierGradient
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host.guidance.classifier import read
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG

from demo import worlds
from demo.any_world import World
from harness.demo_images import Studio
from measures.script import head, options_of, percent, row, say

SCALES, GOAL = (0.0, 2.0, 8.0, 32.0, 64.0), 0.85


def rest(world: World, reading, fact: str) -> list[str]:
    """What was not asked for; "-" where there is no thing that could say."""
    seen = world.described(reading)
    return [seen.get(name, "-") for name in (*world.facts, "count", "place") if name != fact]


def vendi(descriptions) -> float:
    """The effective number of different images, the Vendi score (arXiv 2210.02410, definition 3.1); two images are as similar as the
    share of words that they have in common."""
    words = np.array([[str(word) for word in d] for d in descriptions])
    similar = (words[:, None] == words[None]).mean(-1)
    shares = np.linalg.eigvalsh(similar / len(words)).clip(1e-12)
    return float(np.exp(-(shares * np.log(shares)).sum()))


class Bench:
    """A world's model and classifier."""

    def __init__(self, world: World, studio: Studio | None = None):
        self.world, self.studio, self.classifier = world, studio or worlds.studio(world), read(world.files.classifier)

    def guided(self, label: str, scale: float, count: int, seed: int = 4000) -> np.ndarray:
        """Images with an empty prompt and one classifier channel."""
        channel = Channel(None, scale, gradient=ClassifierGradient(self.classifier, self.classifier.choices(label)))
        guider = MultiCFG(self.studio.model, self.studio.prompt(""), [channel])
        return np.concatenate([self.studio.draw_with(guider, min(32, count - first), seed=seed + first) for first in range(0, count, 32)])

    def success(self, labels: dict[str, Sequence[str]], scale: float, count: int) -> tuple[dict[str, list[bool]], float]:
        """(by fact, whether images show their label; mean over labels of the effective number of different images)."""
        right, different = {fact: [] for fact in labels}, []
        for fact, found in right.items():
            for label in labels[fact]:
                readings = self.world.read(self.guided(label, scale, count))
                found += [self.world.shows(reading, label) for reading in readings]
                different.append(vendi([rest(self.world, reading, fact) for reading in readings]))
        return right, float(np.mean(different))


def main() -> None:
    scales = dict(nargs="*", type=float, default=SCALES, help="classifier scales")
    options = options_of(__doc__, None, worlds.add_options, count=(16, "images for each label"), scales=scales)
    count, bench, best = options.count, Bench(worlds.chosen(options)), 0.0
    labels = {fact: bench.world.labels[fact] for fact in bench.world.guided}
    title = f"classifier scale ({count} images for each of {sum(map(len, labels.values()))} labels)"
    say(head(title, "the label is present", *labels, "different images for each label"))
    for scale in options.scales:
        right, different = bench.success(labels, scale, count)
        share = float(np.mean([held for found in right.values() for held in found]))
        best = max(best, share)
        say(row(f"{scale:g}", percent(share), *(percent(np.mean(right[fact])) for fact in labels), f"{different:.1f}"))
    say(f"\nThe label is present at the best scale: {percent(best)} (goal {percent(GOAL)}): {'reached' if best >= GOAL else 'MISSED'}")


if __name__ == "__main__":
    main()
