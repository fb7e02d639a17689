"""How long Cancel takes at large images on a CPU: `python . run tests/measures/cancel.py [--sides 256 1024]`.

ComfyUI looks for a Cancel at every operation of a network, so what cannot be stopped is one of them: at large sizes, one attention. Here it
comes at the beginning of one, in plain sampling of two images, in Prompt-to-Prompt and in the drawing of a pair.
"""

import time

import comfy.model_management
import comfy.sample
import torch
from controlled_diffusion.nodes.host.training.instruct_pairs import PairSampler, Recipe
from controlled_diffusion.training.instruct_pix2pix import Draw, PromptPair

from harness.demo_images import Studio
from host import editing
from measures.script import head, options_of, row, say


class Armed:
    """A MODEL that is canceled when its first attention begins."""

    def __init__(self, model):
        self.model, self.begun = model.clone(), 0.0
        self.model.model_options["transformer_options"]["optimized_attention_override"] = self._cancel

    def _cancel(self, function, *args, **kwargs):
        if not self.begun:
            self.begun = time.process_time()
            comfy.model_management.interrupt_current_processing(True)
        return function(*args, **kwargs)

    def wait(self, run) -> float:
        """Seconds of the processor until `run` with the model ends."""
        try:
            run(self.model)
        except comfy.model_management.InterruptProcessingException:
            return time.process_time() - self.begun
        raise RuntimeError("It was not canceled.")


def main() -> None:
    options = options_of(__doc__, sides=dict(type=int, nargs="*", default=[256, 1024], help="pixels"))
    studio, texts = Studio(), ("a red circle", "a blue circle")

    def plain(model):
        empty = torch.zeros(2, 4, side // 8, side // 8)
        given = (studio.prompt(*texts), studio.prompt(""), empty)
        comfy.sample.sample(model, torch.randn_like(empty), 2, 4.0, "euler", "normal", *given, disable_pbar=True, seed=1)

    def edited(model):
        latent = {"samples": torch.zeros(1, 4, side // 8, side // 8)}
        editing.sample(*editing.patch(model, studio.clip, texts[1], texts[0], latent=latent), steps=2)

    def paired(model):
        sampler = PairSampler(model, studio.clip, studio.vae, "", Recipe(size=(side, side), steps=2))
        sampler.draw(PromptPair(*texts, "make it blue"), Draw(seed=1, share=0.5, cfg=4.0))

    say(head("pixels", "two images by KSampler", "Prompt-to-Prompt", "a pair"))
    for side in options.sides:
        with torch.inference_mode():
            say(row(side, *(f"{Armed(studio.model).wait(run):.1f} s" for run in (plain, edited, paired))))


if __name__ == "__main__":
    main()
