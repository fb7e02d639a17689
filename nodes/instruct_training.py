"""Training InstructPix2Pix: a model of your own that edits images by instructions."""

from comfy_api.latest import io

from ..training.instruct_pix2pix import DROPOUT, DROPPED, WHAT
from .host.fingerprint import stamp
from .host.training import instruct_models
from .host.training import instruct_pix2pix as host
from .host.training.pair_folder import PairFolder, training_pairs
from .inputs import training as inputs
from .inputs.widgets import schema, text, whole

_NAME, _LISTS = "Train Instruction Model (InstructPix2Pix)", ("before", "after", "instructions")
_REFUSED = (
    *("captions", "masks", "caption_dropout", "clean_caption_dropout"),
    *("augmentation.variants", "augmentation.crop", "augmentation.jitter", "augmentation.scale"),
)  # of Dataset Options


def _train_input() -> io.DynamicCombo.Input:
    """What is trained, with the settings of a LoRA."""
    train = "Beside the first convolution: a LoRA of attention or of every layer, or all weights (paper; 16 bytes each)."
    rank = "Rank of the LoRA. More learns more in more memory; small layers get their largest. Typical: 8–64."

    def settings(what: str) -> list:
        return [] if what == "all weights" else [
            whole("rank", host.Settings.rank, 1, 4096, rank),
            inputs.number("alpha", host.Settings.alpha, 0.0, 4096.0, "The LoRA acts at alpha / rank. 0 = the rank, that is in full.", 0.5),
        ]  # fmt: skip

    return io.DynamicCombo.Input("train", options=[io.DynamicCombo.Option(what, settings(what)) for what in WHAT], tooltip=train)


class InstructPix2PixTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        dropout = "How often image, instruction, and both are left out, each; the guider's two scales need it. Paper: 0.05. 0 = never."
        kind = (
            "'jointly': image alone, instruction alone and both are dropped at the rate dropout each (paper). 'independently': image and "
            "instruction are dropped separately; both are missing at this rate."
        )
        return inputs.trainer_schema(
            "InstructPix2PixTrainer", _NAME, "training",
            ["instruct pix2pix", "ip2p", "train edit model", "learning to follow image editing instructions", "instruction tuning"],
            "Trains a model to edit images by instructions, from pairs of images and instructions. The image enters through new channels "
            "of the first convolution, which start at zero. Saved for ComfyUI's Load Diffusion Model; the given model is not changed.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5, SD2, SDXL or alike, also with LoRAs; or an instruction model, to train on."),
                *inputs.parts("Its text encoder. It is not changed."),
                io.Image.Input("before", optional=True, tooltip="Images before the edit: a batch, or a list as folder loaders give it."),
                io.Image.Input("after", optional=True, tooltip="The same images after it, in the same order and of the same sizes."),
                *inputs.options("training_options", "dataset_options", "validation_options"),
                _train_input(),
                text("name", "my-editor", "Name of its file in models/diffusion_models. 'editors/snow' goes into a subfolder."),
                text("folder", "", "Name of the folder of InstructPix2Pix Pairs. Empty = the connected images and instructions."),
                text("instructions", "", "What each edit does, such as 'make it blue': a list, or one a line.", multiline=True),
                *inputs.course("Typical: 1000–20000.", 4,
                    "Learning rate. Paper: 0.0001, for all weights. LoRAs: 0.0001–0.001."),
                inputs.number("dropout", DROPOUT, 0.0, 0.33, dropout),
                inputs.choice("channel_dropout", DROPPED, kind),
                inputs.clean_dropout("clean_image_dropout", "as dropout says", "the image is"),
                inputs.clean_dropout("clean_instruction_dropout", "as dropout says", "the instruction is"),
                inputs.if_exists("a model"),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The instruction model, for InstructPix2Pix Guider and its kin."),
                io.String.Output(display_name="name", tooltip="The name of its file, for Load Instruction Model."),
                inputs.loss_curve(),
                io.Image.Output(display_name="validation", tooltip="Images before and as edited, by turns; the last at the end."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder, **lists):
        name, unfinished = (folder[0] or "").strip(), inputs.unfinished(instruct_models.MODELS, lists)  # no name where it is a link
        return unfinished + (PairFolder(name).fingerprint() if name else "")

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        given = inputs.first({k: v for k, v in lists.items() if k not in _LISTS})
        given = inputs.with_autos(given, {"validation_options": ["cfg", "image_scale"]}, trainer="Train Instruction Model")
        connected = {k: [v for v in lists.get(k) or () if v is not None and not (isinstance(v, str) and not v.strip())] for k in _LISTS}
        data = inputs.option(given, "dataset_options", _NAME, _REFUSED)
        settings = inputs.settings(given | given["train"], _NAME, host.Settings)
        how = inputs.objective(given, _NAME), settings, inputs.option(given, "validation_options", _NAME)
        pairs = training_pairs(given["folder"], *(connected[k] for k in _LISTS))
        made = host.learn(*(given[k] for k in ("model", "clip", "vae")), host.Data(*pairs, data.flip, data.fit), *how, given["name"], given["if_exists"])
        return inputs.trained(made, made.model, f"{made.name}.safetensors")


class InstructPix2PixLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "InstructPix2PixLoader", "Load Instruction Model", "training", ["instruct pix2pix loader", "ip2p loader", "load edit model"],
            "Loads a model that Train Instruction Model made, of any size. ComfyUI's Load Diffusion Model reads those of SD1.5 (eps) and "
            "SDXL as well.",
            inputs=[
                io.Model.Input("model", tooltip="The model that it was trained from, by which the file is read. It is not changed."),
                text("name", "my-editor.safetensors", "Its file in models/diffusion_models, as Train Instruction Model outputs it."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The instruction model, for InstructPix2Pix Guider and its kin.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, name, **linked):
        return float("nan") if name is None else stamp(instruct_models.MODELS.find(name))

    @classmethod
    def execute(cls, model, name) -> io.NodeOutput:
        return io.NodeOutput(instruct_models.load(model, str(instruct_models.MODELS.find(name))))


NODES = [InstructPix2PixTrainer, InstructPix2PixLoader]
