"""Null-text inversion: an optimized negative for every step, with which guidance gives the image back."""

from comfy_api.latest import io

from ..inversion.null_text import OPTIMIZERS, STARTS, NullText
from .host.inversion import invert, null_text
from .inputs.inverter import cfg_input, inverter_inputs, inverter_outputs
from .inputs.widgets import advanced, choice, number, schema, switch, whole


class NullTextInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "NullTextInverter", "Null-Text Inverter", "inversion",
            [
                "null-text inversion", "nti", "null-text inversion for editing real images using guided diffusion models",
                "real image editing", "invert image", "unconditional embedding optimization",
            ],
            "DDIM inversion, and then an optimized negative for every step, with which guidance reconstructs the image. Any sampler can "
            "use it: a plain KSampler gives the image back, and with another prompt an edit of it.",
            inverter_inputs(
                cfg_input(7.5, "Guidance scale of the reconstruction, for which the negative is made; use the same there. Typical: 3–7.5. "
                    "Not 1: without guidance there is nothing to optimize."),
                choice("start", STARTS, "Where the embedding starts. 'source': at the source prompt's, close to the best; fastest. "
                    "'empty': at the negative's, which should be an empty prompt, as in the paper.", NullText.start),
                choice("optimizer", OPTIMIZERS, "'fast': steepest descent that finds its step lengths by itself. 'adam': the paper's, with "
                    "learning_rate.", NullText.optimizer),
                whole("inner_steps", NullText.inner_steps, 0, 500,
                    "Most gradients a step, each the work of two evaluations. Typical: 3; with start 'empty' or adam 10. 0 = off."),
                number("early_stop", NullText.early_stop, 0.0, 100.0, "Stop a step when its loss is below this multiple of the paper's "
                    "threshold. Typical: 0.05–1 (paper 1). Lower is more exact and slower. 0 = never.", step=0.05, round=0.001),
                *advanced(
                    number("learning_rate", NullText.learning_rate, 1e-5, 1.0,
                        "Only for 'adam'; falls to its half over the steps. Typical: 0.01 (paper).", step=0.001, round=1e-5),
                    number("smoothness", NullText.smoothness, 0.0, 1000.0, "Weight (lambda) of the mean square of the embedding's change "
                        "from step to step. Typical: 0.001–0.1. 0 = off.", step=0.001, round=1e-6),
                    number("l1", NullText.l1, 0.0, 1000.0, "Weight (mu 1) of the mean absolute difference of the decoded prediction and "
                        "the image; needs the vae. Typical: 0.0001–0.01. 0 = off.", step=0.0001, round=1e-6),
                    number("perceptual", NullText.perceptual, 0.0, 1000.0, "Weight (mu 2) of their perceptual distance: LPIPS where the "
                        "package lpips and its weights are installed, else the difference of their edges at four scales; needs the vae. "
                        "Typical: 0.0001–0.01. 0 = off.", step=0.0001, round=1e-6),
                    switch("checkpointing", False, "On: blocks of the network run a second time for each gradient and keep less. Much less "
                        "memory, the same result, about a third slower."),
                ),
                negative="An empty prompt; only needed for start 'empty'.",
            ),
            inverter_outputs(
                io.Conditioning.Output(display_name="negative", tooltip="The negative, another for each step, for any sampler: with the "
                    "noisy latent or the noise, the same sigmas, euler and this cfg the image comes back. Inversion Sampler takes it by "
                    "itself."),
                io.Image.Output(display_name="loss_curve", tooltip="The loss of every step before and after, and the gradients it took."),
            ),
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, source, image, steps, scheduler, end_percent, cfg, checkpointing=False, negative=None, vae=None, **settings
    ) -> io.NodeOutput:
        sigmas = invert.levels(model, scheduler, steps, end_percent, source=source, negative=negative)
        found = null_text.invert(model, vae, image, source, negative, NullText(**settings), sigmas, cfg, checkpointing)
        return io.NodeOutput(*invert.outputs(model, found), found.null, null_text.loss_curve(found))


NODES = [NullTextInverter]
