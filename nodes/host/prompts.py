"""Prompts as ComfyUI's text encoders see them: tokens, words, and conditionings of several prompts as rows of one."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cached_property
from itertools import chain

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.sd1_clip import escape_important, token_weights, unescape_important

from ...attention.prompt import Prompt, common, joined, moved, read
from ...guidance.errors import listed, quoted
from .conditionings import same_value

COLUMNLESS = frozenset({"l", "g", "h", "byt5"})  # beside the text encoder of a DiT: what they give has no columns, or has its own
LAYOUTS = {  # names of the encoders in ComfyUI's tokens, and whose columns follow each other in the conditioning; some share theirs
    frozenset({"l"}): (("l",),),
    frozenset({"h"}): (("h",),),
    frozenset({"g"}): (("g",),),
    frozenset({"g", "l"}): (("g", "l"),),
    frozenset({"g", "l", "t5xxl"}): (("g", "l"), ("t5xxl",)),  # SD3
    frozenset({"g", "l", "t5xxl", "llama"}): (("t5xxl",),),  # HiDream, whose Llama comes beside the conditioning
}


def _layout(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Whose columns a conditioning has. Raises ValueError for encoders of unknown order."""
    own = [n for n in names if n not in COLUMNLESS]
    layout = LAYOUTS.get(frozenset(names)) or ((tuple(own),) if len(own) == 1 else None)
    if layout is None:
        raise ValueError(
            f"This text encoder gives tokens of {', '.join(sorted(names))}, whose places in the conditioning are not known. Use the CLIP of an "
            "SD1.5, SD2 or SDXL model, or of a DiT with one text encoder, such as Flux, SD3 or Qwen-Image."
        )
    return layout


def _key(token) -> Hashable:
    """A token as something to compare: the vectors of an embedding file are tensors."""
    return ("vector", hash(token.detach().float().cpu().numpy().tobytes())) if torch.is_tensor(token) else token


class ClipTokenizer:
    """One of the tokenizers of a CLIP, by the name under which ComfyUI gives its tokens."""

    def __init__(self, clip, name: str):
        self.clip, self.name = clip, name

    def _chunks(self, text: str) -> list[list[tuple[Hashable, bool]]]:
        comfy.model_management.throw_exception_if_processing_interrupted()  # a text of many words is tokenized once a word
        return [[(_key(entry[0]), entry[2] != 0) for entry in chunk] for chunk in self.clip.tokenize(text, return_word_ids=True)[self.name]]

    @cached_property
    def frame(self) -> tuple[int, int]:
        """How many tokens of a chat template ComfyUI puts before and after every text."""
        one, other = ([token for chunk in self._chunks(text) for token, is_text in chunk if is_text] for text in ("cat", "dog"))
        return common(one, other), common(one[::-1], other[::-1])

    def chunks(self, text: str) -> list[list[tuple[Hashable, bool]]]:
        chunks = self._chunks(text)
        places = [(chunk, i) for chunk in chunks for i, (_, is_text) in enumerate(chunk) if is_text]
        before, after = self.frame
        for chunk, i in places[:before] + places[len(places) - after :]:
            chunk[i] = (chunk[i][0], False)
        return chunks

    def _text(self, text: str) -> list[Hashable]:
        return [token for chunk in self.chunks(text) for token, is_text in chunk if is_text]

    @cached_property
    def weighted(self) -> bool:
        """Whether it reads (word:1.5) as a weight."""
        return self._text("(a:1.5)") == self._text("a")

    def parts(self, text: str) -> list[str]:
        if not self.weighted:
            return [text]
        return [unescape_important(part) for part, _ in token_weights(escape_important(text), 1.0)]

    def tokens(self, part: str) -> list[Hashable]:
        return self._text(part.replace("(", "\\(").replace(")", "\\)") if self.weighted else part)


def _shared(text: str, names: Sequence[str], clip) -> Prompt:
    """The words of a prompt for encoders that share columns."""
    found = {name: read(text, ClipTokenizer(clip, name)) for name in names}
    if len({p.words for p in found.values()}) > 1:
        shown = "; ".join(f"{name}: " + listed(f"{w.text} ({len(w.columns)})" for w in p.words) for name, p in found.items())
        raise ValueError(
            f"The text encoders make different tokens of {quoted(text)}, so that their columns do not match: {shown}. Use an embedding that "
            "has equally many vectors for both."
        )
    return found[names[0]]


def prompt_of(clip, text: str, length: int | None = None) -> Prompt:
    """The words of a prompt with their columns in the conditioning that the CLIP makes of it.

    Some encoders cut a template off the front of what they give; so give the conditioning's `length` where it is known.
    """
    prompts = [_shared(text, names, clip) for names in _layout(list(clip.tokenize("").keys()))]
    if length == prompts[0].length:  # an encoder that is not loaded leaves its columns out
        return prompts[0]
    whole = joined(prompts)
    cut = whole.length - (whole.length if length is None else length)
    if not 0 <= cut <= min((c for w in whole.words for c in w.columns), default=whole.length):
        raise ValueError(
            f"The conditioning of {quoted(text)} has {length} columns for {whole.length} tokens, so that the places of its words are not known. Use a "
            "text encoder of SD1.5, SD2, SDXL, Flux, SD3 or Qwen-Image without other nodes on it."
        )
    return moved(whole, -cut) if cut else whole


