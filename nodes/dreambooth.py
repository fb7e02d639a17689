"""DreamBooth: a subject learnt as a LoRA from a few images, its class kept as it was."""

from dataclasses import fields

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..training import settings
from ..training.dreambooth import RATIOS, Preservation, ratio_of
from .host.training import adapters, instruct_models, textual_inversion
from .host.training import dreambooth as host
from .host.training.whole_weights import WholeWeights
from .inputs import training as inputs

_LISTS = ("images", "captions", "masks", "class_images")
_TRAIN = ("adapter", "all weights")


def subject(saved: str, instance: str, tip: str, count: int) -> list:
    """What the images show, and what is kept of their class."""
    return [
        io.String.Input("name", default="my-subject", tooltip=saved),
        io.String.Input("instance_prompt", default=instance, tooltip=tip),
        io.String.Input(
            "class_prompt",
            default="a photo of a dog",
            multiline=True,
            tooltip="The same without the new or rare word: what shall stay as it is. Several prompts, one a line, take turns.",
        ),
        io.Float.Input(
            "prior_weight",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.05,
            tooltip="The weight lambda of class images beside the subject's. 0 = plain fine-tuning without them; 1 in the paper.",
        ),
        io.Int.Input(
            "class_count",
            default=count,
            min=0,
            max=100_000,
            tooltip="Class images that the model samples as it is, if none are connected. Kept on disk for the next run. Usual 50 to 1000.",
        ),
    ]


def _adapter() -> list:
    return [
        io.Int.Input("rank", default=8, min=1, max=4096, tooltip="Size of the LoRA: 4 to 32 usual; of LoKr and OFT the number of blocks."),
        inputs.choice("algorithm", adapters.ALGORITHMS, "The host's adapter: LoRA suits most; LoHa and LoKr are smaller, OFT only turns weights."),
        inputs.number("alpha", 0.0, 0.0, 4096.0, "The LoRA acts at alpha / rank. 0 = the rank, that is in full. With OFT a limit to turning, 0 = none.", 1.0),
        io.String.Input(
            "layers",
            default=adapters.ATTENTION,
            advanced=True,
            tooltip="Which layers learn: parts of their names between commas, '-part' leaves out. Empty = all; 'attn2' = cross-attention of UNets.",
        ),
    ]  # fmt: skip


def word(placeholder: str) -> list:
    """The new word."""
    return [
        io.String.Input(
            "placeholder",
            default=placeholder,
            advanced=True,
            tooltip="The made-up word. Files know it as embedding:name. Several between commas are learnt together; captions say which is where.",
        ),
        io.String.Input(
            "initial_words",
            default="",
            advanced=True,
            tooltip="What the new word means at first, as 'dog'. Empty = the mean of all words. For several words between commas too.",
        ),
        inputs.whole("vectors", 1, 1, 64, "Vectors, that is tokens, of the new word. Usual 1 to 4."),
        inputs.number("word_rate", 0.005, 0.00001, 100.0, "Learning rate of the word, as for SD1.5. Usual 0.001 to 0.01.", 0.001, round=0.00001),
        *inputs.norms(),
    ]


def batches() -> list:
    return [
        inputs.choice("ratio", RATIOS, "Instance to class images in a batch: 1:1, or 1:2 to keep the class harder."),
        inputs.whole("class_batch", 4, 1, 1024, "Class images sampled at a time."),
    ]


def images() -> list:
    return [
        io.Image.Input("class_images", optional=True, tooltip="Your own images of the class, instead of sampled ones."),
        io.String.Input(
            "captions",
            default="",
            multiline=True,
            optional=True,
            tooltip="What each image shows, in the place of the instance prompt: a list, or one a line; several ways to say it between |, of which each is "
            "used by turns. Empty = none.",
        ),
        inputs.masks(),
        inputs.checkpointing(),
        inputs.caption_dropout(),
        *inputs.augmentation(),
    ]


def clean_words() -> io.Float.Input:
    return inputs.clean_dropout("clean_caption_dropout", "caption_dropout", "the words are")


def outputs(what: str) -> list:
    return [
        io.Model.Output(display_name="model", tooltip=f"The model with {what} on it, to sample with at once."),
        io.LoraModel.Output(display_name="lora", tooltip="For the host's Load LoRA Model and Save LoRA nodes."),
        io.String.Output(display_name="name", tooltip="Of its file in the loras folder, or in diffusion_models for a whole model."),
        io.String.Output(display_name="word", tooltip="What to write in a prompt: embedding:name (of each word), or the instance prompt."),
        io.Image.Output(display_name="loss_curve", tooltip="Loss and learning rate over the steps."),
        io.Image.Output(display_name="validation", tooltip="All validation images, the last at the end."),
    ]


