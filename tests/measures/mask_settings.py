"""DiffEdit Mask's shaping of one heat, at other thresholds and sizes: `python . run tests/measures/mask_settings.py`.

The heat of the edits of tests/measures/diffedit.py is found once, at 128 pixels. It is cut at several thresholds; then it is scaled to
other sizes, as a larger or smaller image of the same model would give it, and shaped by radii that are shares of the side, or by the
pixels that they are at 128. A mask is measured by its overlap (IoU) with the thing.
"""

import numpy as np
import torch
import torch.nn.functional as F
from controlled_diffusion.guidance.diffedit import AUTO, Cut, probe_percents
from controlled_diffusion.nodes.host.guidance.diffedit import MaskSettings, MaskTarget
from controlled_diffusion.nodes.host.sampling import TwoPrompts

from harness.demo_images import Studio
from measures.diffedit import Change, change, images, prompts
from measures.script import head, options_of, row, say

SIDE, CELLS = 128, 16
SHAPED = dict(close=0.1, dilate=0.02)  # 13 and 3 pixels of 128


@torch.inference_mode()
def heats(studio: Studio, changes: list[Change]) -> torch.Tensor:
    """(B, 128, 128) with the node's defaults."""
    source, target = prompts(studio, changes)
    guider = TwoPrompts(studio.model, source, target, source, 1.0)
    return MaskTarget(studio.model, studio.vae, images(changes)).heat(guider, MaskSettings(probe_percents(0.3, 0.5, 3)))


def overlap(mask: torch.Tensor, truth: torch.Tensor) -> str:
    """Mean IoU of masks and the things, both (B, H, W)."""
    found, things = mask > 0.5, truth > 0.5
    return f"{float(((found & things).sum((1, 2)) / (found | things).sum((1, 2)).clamp(min=1)).mean()):.3f}"


def scaled(maps: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(maps[:, None], (side, side), mode="bilinear", antialias=side < SIDE)[:, 0]


def main() -> None:
    options = options_of(__doc__, count=(20, "edits, a quarter of each kind"))
    studio, changes = Studio(), [change(i) for i in range(options.count)]
    found = torch.cat([heats(studio, changes[i : i + 20]) for i in range(0, len(changes), 20)])
    truth = torch.from_numpy(np.stack([c.truth for c in changes])).float()
    say(head(f"threshold ({len(changes)} edits)", "mask IoU"))
    for threshold in (0.2, 0.25, 0.3, 0.4, 0.5, AUTO):
        name = "-1 (Otsu's)" if threshold == AUTO else f"{threshold:g}"
        say(row(name, overlap(Cut(threshold=threshold).mask(found, SIDE / CELLS)[0], truth)))
    say("\n" + head("the same heat at, with close 0.1 and dilate 0.02", "radii as shares", "radii in pixels of 128"))
    for side in (32, 64, 128, 512):
        maps, things = scaled(found, side), scaled(truth, side)
        pixels = {name: min(0.5, share * SIDE / side) for name, share in SHAPED.items()}
        say(row(f"{side} pixels", *(overlap(Cut(**radii).mask(maps, side / CELLS)[0], things) for radii in (SHAPED, pixels))))


if __name__ == "__main__":
    main()
