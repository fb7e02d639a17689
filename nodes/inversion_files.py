"""Inversions as files: invert once, edit many times."""

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..guidance.errors import quoted
from .host.inversion import inversion_files as files
from .host.inversion import invert as inverting
from .inputs import sockets
from .inputs.inverter import inverter_outputs
from .inputs.widgets import choice, schema, text


class SaveInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "SaveInversion", "Save Inversion", "inversion",
            ["store inversion", "export inversion", "cache inversion", "keep inverted image"],
            "Writes an inversion to output/inversions, bit by bit, so that an image is inverted once and edited many times.",
            is_output_node=True,
            inputs=[
                sockets.Inversion.Input("inversion", tooltip="From any inverter."),
                text("filename_prefix", "inversion",
                    "File in output/inversions; a counter is added. May have a folder (cats/black) and the date (%year%-%month%-%day%)."),
            ],
            outputs=[
                sockets.Inversion.Output(display_name="inversion", tooltip="The inversion as it came in."),
                io.String.Output(display_name="name", tooltip="The file's name, as Load Inversion lists it."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, inversion, filename_prefix) -> io.NodeOutput:
        name = files.save(inversion, filename_prefix)
        return io.NodeOutput(inversion, name, ui=ui.PreviewText(name))


class LoadInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "LoadInversion", "Load Inversion", "inversion",
            ["import inversion", "reuse inversion", "open inversion", "invert once edit many"],
            "Reads a file of Save Inversion, with all outputs of the inverter. It belongs to one model; others are refused.",
            inputs=[
                io.Model.Input("model", tooltip="The model of the inversion, in any precision; LoRA and patches may differ."),
                choice("name", files.INVERSIONS.names(), "File in output/inversions ([output]) or models/inversions. The key R lists new ones."),
            ],
            outputs=[
                *inverter_outputs(),
                io.Conditioning.Output(display_name="source", tooltip="The conditioning under which the image was inverted."),
                io.Conditioning.Output(display_name="negative", tooltip="Of null-text and negative-prompt inversions; others have none."),
                io.Latent.Output(display_name="image", tooltip="The inverted image itself."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, name):
        try:
            if name is not None:  # a link: not known before it runs
                files.INVERSIONS.find(name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, name, **linked):
        return float("nan") if name is None else files.stamp(name)

    @classmethod
    def execute(cls, model, name) -> io.NodeOutput:
        found = files.load(name)
        found.model.check(model)
        missing = ExecutionBlocker(f"{quoted(name)} brings no negative conditioning. Connect a prompt, which may be empty.")
        given = inverting.outputs(model, found)
        return io.NodeOutput(*given, found.source, missing if found.null is None else found.null, files.image(model, found))


NODES = [SaveInversion, LoadInversion]
