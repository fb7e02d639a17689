"""How exactly images come back on the demo model: `python . run tests/measures/exact_inversion.py [--images 2] [--cfg 1]`.

Rendered scenes that the model was never trained on, inverted under their true captions and walked back under the same, at the same cfg. The
error is that of the latent, relative to the latent, the mean over the images.
"""

import time
from dataclasses import dataclass

import torch
from controlled_diffusion.inversion.bdia import BDIA
from controlled_diffusion.inversion.belm import OBELM
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.inversion.edict import EDICT
from controlled_diffusion.inversion.exact import for_steps
from controlled_diffusion.inversion.method import Method, replay
from controlled_diffusion.nodes.host import noise_levels, sampling
from controlled_diffusion.nodes.host.inversion import exact, invert

from harness.demo_images import SCHEDULER, Studio
from measures.diffedit import change, images, prompts
from measures.script import head, options_of, row, say


@dataclass(frozen=True)
class Found:
    """What one round trip gave; seconds and evaluations of both ways, for one image."""

    error: float
    drift: float
    seconds: float
    evaluations: float


@torch.inference_mode()
def round_trip(studio: Studio, method: Method, scheduler: str, steps: int, cfg: float, precision: torch.dtype, count: int) -> Found:
    changes, negative = [change(i) for i in range(count)], studio.prompt("")
    source, _ = prompts(studio, changes)
    latent, began = {"samples": studio.vae.encode(images(changes))}, time.perf_counter()
    sigmas = noise_levels.levels(studio.model, scheduler, steps, 0.0)
    found = invert.invert(studio.model, None, latent, source, method, sigmas, negative=negative, cfg=cfg, precision=precision)

    def loop(guider, derivative, clean, show):
        return replay(method, derivative, found.trajectory, show=show)

    guider = sampling.Guidance(studio.model, source, negative, cfg)
    sampler = sampling.run(guider, latent["samples"], sigmas, loop, {"back": found.trajectory.steps})
    clean, seconds = found.trajectory.states[-1][0], time.perf_counter() - began
    errors = (sampler.result - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)
    evaluations = found.evaluations + guider.evaluations
    return Found(float(errors.mean()), exact.drift(studio.model, found), seconds / count, evaluations)


def methods(steps: int) -> dict[str, Method]:
    return {"DDIM": DDIM(), "EDICT": EDICT(for_steps(0.93, steps)), "BDIA": BDIA(for_steps(0.94, steps)), "O-BELM": OBELM()}


def main() -> None:
    steps, only = dict(type=int, nargs="*", default=[10, 20, 50, 200]), dict(nargs="*", choices=list(methods(1)), default=list(methods(1)))
    options, studio = options_of(__doc__, images=2, steps=steps, cfg=1.0, scheduler=SCHEDULER, only=only | {"metavar": "METHOD"}), Studio()
    say(f"{options.images} images, cfg {options.cfg:g}, scheduler {options.scheduler}; costs are for one image, both ways\n")
    say(head("method", "steps", "error, float64", "error, float32", "strength of the noise", "seconds", "evaluations"))
    for steps in options.steps:
        for name in options.only:
            settings = methods(steps)[name], options.scheduler, steps, options.cfg
            double, single = (round_trip(studio, *settings, dtype, options.images) for dtype in (torch.float64, torch.float32))
            costs = f"{double.seconds:.1f}", f"{double.evaluations:.0f}"
            say(row(name, steps, f"{double.error:.1e}", f"{single.error:.1e}", f"{double.drift:.2f}", *costs))


if __name__ == "__main__":
    main()
