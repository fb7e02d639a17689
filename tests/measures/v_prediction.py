"""Prompt-to-Prompt's local blend on a model that predicts velocities: `python . run tests/measures/v_prediction.py [--steps 96]`.

The demo model is trained on to predict v instead of noise, in a quarter of an hour of one CPU core. Then colors of held-out scenes are
swapped as on a real image: inverted, and edited beside the source that is held on its path. What should stay is all but the changed thing.
The training and what is measured are kept in .host/measures, so that a run that was stopped goes on.
"""

from dataclasses import replace

import numpy as np
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from controlled_diffusion.nodes.ddim import DDIMInverter
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.nodes.inversion import InversionSampler
from controlled_diffusion.training.demo import checker
from controlled_diffusion.training.loop import saving

from demo import model as demo_model
from demo.make_model import STATE, Denoiser, as_denoised, held_out, new_tokens, parameters_of, scene_latents, shipped, shown
from demo.muon import MuonLoop
from demo.shapes_world import SHAPES
from harness.demo_images import CFG, SCHEDULER, STEPS, Studio
from harness.host import PRIVATE
from host import editing
from measures.diffedit import Change, caption, change, images
from measures.inversion import judged
from measures.prompt_to_prompt import STYLE
from measures.script import head, kept, options_of, percent, row, say
from node_schema import defaults

PATH = PRIVATE / "measures" / "v_prediction.safetensors"
SCENES, RATE, BATCH = 2000, 8e-4, 24
GOOD = 36  # dB
NOUN = "the noun"
BLENDS = {
    "no blend": {},
    "`*` at 0.3": dict(blend_words="*", blend_threshold=0.3),
    "`*` at 0.6": dict(blend_words="*", blend_threshold=0.6),
    "the noun at 0.3": dict(blend_words=NOUN, blend_threshold=0.3),
}


def trained(steps: int) -> dict[str, torch.Tensor]:
    """The demo model's UNet after so many steps of v-prediction; its text tower stays."""
    autoencoder, unet, tower = shipped()
    STATE.mkdir(parents=True, exist_ok=True)
    latents = as_denoised(scene_latents(autoencoder, replace(SHAPES, scenes=SCENES)))
    tower.requires_grad_(False)
    parameters = parameters_of(unet=unet)
    loop = MuonLoop(parameters, steps=steps, learning_rate=RATE, warmup=30, average=0.98, matrices=demo_model.matrices_of(parameters))
    loop.restore(PATH)
    knobs = dict(batch=BATCH, error=demo_model.v_error)
    shown(saving(loop, demo_model.train_denoiser(Denoiser(unet), tower, new_tokens(), latents, loop, **knobs), PATH), 20)
    return {k.removeprefix("unet."): v for k, v in loop.averages.items()}


def v_model(weights: dict[str, torch.Tensor]):
    """The MODEL of these weights, by ComfyUI's own node for v-prediction."""
    model = demo.load(SHAPES.files.model)[0]
    model.model.diffusion_model.load_state_dict(weights)
    return ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]


def recolorings(count: int) -> list[Change]:
    found = (change(i) for i in range(8 * count))
    return [c for c in found if c.before.things[c.thing].color != c.after.things[c.thing].color][:count]


@torch.inference_mode()
def edited(studio: Studio, model, wish: Change) -> dict[str, list[float]]:
    """Of each blend (success, PSNR of what should stay, share of the image that may differ)."""
    latents, source = studio.vae.encode(images([wish])), caption(wish.before).text
    given = defaults(DDIMInverter) | dict(steps=STEPS, scheduler=SCHEDULER, fixed_point_iterations=3)
    inversion = DDIMInverter.execute(model=model, source=studio.prompt(source), image={"samples": latents}, **given).args[0]
    found = {}
    for name, blend in BLENDS.items():
        words = {"blend_words": wish.before.things[wish.thing].shape} if blend.get("blend_words") == NOUN else {}
        knobs = STYLE | blend | words
        patched, positive, *_ = editing.patch(model, studio.clip, caption(wish.after).text, source, latent=inversion, **knobs)
        prompts = dict(positive=positive, negative=studio.prompt(""))
        made = InversionSampler.execute(patched, inversion, cfg=CFG, branches="direct", **prompts).args[0]["samples"]
        ((success, off),) = judged(studio.vae.decode(made[1:]), studio.vae.decode(latents), [wish])
        found[name] = [float(success), off, float(editing.masks_of(patched)[-1][1].float().mean()) if blend else 1.0]
    return found


@torch.inference_mode()
def right(studio: Studio, model, count: int) -> float:
    """The share of images of held-out captions that show them."""
    captions = held_out(count)
    made = studio.draw([c.text for c in captions], model=model)
    return float(np.mean([all(checker.judge(checker.read(p), c).values()) for p, c in zip(made, captions)]))


def main() -> None:
    options = options_of(__doc__, steps=(96, "steps of the training"), count=(16, "edits"))
    model, studio, wishes = v_model(trained(options.steps)), Studio(), recolorings(options.count)
    say(f"{percent(right(studio, model, 32))} of 32 images show their prompt\n")

    def measured(first: int, number: int) -> list[dict]:
        return [edited(studio, model, wish) for wish in wishes[first : first + number]]

    found = kept(f"v_prediction-{options.steps}", options.count, measured)
    say(head(f"{options.count} colors swapped", "right", "PSNR of the rest", f"at least {GOOD} dB", "may differ"))
    for way in BLENDS:
        success, off, covered = np.array([edit[way] for edit in found]).T
        say(row(way, percent(success.mean()), f"{off.mean():.1f} dB", percent((off >= GOOD).mean()), percent(covered.mean())))


if __name__ == "__main__":
    main()
