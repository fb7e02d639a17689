"""The demo models: tiny text-to-image models that ship with the pack, so that every workflow runs with no download."""

from comfy_api.latest import io

from ..training.demo.images import KINDS, VARIED
from .host import demo
from .inputs.sockets import PairChecker
from .inputs.widgets import choice, only_with, schema, seed, whole


def _world(worlds: list[str]) -> io.Combo.Input:
    """The choice among worlds whose files are there."""
    return choice("world", worlds, "What its images show: 'illustrated' is drawn things on ten grounds, 192 x 192; 'shapes' is "
        "colored shapes on plain grounds, 128 x 128. A world without its files in the pack is not listed.")  # fmt: skip


class DemoModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DemoModelLoader", "Load Demo Model", "demo", ["example model", "tiny model", "test checkpoint", "toy model"],
            "A tiny trained text-to-image model of a small world. It runs on a laptop without a GPU in seconds. To use a model of your own, "
            "put its checkpoint loader in this node's place.",
            inputs=[_world(demo.worlds("model"))],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The denoiser: SD1.5's UNet at a small size."),
                io.Clip.Output(display_name="clip", tooltip="Its text tower, with SD1's tokenizer."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder: 4 channels, 8 x smaller, as in SD1.5."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, world) -> io.NodeOutput:
        return io.NodeOutput(*demo.load(demo.file_of(world, "model")))


class DemoInstructModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DemoInstructModelLoader", "Load Demo Instruction Model", "demo",
            ["instruct pix2pix demo", "instruction editing", "tiny editor", "example model"],
            "The demo model, trained to edit an image by instructions such as 'make it blue' or 'remove it'. An InstructPix2Pix model of a few "
            "MB that runs on a laptop without a GPU in seconds.",
            inputs=[_world(demo.worlds("model", "instruct"))],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The denoiser, with the image as extra input channels."),
                io.Clip.Output(display_name="clip", tooltip="The demo model's text tower."),
                io.Vae.Output(display_name="vae", tooltip="The demo model's autoencoder."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, world) -> io.NodeOutput:
        own, base = (demo.file_of(world, part) for part in ("instruct", "model"))
        _, clip, vae = demo.load(base)
        return io.NodeOutput(demo.load_instruct(own, base), clip, vae)


class DemoImageEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DemoImageEncoderLoader", "Load Demo Image Encoder", "demo", ["demo clip vision", "tiny image encoder", "example model"],
            "The image encoder of the demo model's IP-Adapter: a CLIP Vision network of less than 1 MB that knows the demo's world. To use a "
            "model of your own, replace this node by Load CLIP Vision.",
            inputs=[_world(demo.worlds("encoder"))],
            outputs=[io.ClipVision.Output(display_name="clip_vision", tooltip="For IP-Adapter Patch with the demo model's adapter.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, world) -> io.NodeOutput:
        return io.NodeOutput(demo.demo_encoder(demo.file_of(world, "encoder")))


class DemoCheckerLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DemoCheckerLoader", "Load Demo Checker", "demo", ["pair filter", "pair checker", "dataset filter"],
            "Reads images of the demo model back into words, and keeps the pairs in which both images are what their prompts say: the "
            "checker of InstructPix2Pix Pairs where there is no CLIP.",
            inputs=[_world(demo.checked_worlds())],
            outputs=[PairChecker.Output(display_name="checker", tooltip="For InstructPix2Pix Pairs.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, world) -> io.NodeOutput:
        return io.NodeOutput(demo.load_checker(world))


class DemoImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "DemoImages", "Load Demo Images", "demo", ["training images", "example images", "sample dataset", "test images"],
            "Images to train on or to edit, with captions and masks, without any file: scenes of the illustrated demo world, something that no "
            "demo model has seen, a new drawing style, or two painted squares.",
            inputs=[
                choice("show", KINDS, "'scenes' of the illustrated world; 'a whale' or 'a rocket', a certain one for each seed, and 'an outlined style', "
                    "which no demo model has seen; 'two squares' of the world of shapes. Two squares are 128 x 128, all others 192 x 192."),
                only_with(whole("count", 4, 1, 64, "How many images. Typical: 1 to edit, 4–12 to train on."), "show", *VARIED),
                only_with(seed("Other seeds give other images."), "show", *VARIED),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The images."),
                io.String.Output(display_name="captions", tooltip="What each image shows, one a line: for captions of Dataset Options."),
                io.Mask.Output(display_name="masks", tooltip="Where the things are: for masks of Dataset Options, or to edit only there."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, show, count, seed) -> io.NodeOutput:
        return io.NodeOutput(*demo.images_of(show, count, seed))


NODES = [DemoModelLoader, DemoInstructModelLoader, DemoImageEncoderLoader, DemoCheckerLoader, DemoImages]
