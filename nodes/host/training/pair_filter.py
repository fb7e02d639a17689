"""Which candidates of a prompt pair are worth learning from: judged by CLIP, by a checker, or without either by how much has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from comfy.clip_model import CLIPTextModel

from ....training.instruct_pix2pix import Filter, PlainFilter, PromptPair, likeness

Checker = Callable[[torch.Tensor, torch.Tensor, PromptPair], Sequence[float]]  # see `CheckerFilter`
Best = list[tuple[int, dict[str, float]]]  # numbers of the candidates to keep, the best first, and what is known of each


@dataclass(frozen=True)
class ChangeFilter:
    """By the share of pixels that change.

    As all filters, it has a `key` that tells it from another, for JSON, and `best` gives at most `top` of the candidates (N, 2, H, W, 3).
    """

    limits: PlainFilter

    @property
    def key(self) -> dict:
        return asdict(self.limits)

    def best(self, candidates: torch.Tensor, pair: PromptPair, top: int) -> Best:
        changed = self.limits.changed(*candidates.unbind(1))
        return [(i, {"changed": float(changed[i])}) for i in self.limits.best(changed, top)]


@dataclass(frozen=True)
class CheckerFilter:
    """`checker(before, after, pair)` scores each candidate (N,) from IMAGE batches (N, H, W, 3) and their prompts: those above 0 are good, the
    highest best. Its `settings_key`, a text, says what it checks; pairs chosen by a checker without one are not continued."""

    checker: Checker

    @property
    def key(self) -> str | None:
        return getattr(self.checker, "settings_key", None)

    def best(self, candidates: torch.Tensor, pair: PromptPair, top: int) -> Best:
        scores = torch.as_tensor(self.checker(*candidates.unbind(1), pair), dtype=torch.float64).flatten().tolist()
        if len(scores) != len(candidates):
            raise ValueError(f"The checker gave {len(scores)} scores for {len(candidates)} candidates; it has to give one for each.")
        good = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: -scores[i])
        return [(i, {"checker": scores[i]}) for i in good[:top]]


@dataclass(frozen=True)
class ClipFilter:
    """By CLIP's embeddings of images and captions, from a CLIP_VISION and the CLIP that belongs to it."""

    limits: Filter
    vision: object
    text: object

    @property
    def key(self) -> dict:
        return asdict(self.limits)

    def best(self, candidates: torch.Tensor, pair: PromptPair, top: int) -> Best:
        images = [self.vision.encode_image(side)["image_embeds"].float().cpu() for side in candidates.unbind(1)]
        found = likeness(*images, *(self._embedding(text, images[0].shape[-1]) for text in (pair.before, pair.after)))
        values = asdict(found)
        return [(i, {f"clip_{k}": float(v[i]) for k, v in values.items()}) for i in self.limits.best(found, top)]

    def _embedding(self, text: str, width: int) -> torch.Tensor:
        found = projected(self.text, text)
        if found is None or found.shape[-1] != width:
            given = "none" if found is None else f"width {found.shape[-1]}"
            raise ValueError(
                f"clip_text gives embeddings of {given}, clip_vision of width {width}: connect the pair that belongs together."
            )
        towers = [m for m in self.text.cond_stage_model.modules() if isinstance(m, CLIPTextModel)]
        if not all(_is_projection(t.text_projection.weight) for t in towers if t.text_projection.out_features == width):
            raise ValueError(
                "clip_text lacks the projection into the space that captions share with images (text_projection), as the text encoder of an "
                "SD1.5 checkpoint does. Connect Load CLIP with the whole CLIP file that clip_vision is of."
            )
        return found


def projected(clip, text: str) -> torch.Tensor | None:
    """A text's embedding (width,) in the space that CLIP shares with images; None of encoders without one.

    ComfyUI leaves the projection out where CLIP-L is the text encoder, as SD1.5 wants it.
    """
    stage, tokens = clip.cond_stage_model, clip.tokenize(text)
    stage.reset_clip_options()
    clip.load_model(tokens)
    stage.set_clip_options({"projected_pooled": True, "execution_device": clip.patcher.load_device})
    try:
        found = stage.encode_token_weights(tokens)[1]
    finally:
        stage.reset_clip_options()
    return None if found is None else found[0].float().cpu()


def _is_projection(weight: torch.Tensor) -> bool:
    """Whether a matrix can be a trained one: where a file has none, ComfyUI leaves zeros or what was in that memory before."""
    weight = weight.float()
    return bool(weight.isfinite().all() and (weight - weight.diag().diag()).any(1).all())


PairFilter = ChangeFilter | CheckerFilter | ClipFilter


def pair_filter(given: PairFilter | Checker | None) -> PairFilter:
    """The filter of what is connected: a filter, a checker, or nothing."""
    if given is None:
        return ChangeFilter(PlainFilter())
    return given if isinstance(given, PairFilter) else CheckerFilter(given)
