"""DreamBooth: a subject trained as a LoRA from a few images, its class kept as it was."""

from dataclasses import fields

from comfy_api.latest import io

from ..training.dreambooth import RATIOS, Preservation, ratio_of
from ..training.textual_inversion import Word
from .host.training import adapters, instruct_models
from .host.training import dreambooth as host
from .host.training.trainer import TrainResult
from .host.training.whole_weights import WholeWeights
from .inputs import training as inputs
from .inputs import widgets

_TRAIN = ("adapter", "all weights")


def subject(saved: str, instance: str, tip: str, count: int) -> list:
    """What the images show, and what is kept of their class."""
    class_tip = "The same without the new or rare word: what must stay as it is. Several prompts, one a line, take turns."
    count_tip = "Class images that the model samples itself, if none are connected. Kept on disk for the next run. Typical: 50–1000."
    return [
        widgets.text("name", "my-subject", saved),
        widgets.text("instance_prompt", instance, tip),
        widgets.text("class_prompt", "a photo of a dog", class_tip, multiline=True),
        widgets.number("prior_weight", Preservation.weight, 0.0, 100.0, "Weight of class images. 0 = plain fine-tuning. Paper: 1.", 0.05),
        widgets.whole("class_count", count, 0, 100_000, count_tip),
    ]


def _adapter() -> list:
    own = adapters.Design
    alpha = "The LoRA acts at alpha / rank. 0 = the rank, that is in full. OFT: limit of rotation, 0 = none."
    layers = "Layers to train: parts of their names between commas, '-part' leaves out. Empty = all; 'attn2' = cross-attention of UNets."
    return [
        widgets.whole("rank", own.rank, 1, 4096, "Size of the LoRA. Typical: 4–32. For LoKr and OFT the number of blocks."),
        inputs.choice("algorithm", adapters.ALGORITHMS, "LoRA suits most; LoHa and LoKr are smaller, OFT only rotates weights."),
        inputs.number("alpha", own.alpha, 0.0, 4096.0, alpha, 1.0),
        inputs.text("layers", own.layers, layers),
    ]


def word(placeholder: str) -> list:
    """The new word."""
    start = "Start meaning of the word, as 'dog'. Empty = the mean of all words. For several words between commas too."
    rate = "Learning rate of the word, as for SD1.5. Typical: 0.001–0.01."
    tip = "The made-up word. Files know it as embedding:name. Several between commas are trained jointly; captions say which is where."
    return [
        inputs.text("placeholder", placeholder, tip),
        inputs.text("initial_words", "", start),
        inputs.whole("vectors", Word.vectors, 1, 64, "Vectors, that is tokens, of the new word. Typical: 1–4."),
        inputs.number("word_rate", host.Subject.word_rate, 0.00001, 100.0, rate, 0.001, round=0.00001),
        *inputs.norms(),
    ]


def batches() -> list:
    return [
        inputs.choice("ratio", RATIOS, "Instance to class images in a batch: 1:1, or 1:2 to keep the class harder."),
        inputs.whole("class_batch", host.Class.batch, 1, 1024, "Class images sampled at a time."),
    ]


def images() -> list:
    tip = "What each image shows, instead of the instance prompt: a list, or one a line; variants between | take turns. Empty = none."
    return [
        io.Image.Input("class_images", optional=True, tooltip="Your own images of the class, instead of sampled ones."),
        inputs.captions(tip),
        inputs.masks(),
        inputs.checkpointing(),
        inputs.caption_dropout(),
        *inputs.augmentation(),
    ]


def clean_words():
    return inputs.clean_dropout("clean_caption_dropout", "caption_dropout", "the words are")


def outputs(what: str) -> list:
    return [
        io.Model.Output(display_name="model", tooltip=f"The model with {what} on it, to sample with at once."),
        io.LoraModel.Output(display_name="lora", tooltip="For ComfyUI's Load LoRA Model and Save LoRA nodes."),
        io.String.Output(display_name="name", tooltip="Its file in the loras folder, or in diffusion_models for a whole model."),
        io.String.Output(display_name="word", tooltip="What to write in a prompt: embedding:name (of each word), or the instance prompt."),
        inputs.loss_curve(),
        inputs.validation_images(),
    ]


