"""What came of an inversion: the images side by side, with the numbers on them."""

from comfy_api.latest import io, ui

from .host.inversion.inversion_report import Report
from .inputs import sockets


class InversionReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InversionReport",
            display_name="Inversion Report",
            category="controlled diffusion/inversion",
            description="The image, what its inversion gives back and what the edit made of it, side by side with PSNR, SSIM and the largest "
            "error, and what the inversion cost. Changes nothing.",
            search_aliases=["psnr", "ssim", "lpips", "compare images", "reconstruction error", "image quality", "image metrics"],
            inputs=[
                io.Image.Input("reference", tooltip="The image that was inverted: one for all, or one each. Values in [0, 1]."),
                sockets.Inversion.Input(
                    "inversion", optional=True, tooltip="For its method, steps, seconds and evaluations of the network."
                ),
                io.Image.Input("reconstruction", optional=True, tooltip="What the way back gave without a new prompt."),
                io.Image.Input("edit", optional=True, tooltip="What it gave with one."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Shows what encoding and decoding alone lose, which no inversion can win back, and measures against that too.",
                ),
                io.String.Input(
                    "headline", default="", optional=True, tooltip="What stands above it, to tell reports apart. Empty: nothing."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="report", tooltip="The images side by side, a row for each of the batch."),
                io.String.Output(display_name="text", tooltip="The same numbers in words: means, then each image."),
            ],
        )

    @classmethod
    def execute(cls, reference, inversion=None, reconstruction=None, edit=None, vae=None, headline="") -> io.NodeOutput:
        report = Report.of(reference, inversion, vae, headline, reconstruction=reconstruction, edit=edit)
        return io.NodeOutput(report.image(), report.text(), ui=ui.PreviewText(report.text()))


NODES = [InversionReport]
