"""The results of an inversion: the images side by side, with the numbers on them."""

from comfy_api.latest import io, ui

from .host.inversion.inversion_report import Report
from .inputs import sockets
from .inputs.widgets import optional, schema, text


class InversionReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "InversionReport", "Inversion Report", "inversion",
            ["psnr", "ssim", "lpips", "compare images", "reconstruction error", "image quality", "image metrics"],
            "The image, its reconstruction and its edit, side by side with PSNR, SSIM and the largest error, and what the inversion cost. "
            "Changes nothing.",
            inputs=[
                io.Image.Input("reference", tooltip="The image that was inverted: one for all, or one each. Values in [0, 1]."),
                *optional(
                    sockets.Inversion.Input("inversion", tooltip="For its method, steps, seconds and evaluations of the network."),
                    io.Image.Input("reconstruction", tooltip="Sampled from the inversion without a new prompt."),
                    io.Image.Input("edit", tooltip="Sampled with a new prompt."),
                    io.Vae.Input("vae", tooltip="Adds what encoding and decoding alone lose, which no inversion can recover."),
                    text("headline", "", "Shown above the report, to tell reports apart. Empty: none."),
                ),
            ],
            outputs=[
                io.Image.Output(display_name="report", tooltip="The images side by side, a row for each of the batch."),
                io.String.Output(display_name="text", tooltip="The same numbers as text: means, then each image."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, reference, inversion=None, reconstruction=None, edit=None, vae=None, headline="") -> io.NodeOutput:
        report = Report.of(reference, inversion, vae, headline, reconstruction=reconstruction, edit=edit)
        return io.NodeOutput(report.image(), report.text(), ui=ui.PreviewText(report.text()))


NODES = [InversionReport]