def learnt(lists: dict, design, with_word: bool) -> host.Learnt:
    """What the inputs of a node ask for."""
    given = {k: v[0] for k, v in lists.items() if k not in _LISTS}
    images, captions, masks, class_images = inputs.lists_of(lists, *_LISTS)
    first, *others = new_words(given) if with_word else [None]
    kept = Preservation(given["prior_weight"], ratio_of(given["ratio"]))
    return host.learn(
        *(given[k] for k in ("model", "clip", "vae")),
        settings.Data(images, captions, masks, given["flip"], augmentation=inputs.augmented(given), **inputs.dropout(given)),
        host.Subject(given["instance_prompt"], first, given["word_rate"], tuple(others)),
        host.Class(given["class_prompt"], class_images, given["class_count"], given["class_batch"], kept),
        design,
        *inputs.read(given | {"validation_prompt": given["validation_prompt"] or given["instance_prompt"]}),
        given["name"],
        given["if_exists"],
    )


def new_words(given: dict) -> list[textual_inversion.Word]:
    """The words of a node's inputs: one, or several between commas with as many initial words."""
    shared = {f.name: given[f.name] for f in fields(textual_inversion.Word)}
    placeholders, initial = ([t.strip() for t in given[k].split(",")] for k in ("placeholder", "initial_words"))
    if len(placeholders) < 2:
        return [textual_inversion.Word(**shared)]
    if len(initial) not in (1, len(placeholders)):
        raise ValueError(
            f"There are {len(initial)} initial words for {len(placeholders)} placeholders. Give one for each, between commas, or one for all."
        )
    starts = initial * (len(placeholders) // len(initial))
    return [textual_inversion.Word(**shared | {"placeholder": p, "initial_words": start}) for p, start in zip(placeholders, starts)]


def shown(made: host.Learnt) -> tuple:
    seen = ExecutionBlocker("Training: no validation image was made.") if made.images is None else made.images
    return made.model, made.lora, f"{made.name}.safetensors", made.word, made.curve, seen


class DreamBoothTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DreamBoothTrainer",
            display_name="Train LoRA (DreamBooth)",
            category="controlled diffusion/training",
            description="Teaches the model a subject it has never seen from a few images, as a LoRA. Images of its class, sampled by the model "
            "itself, keep the class as it was (prior preservation). A new word for the subject can be learnt along.",
            search_aliases=["dreambooth", "train lora", "prior preservation", "subject", "personalization", "LoHa", "LoKr", "OFT"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to teach: eps, v or flow. It is not changed; LoRAs on it act while it learns."),
                io.Clip.Input("clip", tooltip="Its text encoders. They are not changed."),
                io.Vae.Input("vae", tooltip="Its VAE. Each image is encoded once."),
                io.Image.Input(
                    "images", tooltip="3 to 20 images of the subject: a batch, or a list as folder loaders give it. Sizes may differ."
                ),
                *subject(
                    "Of the LoRA in the loras folder, and of the embedding if a word is learnt. 'dogs/rex' goes into a subfolder.",
                    "a photo of sks dog",
                    "What the images show: a rare word, or the placeholder of a new one, and the class. An image's caption takes its place.",
                    100,
                ),
                *inputs.course(
                    800,
                    "Steps of the optimiser. Usual 400 to 1500; about 100 to 200 for each image.",
                    1,
                    0.0001,
                    "Of the LoRA: usual 0.00005 to 0.0005. With prodigy 1.",
                ),
                *inputs.validation_prompt("", "Images of this prompt are shown while it learns. Empty = the instance prompt."),
                *_adapter(),
                *batches(),
                io.Boolean.Input(
                    "learn_word",
                    default=False,
                    advanced=True,
                    tooltip="Also learn a new word for the subject, as Train Embedding does; the instance prompt must hold the placeholder.",
                ),
                *word("<subject>"),
                inputs.flip(),
                *inputs.objective(),
                *inputs.run("a LoRA", " and of class images"),
                *images(),
                io.Combo.Input(
                    "train",
                    options=list(_TRAIN),
                    optional=True,
                    advanced=True,
                    tooltip="'adapter': a LoRA or its kin. 'all weights': the whole denoiser, saved as a model in diffusion_models; rank, algorithm, "
                    "alpha and layers then do nothing, and each weight takes 16 bytes, 20 with an average.",
                ),
                clean_words(),
            ],
            outputs=outputs("the LoRA"),
        )

    @classmethod
    def fingerprint_inputs(cls, train=None, **lists):
        return inputs.unfinished(instruct_models.MODELS if train and train[0] == _TRAIN[1] else adapters.LORAS, lists)

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        design = adapters.Design(**{f.name: lists[f.name][0] for f in fields(adapters.Design)})
        if lists.get("train", _TRAIN)[0] == _TRAIN[1]:
            design = WholeWeights()
        return io.NodeOutput(*shown(learnt(lists, design, lists["learn_word"][0])))


NODES = [DreamBoothTrainer]
