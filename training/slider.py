"""Concept Sliders (arXiv 2311.12092): a LoRA whose strength moves images between what two prompts say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..guidance.errors import quoted

PLACE = "{}"  # in a prompt, where an attribute goes


class PromptSet(NamedTuple):
    """What a sample is trained on: the prompt that the slider acts on, and what it comes to at strength 1 and at -1."""

    neutral: str
    positive: str
    negative: str


def prompt_sets(neutral: str, positive: str, negative: str, preserve: Sequence[str] = ()) -> tuple[PromptSet, ...]:
    """The prompts, one set for each attribute to preserve, which stands in all three: at `{}`, or before them as in the published code.

    The paper adds up the differences of all attributes; its code, and this one, takes them by turns, so that eta does not grow with their
    number. Raises ValueError on prompts that say the same.
    """
    if positive.split() == negative.split():
        raise ValueError(
            f"The slider's positive and negative prompt are both {quoted(positive)}. Say what strength 1 and what strength -1 shows, as in 'a very "
            "old person' and 'a very young person'."
        )
    attributes = [text.strip() for text in preserve if text.strip()] or [""]
    for text in (neutral, positive, negative):
        if PLACE in text and attributes == [""]:
            raise ValueError(f"{quoted(text)} has a {PLACE}, but preserve is empty. Give what goes there, one a line, or take the {PLACE} out.")
    return tuple(PromptSet(*(_with(text, attribute) for text in (neutral, positive, negative))) for attribute in attributes)


def _with(text: str, attribute: str) -> str:
    """A prompt with an attribute."""
    return " ".join((text if PLACE in text else f"{PLACE} {text}").replace(PLACE, attribute).split())


def target(neutral: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, eta: float) -> torch.Tensor:
    """`D(x, c) + eta (D(x, c+) - D(x, c-))`, the paper's target in denoised space, (B, C, ...), of predictions of the untrained model.

    For strength -1 give `-eta`: the published code trains 1 alone from prompts, and both from images.
    """
    return neutral + eta * (positive - negative)