def without_weights(clip, text: str) -> tuple[str, list[tuple[str, float]]]:
    """A text without ComfyUI's syntax of weights, as the CLIP reads it, and its parts with their weights."""
    parts = [(unescape_important(part), weight) for part, weight in token_weights(escape_important(text), 1.0)]
    plain = "".join(part for part, _ in parts)
    reads = any(ClipTokenizer(clip, name).weighted for names in _layout(list(clip.tokenize(""))) for name in names)
    return plain.replace("(", "\\(").replace(")", "\\)") if reads else plain, parts


def encoded(clip, text: str, tokens: dict | None = None) -> list:
    """The CONDITIONING of a text, as CLIPTextEncode makes it, or of its tokens. Refuses scheduled ones, which have several parts."""
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text) if tokens is None else tokens)
    if len(conditioning) != 1:
        raise ValueError(
            f"The CLIP gives {len(conditioning)} conditionings for {quoted(text)}, for parts of the sampling. Remove hooks and schedules from the CLIP."
        )
    return conditioning


def source_of(clip, given: list | str) -> tuple[list, str]:
    """(CONDITIONING, text) of what was connected as a source prompt: a text, which is encoded, or a conditioning, whose text is not known."""
    if not isinstance(given, str):
        return given, ""
    if clip is None:
        raise ValueError("source is a text, which the text encoder has to read. Connect clip too, or a conditioning instead of the text.")
    return encoded(clip, given), given.strip()


def as_rows(conditionings: Sequence[list], repeats: int) -> tuple[list, list[int]]:
    """One CONDITIONING with a row for each of several, each `repeats` times; and how often each was repeated along its tokens.

    Texts of unequal length are repeated to a common one, as ComfyUI does with positive and negative: attention's output is the same.
    """
    features = [c[0][0] for c in conditionings]
    length = math.lcm(*(f.shape[1] for f in features))
    times = [length // f.shape[1] for f in features]
    return _rows([f.repeat(1, n, 1) for f, n in zip(features, times)], [c[0][1] for c in conditionings], repeats), times


def as_filled_rows(conditionings: Sequence[list], repeats: int, in_front: bool) -> list:
    """The same for models that would see the repetition: shorter texts are filled up to the longest.

    `in_front`: with zeros before the text, where the model itself does so. Else with the mean of their tokens behind it, which has to be
    hidden from attention and leaves means over the text as they are.
    """
    features = [c[0][0] for c in conditionings]
    length = max(f.shape[1] for f in features)

    def filled(f: torch.Tensor) -> torch.Tensor:
        more = length - f.shape[1]
        if in_front:
            return F.pad(f, (0, 0, more, 0))
        return torch.cat([f, f.mean(1, keepdim=True).expand(-1, more, -1)], 1)

    extras = [{**c[0][1]} for c in conditionings]
    masks = [e.pop("attention_mask", None) for e in extras]
    conditioning = _rows([filled(f) for f in features], extras, repeats)
    if any(m is not None for m in masks):
        conditioning[0][1]["attention_mask"] = _mask_of_rows(masks, [f.shape[1] for f in features], length, repeats)
    return conditioning


def _mask_of_rows(masks: Sequence[torch.Tensor | None], lengths: Sequence[int], length: int, repeats: int) -> torch.Tensor:
    """The masks of texts, which may be missing, as one; of a single row where nothing is masked, as ComfyUI counts tokens by it."""
    like = next(m for m in masks if m is not None)
    whole = [F.pad(like.new_ones(1, n) if m is None else m, (0, length - n), value=1) for m, n in zip(masks, lengths)]
    mask = torch.cat([m.expand(repeats, -1) for m in whole])
    return mask[:1] if bool(mask.all()) else mask


def _rows(features: Sequence[torch.Tensor], extras: Sequence[dict], repeats: int) -> list:
    """One CONDITIONING of texts of one length. Extras of one shape become rows too. Raises ValueError where others differ."""

    def rows(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([t.expand(repeats, *t.shape[1:]) for t in tensors])

    def together(name: str):
        first, *others = given = [e.get(name) for e in extras]
        if all(torch.is_tensor(v) and v.ndim > 1 and v.shape == given[0].shape for v in given):
            return rows(given)
        if not all(same_value(first, other) for other in others):
            raise ValueError(
                f"The prompts differ in {quoted(name)}, which cannot be in one batch: it is there where text is in quotation marks (HunyuanImage, "
                "HunyuanVideo 1.5), or grows with a very long prompt (HiDream). Put text of the same length in quotation marks into all prompts or "
                "into none, or shorten the longest."
            )
        return first

    return [[rows(features), {name: together(name) for name in dict.fromkeys(chain(*extras))}]]
