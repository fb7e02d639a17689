"""Training InstructPix2Pix: a model of your own that edits an image as it is told."""

from pathlib import Path

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..training.instruct_pix2pix import DROPPED, WHAT
from .host.fingerprint import stamp
from .host.training import instruct_models, instruct_pairs
from .host.training import instruct_pix2pix as host
from .inputs import training as inputs

_CATEGORY = "controlled diffusion/training"
_LISTS = ("before", "after", "instructions")


def _pairs() -> list:
    return [
        io.Image.Input("before", optional=True, tooltip="Images before the edit: a batch, or a list as folder loaders give it."),
        io.Image.Input("after", optional=True, tooltip="The same images after it, in the same order and of the same sizes."),
        io.String.Input(
            "instructions",
            default="",
            multiline=True,
            optional=True,
            tooltip="What leads from each image to the other, such as 'make it blue': a list, or one a line.",
        ),
    ]


def _learning() -> list:
    return [
        inputs.whole(
            "rank",
            16,
            1,
            4096,
            "Rank of the LoRA; not with 'all weights'. Usual 8 to 64; more learns more and takes more memory. With 'every layer', layers that "
            "lack the rank get the largest that they have.",
        ),
        inputs.number("alpha", 16.0, 0.01, 4096.0, "The LoRA acts at alpha / rank. The rank = in full; usual rank / 2 to rank.", 0.5),
        inputs.number(
            "dropout",
            0.05,
            0.0,
            0.33,
            "How often the image alone, the instruction alone, and both are left out, each; both scales of the guider need it. 0.05 in the "
            "paper; 0 = never.",
        ),
        inputs.flip(),
    ]


def _run() -> list:
    """The shared inputs of a run, with the two scales of an instruction model in the place of cfg."""
    scales = [
        inputs.number("validation_text_scale", 7.5, 0.0, 100.0, "s_T of validation images: usual 3 to 10, the demo model 3.", 0.1),
        inputs.number("validation_image_scale", 1.5, 0.0, 100.0, "s_I of validation images: usual 1 to 2.", 0.1),
    ]
    shared = inputs.run("a model")
    place = [i.id for i in shared].index("validation_cfg")
    return [*shared[:place], *scales, *shared[place + 1 :]]


class InstructPix2PixTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InstructPix2PixTrainer",
            display_name="Train Instruction Model (InstructPix2Pix)",
            category=_CATEGORY,
            description="Teaches a model to edit an image as it is told, from pairs of images and instructions. The image enters through "
            "new channels of the first convolution, which start at zero. Saved for the host's Load Diffusion Model; the given model is not changed.",
            search_aliases=[
                "instruct pix2pix",
                "ip2p",
                "train edit model",
                "learning to follow image editing instructions",
                "instruction tuning",
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="SD1.5, SD2, SDXL or alike, with LoRAs if you like; or an instruction model, to go on from it."
                ),
                io.Clip.Input("clip", tooltip="Its text encoder. It is not changed."),
                io.Vae.Input("vae", tooltip="Its VAE. Each image is encoded once."),
                io.String.Input(
                    "name",
                    default="my-editor",
                    tooltip="The model is saved in the diffusion_models folder under this name. 'editors/snow' goes into a subfolder.",
                ),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Pairs that InstructPix2Pix Pairs wrote: its name there. Empty = the connected images and instructions.",
                ),
                io.Combo.Input(
                    "train",
                    options=list(WHAT),
                    tooltip="Beside the first convolution: a LoRA of attention or of every layer, or all weights themselves, as in the paper, which "
                    "takes 16 bytes for each of the model's weights.",
                ),
                *inputs.course(
                    2000,
                    "Steps of the optimiser. Usual 1000 to 20000.",
                    4,
                    0.0001,
                    "0.0001 in the paper, for all weights; LoRAs usual 0.0001 to 0.001.",
                ),
                io.Int.Input(
                    "validation_every", default=0, min=0, max=1_000_000, tooltip="Steps between edits to look at; 0 = at the end alone."
                ),
                *_learning(),
                *inputs.objective(),
                *_run(),
                *_pairs(),
                inputs.checkpointing(),
                io.Combo.Input(
                    "channel_dropout",
                    options=list(DROPPED),
                    optional=True,
                    advanced=True,
                    tooltip="'jointly': the image alone, the instruction alone and both are left out at the rate dropout each, as in the paper. "
                    "'independently': image and instruction each by itself, so often that both are missing at the rate dropout.",
                ),
                inputs.clean_dropout("clean_image_dropout", "as dropout says", "the image is"),
                inputs.clean_dropout("clean_instruction_dropout", "as dropout says", "the instruction is"),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The instruction model, for InstructPix2Pix Guider and its kin."),
                io.String.Output(display_name="name", tooltip="The name of its file, for Load Instruction Model."),
                io.Image.Output(display_name="loss_curve", tooltip="Loss and learning rate over the steps."),
                io.Image.Output(display_name="validation", tooltip="Images before and as edited, by turns; the last at the end."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder, **lists):
        name, unfinished = (folder[0] or "").strip(), inputs.unfinished(instruct_models.FOLDER, lists)  # no name where it is a link
        return unfinished + (instruct_pairs.Folder(name).fingerprint() if name else "")

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        given = {k: v[0] for k, v in lists.items() if k not in _LISTS}
        connected = {k: [v for v in lists.get(k) or () if v is not None and not (isinstance(v, str) and not v.strip())] for k in _LISTS}
        pairs = instruct_pairs.chosen(given["folder"], *(connected[k] for k in _LISTS))
        how = inputs.read(given, host.Settings, host.Validation)
        made = host.learn(
            *(given[k] for k in ("model", "clip", "vae")), host.Data(*pairs, given["flip"]), *how, given["name"], given["if_exists"]
        )
        seen = ExecutionBlocker("Train Instruction Model: no validation image was made.") if made.images is None else made.images
        return io.NodeOutput(made.model, f"{made.name}.safetensors", made.curve, seen)


class InstructPix2PixLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InstructPix2PixLoader",
            display_name="Load Instruction Model",
            category=_CATEGORY,
            description="Loads a model that Train Instruction Model made, of any size. Those of SD1.5 (eps) and SDXL the host's Load Diffusion "
            "Model reads as well.",
            search_aliases=["instruct pix2pix loader", "ip2p loader", "load edit model"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that it was trained from: it says how the file is to be read. It is not changed."
                ),
                io.String.Input(
                    "name",
                    default="my-editor.safetensors",
                    tooltip="The file, of the host's diffusion_models folders: what Train Instruction Model gives out as name.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The instruction model, for InstructPix2Pix Guider and its kin.")],
        )

    @classmethod
    def fingerprint_inputs(cls, name, **linked):
        return float("nan") if name is None else stamp(Path(instruct_models.path_to(name)))

    @classmethod
    def execute(cls, model, name) -> io.NodeOutput:
        return io.NodeOutput(instruct_models.load(model, instruct_models.path_to(name)))


NODES = [InstructPix2PixTrainer, InstructPix2PixLoader]
