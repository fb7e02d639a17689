"""Null-text inversion: an optimized negative for every step, with which guidance gives the image back."""

from comfy_api.latest import io

from ..inversion.null_text import OPTIMIZERS, STARTS, NullText
from .host.inversion import invert, null_text
from .host.prompts import source_of
from .inputs.inverter import extrapolate_input, inverter_inputs, inverter_outputs
from .inputs.widgets import advanced, auto_cfg, choice, number, only_with, schema, switch, whole

_OPTIMIZER = "'fast': steepest descent that finds its step lengths by itself. 'adam': the paper's, with learning_rate."
_INNER_STEPS = "Most gradients a step, each the work of two evaluations. Typical: 3; with start 'empty' or adam 10. 0 = off."
_LEARNING_RATE = "Only for 'adam'; falls to its half over the steps. Typical: 0.01 (paper)."
_SMOOTHNESS = "Weight (lambda) of the mean square of the embedding's change from step to step. Typical: 0.001–0.1."
_CHECKPOINTING = "On: blocks of the network run again for each gradient. Much less memory, the same result, about a third slower."


def _weight(name: str, tooltip: str, step: float = 0.0001):
    return number(name, getattr(NullText, name), 0.0, 1000.0, f"{tooltip} 0 = off.", step, round=1e-6)


class NullTextInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        own = NullText
        return schema(
            "NullTextInverter", "Null-Text Inverter", "inversion",
            [
                "null-text inversion", "nti", "null-text inversion for editing real images using guided diffusion models",
                "real image editing", "invert image", "unconditional embedding optimization",
            ],
            "DDIM inversion, and then an optimized negative for every step, with which guidance reconstructs the image. Any sampler can "
            "use it: a plain KSampler gives the image back, and with another prompt an edit of it.",
            inverter_inputs(
                auto_cfg("Guidance scale of the reconstruction; use the same there. Typical: 3–7.5. At 1 there is nothing to optimize: not allowed."),
                choice("start", STARTS, "Where the embedding starts. 'source': at the source prompt's, close to the best; fastest. "
                    "'empty': at the negative's, which should be an empty prompt, as in the paper.", own.start),
                choice("optimizer", OPTIMIZERS, _OPTIMIZER, own.optimizer),
                whole("inner_steps", own.inner_steps, 0, 500, _INNER_STEPS),
                number("early_stop", own.early_stop, 0.0, 100.0, "Stop a step when its loss is below this multiple of the paper's "
                    "threshold. Typical: 0.05–1 (paper 1). Lower is more exact and slower. 0 = never.", 0.05, round=0.001),
                *advanced(
                    only_with(number("learning_rate", own.learning_rate, 1e-5, 1.0, _LEARNING_RATE, 0.001, round=1e-5), "optimizer", "adam"),
                    extrapolate_input(),
                    _weight("smoothness", _SMOOTHNESS, 0.001),
                    _weight("l1", "Weight (mu 1) of the mean absolute difference of the decoded prediction and the image; needs the vae. "
                        "Typical: 0.0001–0.01."),
                    _weight("perceptual", "Weight (mu 2) of their perceptual distance: LPIPS where the package lpips and its weights are "
                        "installed, else the difference of their edges at four scales; needs the vae. Typical: 0.0001–0.01."),
                    switch("checkpointing", False, _CHECKPOINTING),
                ),
                negative="An empty prompt; only needed for start 'empty'.",
                vae="Needed for an IMAGE, l1 and perceptual.",
            ),
            inverter_outputs(
                io.Conditioning.Output(display_name="negative", tooltip="The negative, another for each step, for any sampler: with "
                    "noisy_latent or noise, the same sigmas, euler and this cfg the image comes back. Inversion Sampler has it already."),
                io.Image.Output(display_name="loss_curve", tooltip="The loss of every step before and after, and the gradients it took."),
            ),
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, source, image, steps, scheduler, end_percent, cfg, checkpointing=False, negative=None, vae=None, clip=None, **settings
    ) -> io.NodeOutput:
        source, text = source_of(clip, source)
        sigmas = invert.levels(model, scheduler, steps, end_percent, source=source, negative=negative)
        found = null_text.invert(model, vae, image, source, negative, NullText(**settings), sigmas, cfg, checkpointing)
        return io.NodeOutput(*invert.outputs(model, found, text), found.null, null_text.loss_curve(found))


NODES = [NullTextInverter]
