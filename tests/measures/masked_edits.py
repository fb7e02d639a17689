"""DiffEdit Sampler against a KSampler with the same mask, on the demo model: `python . run tests/measures/masked_edits.py`.

The edits of tests/measures/diffedit.py, each inside the mask that DiffEdit Mask finds. An edit succeeds if the checker reads the target.
"The rest" is the PSNR of what lies off the changed thing, against the VAE's own round trip; "layout" the IoU of the thing before and
after, of the edits that keep its shape.
"""

from collections.abc import Callable
from functools import partial

import comfy.sample
import numpy as np
import torch
from controlled_diffusion.guidance import diffedit
from controlled_diffusion.nodes.diffedit import DiffEditSampler
from controlled_diffusion.training.demo import checker

from demo.world import thing_masks
from harness.demo_images import CFG, SAMPLER, SCHEDULER, STEPS, Studio
from measures.diffedit import KINDS, Change, change, images, masks, prompts
from measures.inversion import judged
from measures.script import head, options_of, percent, row, say
from node_schema import defaults

DIFFEDIT = [dict(encode_ratio=r, cfg=CFG) for r in (0.7, 0.8, 0.9, 1.0)]
KSAMPLER = [dict(denoise=d, cfg=CFG) for d in (0.8, 0.9, 1.0)] + [dict(denoise=1.0, cfg=CFG, dilate=0.03)]


def with_diffedit(studio: Studio, changes: list[Change], latents: torch.Tensor, found: torch.Tensor, **settings) -> torch.Tensor:
    source, target = prompts(studio, changes)
    knobs = defaults(DiffEditSampler) | dict(steps=STEPS, scheduler=SCHEDULER) | settings
    given = dict(source=source, mask=found.float())
    return DiffEditSampler.execute(studio.model, target, studio.prompt(""), {"samples": latents}, **given, **knobs).args[0]["samples"]


def with_ksampler(
    studio: Studio, changes: list[Change], latents: torch.Tensor, found: torch.Tensor, denoise: float, cfg: float, dilate: float = 0.0
) -> torch.Tensor:
    mask = diffedit.dilated(found.float(), round(dilate * found.shape[-1]))
    settings = (STEPS, cfg, SAMPLER, SCHEDULER, prompts(studio, changes)[1], studio.prompt(""), latents)
    more = dict(denoise=denoise, disable_pbar=True, seed=0, noise_mask=mask[:, None])
    return comfy.sample.sample(studio.model, studio.noise(len(changes), 0), *settings, **more)


WAYS: dict[str, Callable] = {
    ", ".join([name, *(f"{k} {v:g}" for k, v in settings.items())]): partial(way, **settings)
    for name, way, rows in (("DiffEdit Sampler", with_diffedit, DIFFEDIT), ("KSampler", with_ksampler, KSAMPLER))
    for settings in rows
}


def kept_layout(image: np.ndarray, wish: Change) -> float:
    """IoU of what the checker sees as things and the things before."""
    seen = np.any([t.mask for t in checker.read(image).things] or [np.zeros_like(wish.truth)], 0)
    before = np.any(thing_masks(wish.before), 0)
    return float((seen & before).sum() / max(1, (seen | before).sum()))


@torch.inference_mode()
def measured(studio: Studio, way: Callable, changes: list[Change], found: torch.Tensor) -> list[dict]:
    latents = studio.vae.encode(images(changes))
    floor, made = (studio.vae.decode(x) for x in (latents, way(studio, changes, latents, found)))
    shown = (made * 255 + 0.5).clamp(0, 255).byte().numpy()
    judgments = judged(made, floor, changes)
    return [
        dict(kind=c.kind, right=right, off=off, layout=kept_layout(p, c) if c.kind in ("color", "texture") else None)
        for c, p, (right, off) in zip(changes, shown, judgments)
    ]


def line(name: str, found: list[dict]) -> str:
    of_kinds = [percent(np.mean([f["right"] for f in found if f["kind"] == kind])) for kind in KINDS]
    layout = np.mean([f["layout"] for f in found if f["layout"] is not None])
    return row(
        name, percent(np.mean([f["right"] for f in found])), *of_kinds, f"{np.mean([f['off'] for f in found]):.1f} dB", f"{layout:.2f}"
    )


def main() -> None:
    only = dict(nargs="*", metavar="WAY", help="ways whose names hold one of these texts")
    options = options_of(__doc__, count=(32, "edits, a quarter of each kind"), batch=(32, "edits at a time"), only=only)
    studio, changes = Studio(), [change(i) for i in range(options.count)]
    parts = [changes[i : i + options.batch] for i in range(0, len(changes), options.batch)]
    found = [masks(studio, part) for part in parts]
    say(head(f"{len(changes)} edits", "right", *KINDS, "the rest", "layout"))
    for name, way in WAYS.items():
        if options.only is None or any(text in name for text in options.only):
            say(line(name, [one for part, mask in zip(parts, found) for one in measured(studio, way, part, mask)]))


if __name__ == "__main__":
    main()
