"""Image guidance: a reference image, or a text, steers the predicted clean image as a guidance channel."""

from comfy_api.latest import io

from ..guidance.image_guidance import KINDS, ImageGradient
from ..guidance.multi_cfg import Channel
from ..guidance.schedules import ALWAYS, Schedule
from .host import latents
from .host.gradients import differentiable_clip_vision, differentiable_vae
from .host.guidance import image_guidance
from .inputs import sockets
from .inputs.channel import channel_extras, channel_identity, percent_range

CLIP_KIND = "clip"


class ImageGuidanceChannel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ImageGuidanceChannel",
            display_name="Image Guidance Channel",
            category="controlled diffusion/guidance",
            description="Pulls the image towards a reference image by a loss on the predicted clean image: its colours, its light, "
            "its layout, or what CLIP sees in it. Needs no training and no adapter.",
            search_aliases=[
                "universal guidance",
                "clip guidance",
                "color match",
                "reference image",
                "manifold preserving guidance",
                "loss guidance",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that samples: eps, v or flow."),
                io.Vae.Input("vae", tooltip="Its VAE; the predicted image is decoded with it at every step."),
                io.Combo.Input(
                    "kind",
                    options=[*KINDS, CLIP_KIND],
                    tooltip="'color': mean and spread of the colours. 'brightness': light and dark, coarsely. 'layout': colours in 8 x 8 "
                    "cells. 'clip': what a CLIP vision model sees.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=-1000.0,
                    max=1000.0,
                    step=0.1,
                    round=0.01,
                    tooltip="0 switches it off (nothing is decoded). Usual 1 to 16, 'clip' 10 to 50; a quarter of it with through_denoiser. Below 0 pushes away.",
                ),
                *percent_range("the channel"),
                *channel_identity("its kind"),
                io.Boolean.Input(
                    "through_denoiser",
                    default=False,
                    advanced=True,
                    tooltip="Also passes back through the model: exact (universal guidance), but about three times the time and the "
                    "memory of training. Off: the cheap form.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip="Images, or frames of videos, decoded at a time; 0 = all. 1 needs least memory.",
                ),
                io.Image.Input("image", optional=True, tooltip="The reference image, of any size."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="For kind 'clip': the vision tower."),
                io.Conditioning.Input(
                    "text", optional=True, tooltip="For kind 'clip' without an image: a text whose encoder shares the space of clip_vision."
                ),
                *channel_extras(),
            ],
            outputs=[sockets.GuidanceChannel.Output(display_name="channel", tooltip="All channels so far.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        vae,
        kind,
        weight,
        start_percent,
        end_percent,
        priority,
        name,
        through_denoiser,
        batch_size,
        image=None,
        clip_vision=None,
        text=None,
        schedule=None,
        mask=None,
        previous=(),
    ) -> io.NodeOutput:
        vae = differentiable_vae(vae)
        decode, models = latents.decoder(model, vae), [vae.patcher]
        if kind == CLIP_KIND:
            _need(clip_vision is not None, "Kind 'clip' needs a clip_vision: connect Load CLIP Vision, or choose another kind.")
            _need(image is not None or text is not None, "Kind 'clip' needs an image or a text to move towards: connect one.")
            clip_vision = differentiable_clip_vision(clip_vision)
            loss = image_guidance.resembles(decode, clip_vision, image_guidance.wanted_embedding(clip_vision, image, text))
            models.append(clip_vision.patcher)
        else:
            _need(image is not None, f"Kind '{kind}' needs a reference image: connect one.")
            loss = image_guidance.matches(decode, image_guidance.nearest_size(image), kind)
        force = ImageGradient(loss, through_denoiser, type(model.model.latent_format).__name__, tuple(models), batch_size)
        interval = Schedule(start=start_percent, end=end_percent)
        channel = Channel(None, weight, False, None, schedule or ALWAYS, interval, mask, priority, name or kind, force)
        return io.NodeOutput((*previous, channel))


def _need(given: bool, message: str) -> None:
    if not given:
        raise ValueError(message)


NODES = [ImageGuidanceChannel]
