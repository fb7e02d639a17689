"""The local blend of Prompt-to-Prompt as a part of its own: put on a patched model, and its masks shown after a run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image

from ....attention.local_blend import coverages
from ....attention.prompt_to_prompt import Rows
from ..conditionings import KEY
from ..images import as_image, fitted, image_grid, resized, to_pil
from .hook import installed, runs_of
from .prompt_to_prompt import PromptToPrompt

TILE, SHOWN, DIMMED = 160, 6, 0.25  # pixels of a mask's longer side, masks of a row, brightness off the mask
Masks = list[tuple[float, torch.Tensor]]  # (percent, masks of all edited images)


def with_blend(model, words: str, protect: str, **shape):
    """The model of a Prompt-to-Prompt with a local blend of these words instead of its own; none without words."""
    control = installed(model, PromptToPrompt)[0]
    patched = model.clone()
    options = patched.model_options["transformer_options"]
    options[KEY] = tuple(c.blended(words, protect, **shape) if c is control else c for c in options[KEY])
    return patched


def masks_of(source, latent: dict) -> tuple[PromptToPrompt, Masks]:
    """The Prompt-to-Prompt of a model, or of a guider over it, that made a LATENT, and its masks. Raises ValueError where there are none."""
    runs = runs_of(source, PromptToPrompt, latent)
    if runs[0].blending is None:
        raise ValueError("The run had no local blend. Put P2P Local Blend between P2P Attention Patch and the sampler.")
    masks = [mask for run in runs for mask in run.blending.masks]
    if not masks:
        raise ValueError(
            "The blend did not act in any step of the run: its start is after the last one, or the positive acts in an area alone. Lower its "
            "start or begin the sampling earlier; use a mask instead of an area."
        )
    return runs[-1].control, masks


def coverage(control: PromptToPrompt, masks: Masks) -> str:
    """How much of each edited image the last mask covers, a line each, with what to do where that is nearly all or nothing."""
    return "\n".join(f"{line}. {warning}" if warning else line for line, warning in coverages(masks[-1][1], control.blend, control.rows))


def mask_at(masks: Masks, percent: float, pixels: int) -> torch.Tensor:
    """The mask of every edited image at a percent of the sampling, the last before it or else the first: MASK (N, H, W) in pixels."""
    return in_pixels(next((mask for p, mask in reversed(masks) if p <= percent), masks[0][1]), pixels)


def in_pixels(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    return mask.float().repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)


def over_time(masks: Masks, images: torch.Tensor | None, control: PromptToPrompt) -> torch.Tensor:
    """A row for each edited image, its mask at several times of the sampling; over the images, if there are as many; an IMAGE."""
    count = min(SHOWN, len(masks))
    shown = [masks[round(i * (len(masks) - 1) / max(count - 1, 1))] for i in range(count)]
    edits = len(masks[0][1])
    under = [None] * edits if images is None else _under(images, control.rows)
    rows = [[_tile(in_pixels(mask[i : i + 1], control.pixels)[0], under[i]) for _, mask in shown] for i in range(edits)]
    return as_image(image_grid(rows, [f"{100 * p:.0f} %" for p, _ in shown], [f"edit {i + 1}" for i in range(edits)]))


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
    size = fitted(mask.shape, TILE)
    shown = F.interpolate(mask[None, None], size)[0, 0, ..., None].expand(-1, -1, 3)
    return to_pil(shown if image is None else resized(image, size) * (DIMMED + (1 - DIMMED) * shown))
