"""The demo model: a tiny text-to-image model that ships with the pack, so that every workflow runs with no download."""

from comfy_api.latest import io

from .host import demo
from .inputs.sockets import PairChecker
from .inputs.widgets import schema


class DemoModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DemoModelLoader", "Load Demo Model", "demo", ["example model", "tiny model", "test checkpoint", "toy model"],
            "A tiny trained text-to-image model of colored shapes, for images of 128 x 128. It runs on a laptop without a GPU in seconds. "
            "To use a model of your own, put its checkpoint loader in this node's place.",
            outputs=[
                io.Model.Output(display_name="model", tooltip="The denoiser: SD1.5's UNet at a small size."),
                io.Clip.Output(display_name="clip", tooltip="Its text tower, with SD1's tokenizer."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder: 4 channels, 8 x smaller, as in SD1.5."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*demo.load())


class DemoInstructModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DemoInstructModelLoader", "Load Demo Instruction Model", "demo",
            ["instruct pix2pix demo", "instruction editing", "tiny editor", "example model"],
            "The demo model, trained to edit an image by instructions: 'make the circle blue', 'turn it into a star', 'remove the square'. "
            "An InstructPix2Pix model of a few MB that runs on a laptop without a GPU in seconds.",
            outputs=[
                io.Model.Output(display_name="model", tooltip="The denoiser, with the image as extra input channels."),
                io.Clip.Output(display_name="clip", tooltip="The demo model's text tower."),
                io.Vae.Output(display_name="vae", tooltip="The demo model's autoencoder."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls) -> io.NodeOutput:
        _, clip, vae = demo.load()
        return io.NodeOutput(demo.load_instruct(), clip, vae)


class DemoCheckerLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DemoCheckerLoader", "Load Demo Checker", "demo", ["pair filter", "pair checker", "dataset filter"],
            "Reads images of the demo model back into words, and keeps the pairs in which both images are what their prompts say: the "
            "checker of InstructPix2Pix Pairs where there is no CLIP.",
            outputs=[PairChecker.Output(display_name="checker", tooltip="For InstructPix2Pix Pairs.")],
        )  # fmt: skip

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(demo.PairChecker())


NODES = [DemoModelLoader, DemoInstructModelLoader, DemoCheckerLoader]
