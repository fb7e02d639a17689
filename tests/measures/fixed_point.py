"""What fixed-point iterations and midpoint steps bring on the demo model: `python . run tests/measures/fixed_point.py [--count 8]`.

Rendered scenes that the model was never trained on, inverted under their captions and replayed without guidance. Told are the mean relative
error of the latent that comes back, the largest residual that was left at any step of any image, and the evaluations of one inversion.
"""

import torch
from controlled_diffusion.nodes.ddim import DDIMInverter
from controlled_diffusion.nodes.inversion import InversionSampler

from harness.demo_images import SCHEDULER, Studio
from measures.diffedit import change, images, prompts
from measures.script import head, options_of, row, say
from node_schema import defaults

ITERATIONS = (0, 1, 2, 5, 10)
KINDS = ((1, "picard"), (1, "anderson"), (2, "picard"), (2, "anderson"))


@torch.inference_mode()
def measured(studio: Studio, source: list, latents: torch.Tensor, steps: int, **options) -> tuple[float, str, int]:
    """(mean relative error, largest residual, evaluations) of the images."""
    knobs = defaults(DDIMInverter) | dict(steps=steps, scheduler=SCHEDULER) | options
    inversion = DDIMInverter.execute(studio.model, source, {"samples": latents}, **knobs).args[0]
    back = InversionSampler.execute(studio.model, inversion, 1.0, "edit").args[0]["samples"]
    errors = (back - latents).flatten(1).norm(dim=1) / latents.flatten(1).norm(dim=1)
    residuals = inversion.trajectory.extras.get("residuals")
    return float(errors.mean()), "" if residuals is None else f"{float(residuals.max()):.1e}", inversion.evaluations


def main() -> None:
    options = options_of(__doc__, count=(8, "images"), steps=20)
    studio, changes = Studio(), [change(i) for i in range(options.count)]
    with torch.inference_mode():
        source, latents = prompts(studio, changes)[0], studio.vae.encode(images(changes))
    say(head(f"{options.count} images, {options.steps} steps", "iterations", "error", "largest residual", "evaluations"))
    for order, acceleration in KINDS:
        for iterations in ITERATIONS[0 if acceleration == "picard" else 1 :]:
            knobs = dict(order=order, acceleration=acceleration, fixed_point_iterations=iterations)
            error, residual, evaluations = measured(studio, source, latents, options.steps, **knobs)
            name = "DDIM" if order == 1 else "midpoint"
            say(row(name + (f", {acceleration}" if iterations else ""), iterations, f"{error:.1e}", residual, evaluations))


if __name__ == "__main__":
    main()
