"""Textual inversion: a concept trained as a few word vectors, everything else frozen (arXiv 2208.01618).

This file knows words and vectors: the prompts that the new word is trained in, where its vectors start, and how long they may grow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..attention.prompt import is_mark
from ..guidance.errors import check_choice, quoted

TEMPLATES = {
    "object": (
        "{}", "a photo of {}", "a picture of {}", "a close-up of {}", "one {} in the picture", "a clear photo of {}", "a dim photo of {}",
        "a cropped photo of {}", "a plain drawing of {}", "{} seen from near", "{} in the middle of the picture",
        "a good picture of a single {}",
    ),
    "style": (
        "in the style of {}", "a painting in the style of {}", "a picture in the style of {}", "a drawing in the style of {}",
        "a detail in the style of {}", "a scene in the style of {}", "a bright picture in the style of {}",
        "a dark picture in the style of {}", "a small work in the style of {}", "art in the manner of {}",
    ),
    "face": (
        "a photo of {}", "a portrait of {}", "the face of {}", "a close-up of the face of {}", "{} looking at the camera",
        "{} from the side", "a smiling {}", "a studio portrait of {}", "a snapshot of {}", "a black and white photo of {}",
    ),
}  # fmt: skip
KINDS = (*TEMPLATES, "own")
NORMS = ("limit", "keep", "free")
APART = 0.05  # of its size, by which a vector that starts at the same word as another is moved
FAMILIAR_SCALE = 0.4 / math.sqrt(768)  # RMS of SD1.5's word vectors, of norm about 0.4: what published learning rates are made for


@dataclass(frozen=True)
class Word:
    """The new word: how it is written in training, what it starts from, and how its vectors may grow."""

    placeholder: str = "<concept>"
    initial_words: str = ""
    vectors: int = 1
    norm: str = "limit"
    norm_limit: float = 1.5


def check_placeholder(placeholder: str, is_word: Callable[[str], bool]) -> None:
    """Refuses a placeholder that could be taken for something else. `is_word` says whether a text is one word the model knows."""
    advice = "Give one made-up word that stands for the concept in captions and templates, such as <my-thing>."
    if not placeholder.strip():
        raise ValueError(f"The placeholder is empty. {advice}")
    if len(placeholder.split()) > 1:
        raise ValueError(f"The placeholder {quoted(placeholder)} is several words. {advice}")
    if re.search(r"[(){}\\:,]", placeholder):
        raise ValueError(f"The placeholder {quoted(placeholder)} holds one of ( ) {{ }} \\ : , which mean something in prompts. {advice}")
    if is_word(placeholder):
        raise ValueError(f"The placeholder {quoted(placeholder)} is a word that the model knows; it would lose its meaning. {advice}")


def own_templates(text: str, placeholder: str) -> tuple[str, ...]:
    """Templates of a text, one a line; each holds {} or the placeholder once or more, and may hold {caption}."""
    lines = [line.strip().replace(placeholder, "{}") for line in text.splitlines() if line.strip()]
    for line in lines:
        if "{}" not in line:
            raise ValueError(
                f"The template {quoted(line)} lacks {{}}, the place of the new word. Write one a line, as in 'a photo of {{}}'."
            )
    if not lines:
        raise ValueError(
            "The kind of templates is 'own' but none is given. Write one a line, as in 'a photo of {}', or choose another kind."
        )
    return tuple(lines)


@dataclass(frozen=True)
class Prompts:
    """The prompts that the word is trained in.

    A caption that holds the placeholder is the sentence itself. Any other goes where a template says {caption}, or after it; at times it is
    left out, so that the word learns to stand without it. `captions` are empty, or one for each image,
    each of one sentence or of several to choose from.
    """

    templates: tuple[str, ...]
    placeholder: str
    captions: tuple[str, ...] = ()

    def __post_init__(self):
        asks = [t for t in self.templates if "{caption}" in t]
        if asks and not self.captions:
            raise ValueError(
                f"The template {quoted(asks[0])} asks for a caption but there are none. Connect captions, or take {{caption}} out."
            )

    def sentence(self, image: int, number: int, seed: int, rate: float = 0.0) -> str:
        """The sentence for an image as sample `number` of the training, the caption being left out at a `rate`; it holds the placeholder."""
        rng = np.random.default_rng((seed, number))
        template, leave_out = self.templates[int(rng.integers(len(self.templates)))], rng.random() < rate
        caption = one_of(wordings(self.captions[image]), rng.random()) if self.captions else ""
        if names(caption, self.placeholder):
            return caption
        caption = "" if leave_out else caption
        if caption and "{caption}" not in template:
            template += ", {caption}"
        return " ".join(template.replace("{caption}", caption).replace("{}", self.placeholder).split()).strip(" ,")


def _places(text: str, placeholder: str) -> list[tuple[int, int]]:
    """(start, end) of every placeholder that is a word of its own."""
    found = [m.span() for m in re.finditer(rf"(?<![\w-]){re.escape(placeholder)}(?![\w-])", text)]
    return [(a, b) for a, b in found if not any(map(is_mark, text[max(a - 1, 0) : a] + text[b : b + 1]))]


def names(text: str, placeholder: str) -> bool:
    """Whether a text holds the placeholder as a word of its own."""
    return bool(_places(text, placeholder))


def with_name(text: str, placeholder: str, name: str) -> str:
    """A text with every placeholder replaced by `name`, set off by spaces."""
    for a, b in reversed(_places(text, placeholder)):
        text = f"{text[:a]} {name} {text[b:]}"
    return text


def wordings(caption: str) -> tuple[str, ...]:
    """The sentences of a caption that says one thing in several ways, "a red toy | a photo of a toy"; at least one, which may be empty."""
    return tuple(filter(None, map(str.strip, caption.split("|")))) or ("",)


def one_of(choices: Sequence[str], draw: float) -> str:
    """The choice at a number in [0, 1)."""
    return choices[int(draw * len(choices))]


def captions_for(given: Sequence[str], images: int, what: str = "captions") -> tuple[str, ...]:
    """One text for each image: as given, or the lines of a single text; none of an empty one."""
    if len(given) == 1 and not given[0].strip():
        given = ()
    elif len(given) == 1 and images > 1:
        lines = given[0].replace("\r\n", "\n").split("\n")  # the first and the last may be the empty text of an image
        given = lines if len(lines) == images else given[0].strip().splitlines()
    if given and len(given) != images:
        raise ValueError(
            f"There are {len(given)} {what} for {images} images; give one for each image (a list, or one a line), or none at all."
        )
    return tuple(given)


def start_rows(words: torch.Tensor, vectors: int, generator: torch.Generator) -> torch.Tensor:
    """Start values (vectors, dim) from the vectors (m, dim) of the initial words.

    As many vectors as words: the words. Fewer: means of neighboring words. More: the words over and over; from the second round on with
    noise of `APART` times their size, since equal vectors would stay equal.
    """
    if vectors < 1:
        raise ValueError(f"The concept has {vectors} vectors; give 1 or more. Typical: 1–8.")
    words = words.float()
    if vectors <= len(words):
        return torch.stack([part.mean(0) for part in words.tensor_split(vectors)])
    rows = words[torch.arange(vectors) % len(words)]
    noise = torch.randn(rows.shape, generator=generator).to(rows) * rows.square().mean(1, keepdim=True).sqrt() * APART
    noise[: len(words)] = 0
    return rows + noise


@dataclass(frozen=True)
class Vocabulary:
    """What is typical of an encoder's word vectors: the RMS of their numbers and the median of their norms."""

    scale: float
    norm: float

    @classmethod
    def from_table(cls, table: torch.Tensor) -> Vocabulary:
        """Of a table (words, dim)."""
        rows = table.float()
        return cls(float(rows.square().mean().sqrt()), float(rows.norm(dim=1).median()))


