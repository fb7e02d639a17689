"""How far a concept leaks into other prompts: `python . run tests/measures/leakage.py [--only NAME ...] [--count 48]` (resumable).

The same five images of stripes, whose captions say everything else, are trained as a word alone, as a word with keys and values, and as a LoRA
with a word or without one; with class images and without, at several learning rates. The checker says in how many images stripes are there:
of prompts with the word, and of ordinary prompts, which never name them.
"""

import argparse
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from controlled_diffusion.nodes.host.training import adapters
from controlled_diffusion.nodes.host.training import custom_diffusion as merging
from controlled_diffusion.nodes.host.training import dreambooth as host
from controlled_diffusion.training.demo import checker
from controlled_diffusion.training.textual_inversion import Word

from demo import world
from harness.demo_images import Studio
from measures import script, textual_inversion
from measures.custom_diffusion import Idea, new_contexts
from measures.personalization import ordinary_captions, taught
from measures.script import head, kept, percent, row, say

IDENTIFIER = "sks"


@dataclass(frozen=True)
class Way:
    """How the concept is trained; `word_rate` 0 = a rare word of the model stands for it."""

    design: object
    rate: float
    prior: float = 0.0
    steps: int = 100
    word_rate: float = 0.02
    batch: int = 3

    @property
    def title(self) -> str:
        what = "keys and values" if isinstance(self.design, merging.KeysAndValues) else "LoRA"
        return f"{what}, {'a new' if self.word_rate else 'a rare'} word, rate {self.rate:g}, prior weight {self.prior:g}"


KV, LORA = merging.KeysAndValues(), adapters.Design(layers="-out.2, -emb")
WAYS = {
    "kv": Way(KV, 0.0015),
    "kv-prior": Way(KV, 0.0015, 1.0),
    "kv-slow": Way(KV, 0.0003),
    "kv-slow-prior": Way(KV, 0.0003, 1.0),
    "lora": Way(LORA, 0.004),
    "lora-prior": Way(LORA, 0.004, 1.0),
    "lora-slow": Way(LORA, 0.001),
    "lora-slow-prior": Way(LORA, 0.001, 1.0),
    "rare": Way(LORA, 0.004, word_rate=0.0),
    "rare-prior": Way(LORA, 0.004, 1.0, word_rate=0.0),
}


def learned(studio: Studio, idea: Idea, name: str, way: Way) -> tuple:
    """(MODEL, what stands for the concept in a prompt)."""
    images, captions = idea.lesson()
    word = idea.placeholder if way.word_rate else IDENTIFIER
    captions = [text.replace(idea.placeholder, word) for text in captions]
    subject = host.Subject(f"a {word} shape", (Word(word, ""),) if way.word_rate else (), way.word_rate)
    o = SimpleNamespace(steps=way.steps, batch=way.batch, rate=way.rate, average=0.0, timesteps="uniform", weighting="own")
    made = taught(studio, f"leakage-{name}", (images, captions), subject, way.design, way.prior, o)
    return made.model, made.word if way.word_rate else IDENTIFIER


def ordinary(studio: Studio, model, concept: str):
    """Judges prompts that do not name the concept: whether they show it, and whether they are right."""

    def judged(first: int, count: int) -> list[dict]:
        prompts = ordinary_captions(count, first)
        images = studio.draw([c.text for c in prompts], seed=5000 + first, model=model)
        readings = [checker.read(image) for image in images]
        shown = [concept in textual_inversion.shown(image, reading) for image, reading in zip(images, readings)]
        right = [bool(checker.judge(reading, c)["bound"]) for reading, c in zip(readings, prompts)]
        return [{"leak": s, "right": r} for s, r in zip(shown, right)]

    return judged


def line(title: str, found: list[dict], others: list[dict]) -> str:
    shares = [np.mean([v[k] for v in rows]) for rows, k in ((found, "concept"), (found, "all"), (others, "leak"), (others, "right")) if rows]
    return row(title, len(others), *(percent(share) for share in shares))


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    only = dict(nargs="*", choices=list(WAYS), default=list(WAYS))
    return script.options_of(__doc__, arguments, only=only, concept=dict(choices=world.TEXTURES, default="striped"), count=48)


def main() -> None:
    o, studio = options_of(), Studio()
    idea = Idea(o.concept)
    say(head("trained", "images of each", "with the word", "all right", "without the word", "right"))
    for name in o.only:
        model, word = learned(studio, idea, f"{o.concept}-{name}", WAYS[name])
        found = kept(f"leakage-{o.concept}-{name}-word", o.count, new_contexts(studio, model, {idea: word}))
        others = kept(f"leakage-{o.concept}-{name}-others", o.count, ordinary(studio, model, o.concept))
        say(line(WAYS[name].title, found, others))


if __name__ == "__main__":
    main()
