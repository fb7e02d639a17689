"""Puts an edited image into its source, so that nothing outside the mask changes."""

import comfy.utils
import torch
from comfy_api.latest import io

from ..guidance.diffedit import dilated
from ..guidance.keep_rest import COLORS, CUT, STILL, SURE, UNSURE, Kept, keep_rest
from .host.progress import say
from .inputs.widgets import choice, schema, share, switch

_COLORS = (
    "Matches the edit's colors to the source's by what the mask leaves out. 'at the edge': in the whole image, and then smoothly along the "
    "mask's edge. 'whole image': one change of color for all of it."
)


class KeepRest(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "KeepRest", "Keep the Rest", "guidance",
            ["change only this", "composite", "paste back", "align images", "register images", "color match", "fix shift", "inpaint"],
            "Keeps of an edit only what the mask shows: moves the edit back to where the source's things are, matches its colors, and puts "
            "the source's own pixels everywhere else. For instruction editors such as Kontext and Qwen-Image-Edit, which change the rest too.",
            inputs=[
                io.Image.Input("source", tooltip="The image before the edit."),
                io.Image.Input("edit", tooltip="The image after it. Another size is scaled to the source's."),
                io.Mask.Input("mask", tooltip="1 = what the edit may change: painted, or found by DiffEdit Mask. One for all images, or one each; "
                    "scaled to the source."),
                switch("align", True, "Finds how the edit was shifted and stretched, and undoes it. Left as it is where the node is not sure."),
                choice("colors", COLORS, _COLORS),
                share("grow", 0.01, "Grows the mask by this share of the image's shorter side. Typical: 0–0.05."),
                share("feather", 0.01, "Fades the edit out over this share of the shorter side, inside the grown mask. Typical: 0–0.05."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The source with the edit in it."),
                io.Mask.Output(display_name="mask", tooltip="What comes from the edit; where it is 0, the source's exact pixels."),
                io.String.Output(display_name="report", tooltip="How far each image had moved, whether that was undone, and how much of the edit "
                    "the mask cuts off."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, source, edit, mask, align, colors, grow, feather) -> io.NodeOutput:
        source, edit = (x[..., :3].movedim(-1, 1).float() for x in (source, edit))
        height, width = source.shape[-2:]
        _check(source, edit, mask)
        if edit.shape[-2:] != source.shape[-2:]:
            edit = comfy.utils.common_upscale(edit, width, height, "lanczos", "disabled")
        if mask.shape[-2:] != source.shape[-2:]:  # Load Image gives one of 64 x 64 where nothing was painted
            mask = comfy.utils.common_upscale(mask[:, None].float(), width, height, "bilinear", "disabled")[:, 0]
        count = max(len(source), len(edit))
        source, edit, mask = (comfy.utils.repeat_to_batch_size(x, count) for x in (source, edit, mask.float()))
        grow, feather = (round(each * min(height, width)) for each in (grow, feather))
        made = [keep_rest(*each, feather, align, colors) for each in zip(source.split(1), edit.split(1), dilated(mask, grow).split(1))]
        report = "\n".join(f"image {i + 1}: {_line(kept, align)}" for i, kept in enumerate(made))
        say(report)
        image, mask = torch.cat([kept.image for kept in made]).movedim(1, -1), torch.cat([kept.mask for kept in made])
        return io.NodeOutput(image, mask, report)


def _check(source: torch.Tensor, edit: torch.Tensor, mask: torch.Tensor) -> None:
    count = max(len(source), len(edit))
    for name, images in (("source", source), ("edit", edit), ("mask", mask)):
        if len(images) not in (1, count):
            raise ValueError(f"{name} holds {len(images)} images, but there are {count}; give 1, or {count}.")


def _line(kept: Kept, align: bool) -> str:
    """What was found out about one image."""
    (across, down), (wide, high) = kept.motion.shift[0].tolist(), (100 * (kept.motion.scale[0] - 1)).tolist()
    alike, error = float(kept.likeness), float(kept.error)
    if bool((kept.mask > 0).all()):
        return "the mask leaves nothing out, so everything comes from the edit as it is"
    if not bool((kept.mask > 0).any()):
        return "nothing comes from the edit: the mask is empty, or narrower than the feather. Paint it larger, or lower feather"
    if not align:
        return f"not aligned{_cut(kept)}"
    if bool(kept.undone):
        told = "put back"
    elif float(kept.motion.distance(*kept.image.shape[-2:])) <= STILL:
        told = "not moved"
    elif alike < SURE:
        told = f"not put back: what the mask leaves out is too unlike then ({alike:.2f} of 1; at least {SURE:g})"
    else:
        told = f"not put back: the mask leaves too little to be sure (to about {error:.1f} pixels; at most {UNSURE:g})"
    return f"shifted by {across:+.1f}, {down:+.1f} pixels, stretched by {wide:+.1f}, {high:+.1f} %; {told}{_cut(kept)}"


def _cut(kept: Kept) -> str:
    """A warning where a good part of the edit lies outside the mask."""
    share = float(kept.outside)
    if share < CUT:
        return ""
    return f"; {100 * share:.0f} % of what changed lies outside the mask and is cut off. To keep it, paint the mask larger or raise grow"


NODES = [KeepRest]
