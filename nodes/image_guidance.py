"""Image guidance: a reference image, or a text, steers the predicted clean image as a guidance channel."""

from comfy_api.latest import io

from ..guidance.errors import quoted
from ..guidance.image_guidance import KINDS, ImageGradient
from .host import latents
from .host.gradients import differentiable_clip_vision, differentiable_vae
from .host.guidance import image_guidance
from .inputs.channel import added_channel, channel_extras, channel_identity, channel_output, percent_range
from .inputs.widgets import advanced, choice, number, only_with, schema, switch, whole

CLIP_KIND = "clip"
_KIND = "'color': mean and spread of colors. 'brightness': coarse light and dark. 'layout': colors in 8 x 8 cells. 'clip': CLIP vision."
_WEIGHT = "0 = off (nothing is decoded). Typical: 1–16, 'clip' 10–50; a quarter of it with through_denoiser. Below 0 pushes away."
_THROUGH = "Also passes back through the model: exact (universal guidance), but about 3 x the time, and the memory of training."


class ImageGuidanceChannel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "ImageGuidanceChannel", "Image Guidance Channel", "guidance",
            ["universal guidance", "clip guidance", "color match", "reference image", "manifold preserving guidance", "loss guidance"],
            "Pulls the image towards a reference image by a loss on the predicted clean image: its colors, its light, its layout, or what "
            "CLIP sees in it. Needs no training and no adapter.",
            inputs=[
                io.Model.Input("model", tooltip="The model that samples: eps, v or flow."),
                io.Vae.Input("vae", tooltip="Its VAE; the predicted image is decoded with it at every step."),
                choice("kind", (*KINDS, CLIP_KIND), _KIND),
                number("weight", 1.0, -1000.0, 1000.0, _WEIGHT, 0.1, round=0.01),
                *percent_range("the channel"),
                *channel_identity("its kind"),
                *advanced(
                    switch("through_denoiser", ImageGradient.through_denoiser, _THROUGH),
                    whole("batch_size", 1, 0, 4096, "Images, or frames of videos, decoded at a time; 0 = all. 1 needs least memory."),
                ),
                io.Image.Input("image", optional=True, tooltip="The reference image, of any size."),
                only_with(io.ClipVision.Input("clip_vision", optional=True, tooltip="For kind 'clip': the vision tower."), "kind", CLIP_KIND),
                only_with(io.Conditioning.Input("text", optional=True, tooltip="For kind 'clip', no image: a text of clip_vision's text tower."),
                    "kind", CLIP_KIND),
                *channel_extras(),
            ],
            outputs=[channel_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, kind, through_denoiser, batch_size, name="", image=None, clip_vision=None, text=None, **shared):
        vae = differentiable_vae(vae)
        decode, models = latents.decoder(model, vae), [vae.patcher]
        if kind == CLIP_KIND:
            _need(clip_vision is not None, "Kind 'clip' needs a clip_vision: connect Load CLIP Vision, or choose another kind.")
            _need(image is not None or text is not None, "Kind 'clip' needs an image or a text to move towards: connect one.")
            clip_vision = differentiable_clip_vision(clip_vision)
            loss = image_guidance.resembles(decode, clip_vision, image_guidance.wanted_embedding(clip_vision, image, text))
            models.append(clip_vision.patcher)
        else:
            _need(image is not None, f"Kind {quoted(kind)} needs a reference image: connect one.")
            loss = image_guidance.matches(decode, image_guidance.nearest_size(image), kind)
        gradient = ImageGradient(loss, through_denoiser, latents.latent_space(model), tuple(models), batch_size)
        return added_channel(conditioning=None, gradient=gradient, name=name or kind, **shared)


def _need(connected: bool, message: str) -> None:
    if not connected:
        raise ValueError(message)


NODES = [ImageGuidanceChannel]
