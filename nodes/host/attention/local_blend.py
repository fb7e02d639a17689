"""The local blend of Prompt-to-Prompt as a part of its own: put on a patched model, and its masks looked at after a run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image

from ....attention.prompt_to_prompt import Rows
from ..conditionings import KEY
from ..images import as_image, labelled_table, to_pil
from .prompt_to_prompt import Editing, PromptToPrompt

TILE, MOMENTS, DIMMED = 160, 6, 0.25


def control_of(source) -> PromptToPrompt:
    """The Prompt-to-Prompt of a model, or of a guider over it."""
    patcher = getattr(source, "model_patcher", source)
    controls = getattr(patcher, "model_options", {}).get("transformer_options", {}).get(KEY, ())
    found = next((c for c in controls if isinstance(c, PromptToPrompt)), None)
    if found is None:
        raise ValueError(
            f"{type(source).__name__} does not come from a P2P Attention Patch. Connect its 'model' output, or a guider over it."
        )
    return found


def with_blend(model, words: str, protect: str, **shape):
    """The model of a Prompt-to-Prompt with a local blend of these words in the place of its own; none without words."""
    control = control_of(model)
    patched = model.clone()
    options = patched.model_options["transformer_options"]
    options[KEY] = tuple(c.blended(words, protect, **shape) if c is control else c for c in options[KEY])
    return patched


def run_of(source) -> Editing:
    """The last run of a model, or of a guider over it; refuses one without masks."""
    runs = control_of(source).runs
    if not runs:
        raise ValueError("There is no finished run to look at: connect the latent that was sampled with this model, and the model itself.")
    if runs[0].blending is None:
        raise ValueError("The run had no local blend. Name blend_words in P2P Attention Patch, or put P2P Local Blend behind it.")
    if not runs[0].blending.masks:
        raise ValueError(
            "The blend did not act in any step of the run: its start lies behind the last one, or the positive acts in an area alone. Lower its "
            "start or begin the sampling earlier; use a mask in the place of an area."
        )
    return runs[0]


def mask_at(run: Editing, percent: float) -> torch.Tensor:
    """The mask of every edited image at a percent of the sampling, the last before it or else the first: MASK (N, H, W) in pixels."""
    masks = run.blending.masks
    chosen = next((mask for p, mask in reversed(masks) if p <= percent), masks[0][1])
    return in_pixels(chosen, run.control.pixels)


def in_pixels(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    return mask.float().repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)


def over_time(run: Editing, images: torch.Tensor | None) -> torch.Tensor:
    """A row for each edited image, its mask at several moments of the sampling; over the images, if there are as many; an IMAGE."""
    masks, pixels = run.blending.masks, run.control.pixels
    count = min(MOMENTS, len(masks))
    moments = [masks[round(i * (len(masks) - 1) / max(count - 1, 1))] for i in range(count)]
    edits = len(masks[0][1])
    under = [None] * edits if images is None else _under(images, run.rows)
    rows = [[_tile(in_pixels(m[i : i + 1], pixels)[0], under[i]) for _, m in moments] for i in range(edits)]
    names = [f"edit {i + 1}" for i in range(edits)]
    return as_image(labelled_table(rows, names, [f"{100 * p:.0f} %" for p, _ in moments]))


def _under(images: torch.Tensor, rows: Rows) -> list[torch.Tensor]:
    """The image of each edit in a batch of all rows, or of the edits alone; of videos, the frame in the middle."""
    edits = rows.total - rows.images
    each, over = divmod(len(images), rows.total if len(images) % rows.total == 0 else edits)
    if over or not each:
        raise ValueError(
            f"'image' has {len(images)} images for {edits} edits and {rows.images} of the source: as many for each are needed. Decode the "
            "sampled latent and connect all of it."
        )
    first = len(images) - edits * each
    return [images[first + i * each + each // 2, ..., :3].float().cpu() for i in range(edits)]


def _tile(mask: torch.Tensor, image: torch.Tensor | None) -> Image.Image:
    """A mask (H, W) in white on black, or an image (H, W, 3) dimmed where the mask is 0."""
    height, width = mask.shape
    size = round(TILE * height / max(height, width)), round(TILE * width / max(height, width))
    shown = F.interpolate(mask[None, None], size)[0, 0, ..., None].expand(-1, -1, 3)
    if image is not None:
        under = F.interpolate(image.movedim(-1, 0)[None], size, mode="area")[0].movedim(0, -1)
        shown = under * (DIMMED + (1 - DIMMED) * shown)
    return to_pil(shown)
