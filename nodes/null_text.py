"""Null-text inversion: an optimised negative for every step, with which guidance gives the image back."""

from comfy_api.latest import io

from ..inversion.null_text import LEARNING_RATE, OPTIMIZERS, STARTS, NullText
from .host import noise_levels
from .host.conditionings import check_conditionings
from .host.inversion import invert, null_text
from .inputs import inverter


class NullTextInverter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NullTextInverter",
            display_name="Null-Text Inverter",
            category="controlled diffusion/inversion",
            description="DDIM inversion, and then an optimised negative for every step, with which guidance leads back to the image. Any "
            "sampler can use it: a plain KSampler gives the image back, and with another prompt an edit of it.",
            search_aliases=[
                "null-text inversion",
                "nti",
                "null-text inversion for editing real images using guided diffusion models",
                "real image editing",
                "invert image",
                "unconditional embedding optimization",
            ],
            inputs=[
                *inverter.inverter_inputs(),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale of the way back, for which the negative is made; use the same there. Usual 3 to 7.5. Not 1: without "
                    "guidance there is nothing to optimise.",
                ),
                io.Combo.Input(
                    "start",
                    options=list(STARTS),
                    tooltip="Where the embedding starts. 'source': at the source prompt's, near which the best lies; quickest. 'empty': at the "
                    "negative's, which should be an empty prompt, as in the paper.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    tooltip="'fast': steepest descent that finds its step lengths by itself. 'adam': the paper's, with learning_rate.",
                ),
                io.Int.Input(
                    "inner_steps",
                    default=3,
                    min=0,
                    max=500,
                    tooltip="Most gradients for a step, each the work of two evaluations. 0: none, the negative stays where it starts. Usual 3, "
                    "with start 'empty' or adam 10.",
                ),
                io.Float.Input(
                    "early_stop",
                    default=0.2,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Times the paper's threshold: a step whose loss is below it is left as it is. 1: the paper's. 0: no stop. Lower is "
                    "nearer and slower; usual 0.05 to 1.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=LEARNING_RATE,
                    min=1e-5,
                    max=1.0,
                    step=0.001,
                    round=1e-5,
                    advanced=True,
                    tooltip="For 'adam' alone; falls to its half over the steps. The paper's is 0.01.",
                ),
                io.Float.Input(
                    "smoothness",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.001,
                    round=1e-6,
                    advanced=True,
                    tooltip="Weight (lambda) of the mean square by which the embedding changes from step to step. 0: off. Usual 0.001 to 0.1.",
                ),
                io.Float.Input(
                    "l1",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.0001,
                    round=1e-6,
                    advanced=True,
                    tooltip="Weight (mu 1) of the mean absolute difference between the decoded predicted image and the image. 0: off. Usual "
                    "0.0001 to 0.01; needs the vae.",
                ),
                io.Float.Input(
                    "perceptual",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.0001,
                    round=1e-6,
                    advanced=True,
                    tooltip="Weight (mu 2) of the perceptual distance of the same two: LPIPS where the package lpips and its weights are installed, "
                    "else the difference of their edges at four scales. 0: off. Usual 0.0001 to 0.01; needs the vae.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=False,
                    advanced=True,
                    tooltip="On: blocks of the network run a second time for each gradient in the place of keeping what they computed. Much less "
                    "memory, the same result, about a third slower.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="An empty prompt; needed for start 'empty' alone."),
                *inverter.inverter_extras(),
            ],
            outputs=[
                *inverter.inverter_outputs(),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The negative, another for each step, for any sampler: with the noisy latent or the noise, the same sigmas, euler and "
                    "this cfg the image comes back. Inversion Sampler takes it by itself.",
                ),
                io.Image.Output(display_name="loss_curve", tooltip="The loss of every step before and after, and the gradients it took."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        source,
        image,
        steps,
        scheduler,
        end_percent,
        cfg,
        start="source",
        optimizer="fast",
        inner_steps=3,
        early_stop=0.2,
        learning_rate=LEARNING_RATE,
        smoothness=0.0,
        l1=0.0,
        perceptual=0.0,
        checkpointing=False,
        negative=None,
        vae=None,
    ) -> io.NodeOutput:
        check_conditionings(model, {"source": source} | ({} if negative is None else {"negative": negative}))
        method = NullText(start, optimizer, inner_steps, learning_rate, early_stop, smoothness, l1, perceptual)
        sigmas = noise_levels.levels(model, scheduler, steps, end_percent)
        found = null_text.invert(model, vae, image, source, negative, method, sigmas, cfg, checkpointing)
        return io.NodeOutput(*invert.outputs(model, found), found.null, null_text.loss_curve(found))


NODES = [NullTextInverter]
