"""Null-text inversion beside the paper's schedule: `python . run tests/bench/null_text.py [--count 5] [--steps 50]`.

The same network inverts the same rendered images, one at a time and in turn, at cfg 7.5. The reference follows the paper's
code in plain torch: start at the empty prompt, go on from step to step, up to 10 Adam iterations, its stop rule after each of them. PSNR is
that of the way back to the VAE's own round trip; evaluations count a forward pass as 1 and a backward pass as 2. The table is printed after
every image.
"""

import time
from dataclasses import dataclass, field

import comfy.model_management
import torch
from controlled_diffusion.inversion import quality
from controlled_diffusion.nodes.host import gradients, noise_levels
from controlled_diffusion.nodes.inversion import InversionSampler
from controlled_diffusion.nodes.negative_prompt import NegativePromptInverter
from controlled_diffusion.nodes.null_text import NullTextInverter

from harness.demo_images import SCHEDULER, Studio
from measures.inversion import CFG, STEPS, Change, edits, images, prompts
from measures.script import head, options_of, row, say
from node_schema import defaults

INNER = 10
OURS = {  # nodes and the settings that differ from their defaults
    "Null-Text Inverter": (NullTextInverter, {}),
    "null-text, early_stop 0.2": (NullTextInverter, {"early_stop": 0.2}),
    "null-text, early_stop 1": (NullTextInverter, {"early_stop": 1.0}),
    "null-text, extrapolate": (NullTextInverter, {"extrapolate": True}),
    "Negative-Prompt Inverter": (NegativePromptInverter, {}),
    "negative-prompt, extrapolate": (NegativePromptInverter, {"extrapolate": True}),
    "negative-prompt, 3 fixed points": (NegativePromptInverter, {"fixed_point_iterations": 3}),
    "negative-prompt, extrapolate, 3 fixed points": (NegativePromptInverter, {"extrapolate": True, "fixed_point_iterations": 3}),
}


class Reference:
    """The paper's null-text inversion, told in the states z = x / sqrt(1 + sigma^2) of its code."""

    def __init__(self, studio: Studio):
        self.network, self.evaluations = studio.model.model, 0

    def eps(self, z: torch.Tensor, sigma: float, context: torch.Tensor) -> torch.Tensor:
        self.evaluations += len(context)
        x, level = z * (1 + sigma**2) ** 0.5, torch.full([len(context)], sigma, device=z.device)
        x = x.expand(len(context), -1, -1, -1)
        return (x - self.network.apply_model(x, level, c_crossattn=context, transformer_options={})) / sigma

    @staticmethod
    def moved(z: torch.Tensor, eps: torch.Tensor, now: float, goal: float) -> torch.Tensor:
        a, a_goal = (1 + now**2) ** -0.5, (1 + goal**2) ** -0.5
        return a_goal * (z / a + (goal - now) * eps)

    @torch.no_grad()
    def pivots(self, z: torch.Tensor, sigmas, source: torch.Tensor) -> list[torch.Tensor]:
        found = [z]
        for now, goal in zip(sigmas[::-1], sigmas[-2::-1]):
            found.append(self.moved(found[-1], self.eps(found[-1], goal, source), now, goal))
        return found[::-1]

    def way_back(self, z0: torch.Tensor, sigmas, source: torch.Tensor, null: torch.Tensor) -> torch.Tensor:
        pivots = self.pivots(z0, sigmas, source)
        z = pivots[0]
        for i, (now, goal) in enumerate(zip(sigmas, sigmas[1:])):
            null = null.clone().detach().requires_grad_(True)
            optimizer = torch.optim.Adam([null], lr=1e-2 * (1 - i / 100))
            with torch.no_grad():
                conditional = self.eps(z, now, source)
            for _ in range(INNER):
                unconditional = self.eps(z, now, null)
                guided = unconditional + CFG * (conditional - unconditional)
                loss = (self.moved(z, guided, now, goal) - pivots[i + 1]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                self.evaluations += 2
                optimizer.step()
                if float(loss.detach()) < 1e-5 + i * 2e-5:
                    break
            with torch.no_grad():
                unconditional, conditional = self.eps(z, now, torch.cat([null, source])).chunk(2)
                z = self.moved(z, unconditional + CFG * (conditional - unconditional), now, goal)
        return z


@dataclass
class Row:
    name: str
    found: list[tuple[float, float, float]] = field(default_factory=list)  # (PSNR, evaluations, seconds) of every image

    def told(self, reference: "Row") -> str:
        db, evaluations, seconds = (sum(v) / len(v) for v in zip(*self.found))
        more, less, faster = (sum(v) / len(v) for v in zip(*reference.found))
        costs = f"{evaluations:.0f}", f"1 / {less / evaluations:.1f}", f"{seconds:.1f}", f"1 / {faster / seconds:.1f}"
        return row(self.name, f"{db:.1f}", f"{db - more:+.1f}", f"{min(self.found)[0]:.1f}", *costs)


def reference_of(studio: Studio, source: list, latent: torch.Tensor, empty: torch.Tensor, steps: int) -> tuple[torch.Tensor, int, float]:
    """(the image's latent as the reference gives it back, evaluations, seconds)."""
    sigmas, paper = noise_levels.levels(studio.model, SCHEDULER, steps, 0.0), Reference(studio)
    with gradients.differentiable():
        given = studio.model.model.process_latent_in(latent), source[0][0], empty
        clean, source, empty = (t.to(studio.model.load_device, copy=True) for t in given)
        began = time.perf_counter()
        back = paper.way_back(clean, sigmas, source, empty)
        return studio.model.model.process_latent_out(back), paper.evaluations, time.perf_counter() - began


@torch.inference_mode()
def measure(studio: Studio, wish: Change, rows: dict[str, Row], steps: int) -> None:
    source, latent = prompts(studio, [wish])[0], studio.vae.encode(images([wish]))
    floor, empty = studio.vae.decode(latent), studio.prompt("")[0][0]

    def nearness(back: torch.Tensor) -> float:
        return float(quality.psnr(studio.vae.decode(back), floor)[0])

    back, evaluations, seconds = reference_of(studio, source, latent, empty, steps)
    rows["reference"].found.append((nearness(back), evaluations, seconds))
    for name, (node, settings) in OURS.items():
        own = {"cfg": CFG} if node is NullTextInverter else {}
        given = dict(model=studio.model, source=source, image={"samples": latent}, steps=steps, scheduler=SCHEDULER, end_percent=0.0)
        found = node.execute(**defaults(node) | given | own | settings).args[0]
        back = InversionSampler.execute(studio.model, found, CFG, "edit").args[0]["samples"]
        evaluations = found.evaluations + (steps if node is NegativePromptInverter else 0)  # the way back, which null-text has walked
        rows[name].found.append((nearness(back), evaluations, found.seconds))


def main(arguments: list[str] | None = None) -> None:
    options, studio = options_of(__doc__, arguments, count=(5, "images"), steps=STEPS), Studio()
    comfy.model_management.load_models_gpu([studio.model])
    gradients.to_normal_tensors(studio.model.model)
    rows = {name: Row(name) for name in ("reference", *OURS)}
    for i, wish in enumerate(edits(options.count), 1):
        measure(studio, wish, rows, options.steps)
        titles = head(f"{i} images, {options.steps} steps, cfg {CFG}", "PSNR, dB", "", "worst", "evaluations", "", "seconds", "")
        say("\n".join([titles, *(each.told(rows["reference"]) for each in rows.values()), ""]))


if __name__ == "__main__":
    main()
