"""InstructPix2Pix guidance: an image edited by an instruction, with one scale for the image and one for the text."""

from comfy_api.latest import io

from ..guidance.instruct_pix2pix import Conditions, Scales, channels
from .host.guidance.guidance_report import weights_image
from .host.guidance.instruct_pix2pix import InstructPix2Pix, SourceImage, patched
from .inputs import sockets
from .inputs.channel import weights_sigmas
from .inputs.fit import fit_input
from .inputs.widgets import auto_cfg, image_input, optional, schema

_ALIASES = [
    "instruct pix2pix", "ip2p", "image guidance scale", "image cfg", "dual cfg", "learning to follow image editing instructions",
    "edit instruction", "kontext", "qwen image edit",
]  # fmt: skip
_MODEL = "An instruction model: InstructPix2Pix, CosXL Edit, or with reference latents (Flux Kontext, Flux.2, Qwen-Image-Edit, OmniGen2)."
_SCALES = {
    "text": "How strongly the instruction acts (s_T). 1 = no guidance, 0 = no instruction. Typical: 5–10 (models made for low cfg: 1–4).",
    "image": "How closely the result keeps to the image (s_I). 1 = plain cfg (neutral), 0 = not at all. Typical: 1–2.",
}
_PREVIOUS = "Channels to which these two are added."
_MASK = "1 = may change. The latent then holds the image and this mask, so that a sampler keeps the rest. Not connected: all may change."
_UNCONDITIONAL = "The prompt without the image that the image is compared with. Not connected: the negative without its image."


def _schedule_input(name: str):
    tooltip = f"Multiplies {name}_scale while sampling. Not connected: the scale is constant."
    return sockets.GuidanceSchedule.Input(f"{name}_schedule", optional=True, tooltip=tooltip)


def _inputs(*names: str) -> list:
    """The inputs that the nodes share, with the scales and schedules of "text" and "image" as named."""
    return [
        io.Model.Input("model", tooltip=_MODEL),
        io.Conditioning.Input("positive", tooltip="The instruction, such as 'make it snow'."),
        io.Conditioning.Input("negative", tooltip="What the instruction is compared with, usually an empty prompt; it gets the image too."),
        *(auto_cfg(_SCALES[name], f"{name}_scale") for name in names),
        fit_input(),
        *optional(
            image_input("The image to edit", unconnected=" Not connected: the one that positive carries."),
            io.Vae.Input("vae", tooltip="Encodes the image if it is an IMAGE."),
            io.Mask.Input("mask", tooltip=_MASK),
            io.Conditioning.Input("unconditional", tooltip=_UNCONDITIONAL),
        ),
        *(_schedule_input(name) for name in names),
    ]


def _latent_output():
    tooltip = "To sample from noise, of the image's size: empty, or with a mask the image with the mask set."
    return io.Latent.Output(display_name="latent", tooltip=tooltip)


def _prepared(model, positive, negative, image=None, vae=None, mask=None, unconditional=None, **scales) -> tuple[Conditions, Scales, dict]:
    """(conditions, scales, latent) of the shared inputs."""
    source = SourceImage(model, positive, image, vae)
    conditions = source.conditions(model, positive, negative, unconditional)
    return conditions, Scales(**{k: v for k, v in scales.items() if v is not None}), source.latent(mask)


class InstructPix2PixGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "InstructPix2PixGuider", "InstructPix2Pix Guider", "guidance", _ALIASES,
            "Edits an image by an instruction, with one scale for the image and one for the instruction. For SamplerCustomAdvanced and an "
            "instruction-tuned model.",
            inputs=[*_inputs("text", "image"), weights_sigmas()],
            outputs=[
                io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced."),
                _latent_output(),
                io.Image.Output(display_name="weights", tooltip="Both scales over the sampling, as an image."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, text_scale, image_scale, image=None, vae=None, sigmas=None, **options) -> io.NodeOutput:
        options |= dict(text_scale=text_scale, image_scale=image_scale)
        conditions, scales, latent = _prepared(model, positive, negative, image, vae, **options)
        weights = weights_image(model, channels(conditions, scales), sigmas)
        return io.NodeOutput(InstructPix2Pix(model, conditions, scales), latent, weights)


class InstructPix2PixPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "InstructPix2PixPatch", "InstructPix2Pix Patch", "guidance", _ALIASES,
            "The image's scale for a plain KSampler: connect all outputs to it; its cfg is the scale of the instruction. With image_scale "
            "1 it changes nothing.",
            inputs=_inputs("image"),
            outputs=[
                io.Model.Output(display_name="model", tooltip="For a KSampler; its cfg is the text scale. Typical: 5–10."),
                io.Conditioning.Output(display_name="positive", tooltip="The instruction with the image."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative with the image."),
                _latent_output(),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, image_scale, image=None, vae=None, **options) -> io.NodeOutput:
        conditions, scales, latent = _prepared(model, positive, negative, image, vae, image_scale=image_scale, **options)
        return io.NodeOutput(patched(model, conditions, scales), conditions.edit, conditions.image, latent)


class InstructionChannels(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "InstructionChannels", "Instruction Channels", "guidance", _ALIASES,
            "InstructPix2Pix guidance as two Guidance Channels, the image and the instruction, for a Multi CFG Guider with others.",
            inputs=[*_inputs("text", "image"), *optional(sockets.GuidanceChannel.Input("previous", tooltip=_PREVIOUS))],
            outputs=[
                sockets.GuidanceChannel.Output(display_name="channel", tooltip="All channels so far, for a Multi CFG Guider."),
                io.Conditioning.Output(display_name="unconditional", tooltip="For the Multi CFG Guider: no image, no instruction."),
                io.Conditioning.Output(display_name="image_only", tooltip="The image, no instruction: a null for your own channels."),
                _latent_output(),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, text_scale, image_scale, image=None, vae=None, previous=(), **options) -> io.NodeOutput:
        options |= dict(text_scale=text_scale, image_scale=image_scale)
        conditions, scales, latent = _prepared(model, positive, negative, image, vae, **options)
        return io.NodeOutput((*previous, *channels(conditions, scales)), conditions.nothing, conditions.image, latent)


NODES = [InstructPix2PixGuider, InstructPix2PixPatch, InstructionChannels]
