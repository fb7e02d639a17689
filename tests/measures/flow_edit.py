"""FlowEdit and FlowAlign on the demo model against plain image to image: `python . run tests/measures/flow_edit.py`.

Held-out rendered scenes, each with a source and a target caption that differ in one thing (those of tests/measures/diffedit.py). An edit
is right if the checker reads the target in the result; "the rest" is the PSNR of what lies off the changed thing, against the VAE's own
round trip.
"""

from dataclasses import dataclass, field

import comfy.sample
import numpy as np
import torch
from controlled_diffusion.nodes.as_flow import ModelSamplingAsFlow
from controlled_diffusion.nodes.flow_edit import FlowEditLatentSampler

from harness.demo_images import SAMPLER, SCHEDULER, STEPS, Studio
from measures.diffedit import KINDS, Change, change, images, prompts
from measures.inversion import judged
from measures.script import head, options_of, percent, row, say
from node_schema import defaults

SD3 = dict(steps=50, n_max=0.66, source_cfg=3.5, cfg=13.5)
EPS = dict(steps=20, n_max=0.65, source_cfg=1.5, cfg=7.5)
ALIGN = dict(steps=20, n_max=0.65, cfg=7.5, zeta=0.01)
ROWS = [dict(denoise=0.7, cfg=4.0), EPS, EPS | dict(n_max=0.75), SD3, EPS | dict(flow=True)]
ROWS += [ALIGN | more for more in ({}, dict(n_max=0.75), dict(zeta=0.0), dict(cfg=5.0), dict(cfg=10.0), dict(steps=33, n_max=1.0, cfg=13.5))]


@dataclass(frozen=True)
class Way:
    """A row: FlowEdit with its settings, or plain image to image where they hold a denoise."""

    settings: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        if "denoise" in self.settings:
            return "image to image, " + ", ".join(f"{k} {v:g}" for k, v in self.settings.items())
        kind = "FlowAlign" if "zeta" in self.settings else "FlowEdit, as a flow model" if self.settings.get("flow") else "FlowEdit"
        return f"{kind}: " + ", ".join(f"{k} {v:g}" for k, v in self.settings.items() if k != "flow")

    def made(self, studio: Studio, changes: list[Change], latents: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        source, target = prompts(studio, changes)
        if "denoise" in self.settings:
            given = (STEPS, self.settings["cfg"], SAMPLER, SCHEDULER, target, studio.prompt(""), latents)
            noise, more = studio.noise(len(changes), 0), dict(denoise=self.settings["denoise"], disable_pbar=True, seed=0)
            return comfy.sample.sample(studio.model, noise, *given, **more)
        own = {k: v for k, v in self.settings.items() if k in ("source_cfg", "cfg", "zeta")}
        method = {"method": "FlowAlign" if "zeta" in own else "FlowEdit", **own}
        rest = {k: v for k, v in self.settings.items() if k in ("steps", "n_max")}
        knobs = defaults(FlowEditLatentSampler) | dict(scheduler=SCHEDULER, negative=studio.prompt(""), method=method) | rest
        model = ModelSamplingAsFlow.execute(studio.model).args[0] if self.settings.get("flow") else studio.model
        return FlowEditLatentSampler.execute(model, source, target, {"samples": latents}, mask=mask, **knobs).args[0]["samples"]


@torch.inference_mode()
def measured(studio: Studio, way: Way, changes: list[Change]) -> list[tuple[bool, float]]:
    latents = studio.vae.encode(images(changes))
    return judged(studio.vae.decode(way.made(studio, changes, latents)), studio.vae.decode(latents), changes)


def main() -> None:
    only = dict(nargs="*", metavar="WAY", help="ways whose names hold one of these texts")
    options = options_of(__doc__, count=(24, "edits, a quarter of each kind"), batch=(24, "edits at a time"), only=only)
    studio, changes = Studio(), [change(i) for i in range(options.count)]
    say(head(f"{len(changes)} edits", "right", *KINDS, "the rest"))
    for way in [w for w in map(Way, ROWS) if options.only is None or any(text in w.name for text in options.only)]:
        parts = range(0, len(changes), options.batch)
        found = [one for i in parts for one in measured(studio, way, changes[i : i + options.batch])]
        of_kinds = [percent(np.mean([right for (right, _), c in zip(found, changes) if c.kind == kind])) for kind in KINDS]
        say(row(way.name, percent(np.mean([right for right, _ in found])), *of_kinds, f"{np.mean([off for _, off in found]):.1f} dB"))


if __name__ == "__main__":
    main()