class Concept:
    """The vectors of a new word, (vectors, dim) for each text encoder by its key.

    What the optimizer holds, `parameters`, is in units of each encoder's own vocabulary, so that one learning rate suits encoders whose
    vectors differ a hundredfold in size. `norm`: "limit" keeps each vector at most `limit` times as long as a typical word, so that it
    mixes with other words; "keep" at the length it started with; "free" lets it grow. `pace`: how
    many times faster than other parameters the optimizer moves it.
    """

    def __init__(
        self,
        starts: dict[str, torch.Tensor],
        vocabularies: dict[str, Vocabulary],
        norm: str = "limit",
        limit: float = 1.5,
        pace: float = 1.0,
    ):
        check_choice("norm", norm, NORMS)
        self.scales = {k: v.scale * pace for k, v in vocabularies.items()}
        self.parameters = {k: torch.nn.Parameter(rows.float() / self.scales[k]) for k, rows in starts.items()}
        lengths = {k: rows.float().norm(dim=1, keepdim=True) for k, rows in starts.items()}
        self.longest = {k: lengths[k].clamp(min=limit * v.norm) if norm == "limit" else lengths[k] for k, v in vocabularies.items()}
        self.norm = norm

    def rows(self, key: str) -> torch.Tensor:
        """The vectors of an encoder, (vectors, dim), with their graph."""
        return self.parameters[key] * self.scales[key]

    @torch.no_grad()
    def control(self) -> None:
        """Brings every vector to the length it may have."""
        for key, p in self.parameters.items() if self.norm != "free" else ():
            factor = self.longest[key].to(p) / self.scales[key] / p.norm(dim=1, keepdim=True).clamp(min=1e-12)
            p.mul_(factor.clamp(max=1.0) if self.norm == "limit" else factor)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a file holds: the vectors of every encoder, on the CPU."""
        return {k: self.rows(k).detach().float().cpu() for k in self.parameters}
