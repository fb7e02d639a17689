"""Two concepts on the demo model, learnt apart and merged: `python . run tests/measures/custom_diffusion.py [--count 128]` (resumable).

Five pictures each show a shape that the demo model never saw, and a texture that their captions do not name. Custom Diffusion learns each
as a word with keys and values, and the closed form merges them. Then they are asked for in new contexts, each under its own file, each
under the merged one, and both in one thing. The checker says how often the concept is there, how often the prompt's colour, shape and
background are right, and how far pictures of the ordinary world have drifted.
"""

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from controlled_diffusion.nodes.host import adapters
from controlled_diffusion.nodes.host import custom_diffusion as merging
from controlled_diffusion.nodes.host import dreambooth as host
from controlled_diffusion.training import demo_checker
from controlled_diffusion.training import demo_world as world

from harness.demo_pictures import Studio
from measures import textual_inversion
from measures.personalisation import ALIKE, PICTURES, asked, drift, kept, lesson, ordinary, taught
from measures.textual_inversion import HELD_OUT, caption, placed, say, single

FACTS = ("concept", "color", "shape", "background", "all")
IDEAS = (*world.STRANGERS, *world.TEXTURES[1:])


@dataclass(frozen=True)
class Idea:
    """A concept: a strange shape, which stands for the noun of a caption, or a texture, which stands before the colour."""

    name: str

    @property
    def strange(self) -> bool:
        return self.name in world.STRANGERS

    @property
    def placeholder(self) -> str:
        return f"<{self.name}>"

    def lesson(self) -> tuple[torch.Tensor, list[str]]:
        """(pictures (N, 128, 128, 3), captions with the placeholder)."""
        if self.strange:
            return lesson(self.name, self.placeholder)
        pictures, captions = textual_inversion.lesson(self.name, PICTURES)
        return pictures, [placed(text, self.placeholder) for text in captions]


def prompt(index: int, words: dict[Idea, str]) -> tuple[str, world.Caption]:
    """(what is asked for, what it claims) of a held-out scene with concepts under their words."""
    noun = next(((idea.name, word) for idea, word in words.items() if idea.strange), None)
    made = asked(index, noun[0], HELD_OUT, noun[1]) if noun else caption(single(index, HELD_OUT), 10_000 + index)
    text = made.text
    for idea, word in words.items():
        text = text if idea.strange else placed(text, word)
    return text, made


def verdict(picture: np.ndarray, claimed: world.Caption, ideas: list[Idea]) -> dict[str, bool]:
    """What the checker says of the largest thing."""
    reading, claim = demo_checker.read(picture), claimed.claims[0]
    if not reading.things:
        return dict.fromkeys(FACTS, False)
    seen = reading.things[0]
    shape, score = demo_checker.any_shape(seen.mask)
    found = {
        "concept": all(shape == idea.name and score >= ALIKE if idea.strange else seen.texture == idea.name for idea in ideas),
        "color": seen.color == claim.color,
        "shape": shape == claim.shape,
        "background": demo_checker.judge(reading, claimed).get("background", True),
    }
    return {k: bool(v) for k, v in found.items()} | {"all": bool(all(found.values()))}


def new_contexts(studio: Studio, model, words: dict[Idea, str]):
    """Judges prompts of held-out scenes with concepts in them."""

    def judged(first: int, count: int) -> list[dict]:
        texts, claims = zip(*(prompt(first + i, words) for i in range(count)))
        return [verdict(p, c, list(words)) for p, c in zip(studio.draw(list(texts), seed=first, model=model), claims)]

    return judged


def learn(studio: Studio, idea: Idea, name: str, o: argparse.Namespace) -> host.Learnt:
    word = host.Word(idea.placeholder, "shape" if idea.strange else "", 1)
    subject = host.Subject(f"a {idea.placeholder}" + ("" if idea.strange else " shape"), word, o.word_rate)
    return taught(studio, name, idea.lesson(), subject, merging.KeysAndValues(), o.prior_weight, o)


@torch.inference_mode()
def merge(studio: Studio, learnt: dict[Idea, host.Learnt], o: argparse.Namespace):
    """The MODEL with all concepts."""
    lines = [f"{made.name} = {text}" for made in learnt.values() for text in made.sentences[: o.sentences]]
    regular = [c.text for c in ordinary(o.regular, 3000)]
    found = merging.merge(studio.model, studio.clip, merging.concepts_of("\n".join(lines)), regular)
    return adapters.patched(studio.model, found)


def row(name: str, found: list[dict], drifted: list[dict] | None) -> str:
    shares = " | ".join(f"{100 * np.mean([v[f] for v in found]):.1f} %" for f in FACTS)
    if drifted is None:
        return f"| {name} | {len(found)} | {shares} | | |"
    return f"| {name} | {len(found)} | {shares} | {100 * np.mean([v['right'] for v in drifted]):.1f} % | {np.mean([v['apart'] for v in drifted]):.4f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", choices=IDEAS, nargs="+", default=["tee", "striped"])
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.002)
    parser.add_argument("--weighting", default="own")
    parser.add_argument("--word-rate", type=float, default=0.01)
    parser.add_argument("--prior-weight", type=float, default=1.0)
    parser.add_argument("--sentences", type=int, default=8, help="of each concept, for merging")
    parser.add_argument("--regular", type=int, default=400, help="ordinary prompts, for merging")
    parser.add_argument("--name", default="measured-cd", help="another one starts anew")
    o = parser.parse_args()
    studio, ideas = Studio(), [Idea(name) for name in o.concepts]
    say("| Custom Diffusion | pictures | " + " | ".join(FACTS) + " | ordinary prompts right | drift |\n|" + "---|" * (4 + len(FACTS)))
    learnt, words = {}, {}
    for idea in ideas:
        name = f"{o.name}-{idea.name}"
        made = learnt[idea] = learn(studio, idea, name, o)
        words[idea] = made.word
        found = kept(f"{name}-new", o.count, new_contexts(studio, made.model, {idea: made.word}))
        say(row(idea.name, found, kept(f"{name}-drift", o.count, drift(studio, made.model))))
    if len(ideas) < 2:
        return
    both = merge(studio, learnt, o)
    drifted = kept(f"{o.name}-merged-drift", o.count, drift(studio, both))
    for asked_for in ([ideas[0]], [ideas[1]], ideas):
        name = " and ".join(idea.name for idea in asked_for)
        found = kept(f"{o.name}-merged-{name}", o.count, new_contexts(studio, both, {idea: words[idea] for idea in asked_for}))
        say(row(f"merged: {name}", found, drifted if asked_for == ideas else None))


if __name__ == "__main__":
    main()