def trained(lists: dict, design, with_word: bool) -> TrainResult:
    """What the inputs of a node ask for."""
    given = {k: v[0] for k, v in lists.items() if v}
    (class_images,) = inputs.lists_of(lists, "class_images")
    words = tuple(new_words(given)) if with_word else ()
    preservation = Preservation(given["prior_weight"], ratio_of(given["ratio"]))
    return host.learn(
        *(given[k] for k in ("model", "clip", "vae")),
        inputs.data(lists, given),
        host.Subject(given["instance_prompt"], words, given["word_rate"]),
        host.Class(given["class_prompt"], class_images, given["class_count"], given["class_batch"], preservation),
        design,
        *inputs.read(given | {"validation_prompt": given["validation_prompt"] or given["instance_prompt"]}),
        given["name"],
        given["if_exists"],
    )


def new_words(given: dict) -> list[Word]:
    """The words of a node's inputs: one, or several between commas with as many initial words."""
    shared = {f.name: given[f.name] for f in fields(Word)}
    placeholders, initial = ([t.strip() for t in given[k].split(",")] for k in ("placeholder", "initial_words"))
    if len(placeholders) < 2:
        return [Word(**shared)]
    if len(initial) not in (1, len(placeholders)):
        raise ValueError(
            f"There are {len(initial)} initial words for {len(placeholders)} placeholders. Give one for each, between commas, or one "
            "for all."
        )
    starts = initial * (len(placeholders) // len(initial))
    return [Word(**shared | {"placeholder": p, "initial_words": start}) for p, start in zip(placeholders, starts)]


def shown(result: TrainResult, *more) -> io.NodeOutput:
    return inputs.trained(result, result.model, result.lora, f"{result.name}.safetensors", result.word, more=more)


class DreamBoothTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return inputs.trainer_schema(
            "DreamBoothTrainer", "Train LoRA (DreamBooth)", "training",
            ["dreambooth", "train lora", "prior preservation", "subject", "person or face", "personalization", "LoHa", "LoKr", "OFT"],
            "Teaches the model a subject it has never seen from a few images, as a LoRA. Images of its class, sampled by the model itself, "
            "keep the class as it was (prior preservation). A new word for the subject can be trained jointly.",
            inputs=[
                io.Model.Input("model", tooltip="The model to train: eps, v or flow. It is not changed; LoRAs on it act during training."),
                *inputs.parts(),
                io.Image.Input("images", tooltip="3–20 images of the subject: a batch, or a list of any sizes as folder loaders give it."),
                *subject("File in the loras folder; with a new word, also of the embedding. 'dogs/rex' = in a subfolder.", "a photo of sks "
                    "dog", "What the images show: a rare word, or the placeholder of a new one, and the class. An image's caption replaces "
                    "it.", 100),
                *inputs.course(800, "Typical: 400–1500; about 100–200 for each image.", 1, 0.0001, "Of the LoRA. Typical: 0.00005–0.0005."),
                *inputs.validation_prompt("", "Prompt of the images shown during training. Empty = the instance prompt."),
                *_adapter(),
                *batches(),
                inputs.switch("learn_word", False, "Also train a new word; the instance prompt must hold the placeholder."),
                *word("<subject>"),
                inputs.flip(),
                *inputs.objective(),
                *inputs.run("a LoRA", " and of class images"),
                *images(),
                inputs.choice("train", _TRAIN, "'adapter': a LoRA or its kin. 'all weights': the whole denoiser, in diffusion_models, "
                    "without rank, algorithm, alpha and layers. 16 bytes for each weight, 20 with an average.", optional=True),
                clean_words(),
            ],
            outputs=outputs("the LoRA"),
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, train=None, **lists):
        return inputs.unfinished(instruct_models.MODELS if train and train[0] == _TRAIN[1] else adapters.LORAS, lists)

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        design = adapters.Design(**{f.name: lists[f.name][0] for f in fields(adapters.Design)})
        if lists.get("train", _TRAIN)[0] == _TRAIN[1]:
            design = WholeWeights()
        return shown(trained(lists, design, lists["learn_word"][0]))


NODES = [DreamBoothTrainer]
