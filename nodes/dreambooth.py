"""DreamBooth: a subject trained as a LoRA from a few images, its class kept as it was."""

from dataclasses import replace

from comfy_api.latest import io

from .host.progress import keep
from .host.training import adapters, instruct_models, slider
from .host.training import dreambooth as host
from .host.training.trainer import TrainResult
from .host.training.whole_weights import WholeWeights
from .inputs import training as inputs
from .inputs import widgets

_NAME, _TRAIN = "Train LoRA (DreamBooth)", ("adapter", "all weights")
OPTIONS = ("training_options", "dataset_options", "validation_options", "class_images", "new_word")
VALIDATION_PROMPT = "Prompt of the images shown during training. Empty = the instance prompt."


def outputs(what: str, file: str) -> list:
    return [
        io.Model.Output(display_name="model", tooltip=f"The model with {what} on it, to sample with at once."),
        io.LoraModel.Output(display_name="lora", tooltip="For ComfyUI's Load LoRA Model and Save LoRA nodes."),
        io.String.Output(display_name="name", tooltip=file),
        io.String.Output(display_name="word", tooltip="What to write in a prompt: embedding:name (of each word), or the instance prompt."),
        inputs.loss_curve(),
        inputs.validation_images(),
    ]


def trained(lists: dict, trainer: str, design, word: host.Subject | None = None) -> TrainResult:
    """What the inputs of a node ask for; `word` is trained where New Word is not connected."""
    given = inputs.first(lists)
    given["new_word"] = given.get("new_word") or word
    on_auto = {"validation_options": ["cfg"]} | ({"new_word": ["word_rate"]} if given["new_word"] else {})
    given = inputs.with_autos(given, on_auto)
    return host.learn(
        *(given[k] for k in ("model", "clip", "vae")),
        inputs.data(lists, trainer),
        replace(inputs.option(given, "new_word", trainer), prompt=given["instance_prompt"]),
        inputs.option(given, "class_images", trainer),
        design,
        inputs.objective(given, trainer),
        inputs.settings(given, trainer),
        inputs.validation(given, trainer),
        given["name"],
        given["if_exists"],
    )


def trained_slider(lists: dict, design) -> TrainResult:
    """What the inputs of the node ask for where Concept Slider is connected."""
    given = inputs.first(lists)
    if given.get("new_word") is not None:
        raise ValueError("A slider cannot use New Word. Disconnect it, or Concept Slider.")
    keep("class_images is not used by a slider" if given.get("class_images") is not None else "")
    if getattr(design, "algorithm", "") != adapters.ALGORITHMS[0]:
        raise ValueError("A slider is a LoRA, whose strength moves it. Set train to 'adapter' and algorithm to 'LoRA'.")
    from_pairs = given["concept_slider"].learn == slider.LEARN[1]
    on_auto = {"validation_options": ["cfg"]} | ({} if from_pairs else {"concept_slider": ["guidance", "resolution"]})
    given = inputs.with_autos(given, on_auto)
    data = inputs.data(lists, _NAME, *((), ()) if from_pairs else (["captions"], ["caption_dropout", "clean_caption_dropout"]))
    if from_pairs and data.images:
        raise ValueError("Images are connected, but Concept Slider learns from pairs of its own. Disconnect them.")
    return slider.learn(
        *(given[k] for k in ("model", "clip", "vae")), data, given["instance_prompt"], given["concept_slider"], design,
        inputs.objective(given, _NAME), inputs.settings(given, _NAME), inputs.validation(given, _NAME), given["name"], given["if_exists"],
    )  # fmt: skip


def shown(result: TrainResult, *more) -> io.NodeOutput:
    return inputs.trained(result, result.model, result.lora, f"{result.name}.safetensors", result.word, more=more)


def _train_input() -> io.DynamicCombo.Input:
    """What is trained, with the settings of an adapter."""
    own = adapters.Design
    train = "'adapter': a LoRA or its kin. 'all weights': the whole denoiser, in diffusion_models; 16 bytes for each weight, 20 with an average."
    algorithm = "LoRA suits most; LoHa and LoKr are smaller, OFT only rotates weights."
    alpha = "The LoRA acts at alpha / rank. 0 = the rank, that is in full. OFT: limit of rotation, 0 = none."
    layers = "Layers to train: parts of their names between commas, '-part' leaves out. Empty = all; 'attn2' = cross-attention of UNets."
    adapter = [
        widgets.auto_whole("rank", 1, 4096, "Size of the LoRA: more learns more, in a larger file. Typical: 4–32. For LoKr and OFT the number of blocks."),
        inputs.choice("algorithm", adapters.ALGORITHMS, algorithm),
        inputs.number("alpha", own.alpha, 0.0, 4096.0, alpha, 1.0),
        inputs.text("layers", own.layers, layers),
    ]
    return io.DynamicCombo.Input("train", options=[io.DynamicCombo.Option(*each) for each in zip(_TRAIN, (adapter, []))], tooltip=train)


class DreamBoothTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        name = "File in the loras folder; with a new word, also of the embedding. 'dogs/rex' = in a subfolder."
        instance = "What the images show: a rare word, or the placeholder of a new one, and the class. An image's caption replaces it."
        return inputs.trainer_schema(
            "DreamBoothTrainer", _NAME, "training",
            ["dreambooth", "train lora", "prior preservation", "subject", "person or face", "personalization", "LoHa", "LoKr", "OFT",
             "concept sliders"],
            "Teaches the model a subject it has never seen from a few images, as a LoRA. With Class Images its class stays as it was (prior "
            "preservation); with New Word a word for the subject is trained jointly. With Concept Slider it trains a slider instead.",
            inputs=[
                io.Model.Input("model", tooltip="The model to train: eps, v or flow. It is not changed; LoRAs on it act during training."),
                *inputs.parts(),
                io.Image.Input("images", optional=True, tooltip="3–20 images of the subject: a batch, or a list of any sizes as folder loaders "
                    "give it. A slider needs none."),
                *inputs.options(*OPTIONS, "concept_slider"),
                _train_input(),
                widgets.text("name", "my-subject", name),
                widgets.text("instance_prompt", "a photo of sks dog", instance),
                *inputs.course("Typical: 400–1500; about 100–200 for each image.", 1, "Learning rate. Typical: 0.00005–0.0005 for LoRAs."),
                widgets.text("validation_prompt", "", VALIDATION_PROMPT),
                inputs.if_exists("a LoRA"),
            ],
            outputs=outputs("the LoRA", "Its file in the loras folder, or in diffusion_models for a whole model."),
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, train, **lists):
        return inputs.unfinished(instruct_models.MODELS if train["train"][0] == _TRAIN[1] else adapters.LORAS, lists)

    @classmethod
    def execute(cls, train, **lists) -> io.NodeOutput:
        what, shape = train[0]["train"], {k: v for k, v in train[0].items() if k != "train"}
        design = WholeWeights() if what == _TRAIN[1] else adapters.Design(**shape)
        return shown(trained_slider(lists, design) if lists.get("concept_slider") else trained(lists, _NAME, design))


NODES = [DreamBoothTrainer]
