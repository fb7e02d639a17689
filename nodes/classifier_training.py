"""Training a noisy classifier, which Classifier Channel steers with."""

from dataclasses import fields

from comfy_api.latest import io

from ..guidance.classifier import KINDS
from .host.guidance import classifier
from .host.training import noisy_classifier as host
from .host.training.file_names import IF_EXISTS
from .inputs import sockets
from .inputs import training as inputs

_LISTS = ("images", "labels")


class NoisyClassifierTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoisyClassifierTrainer",
            display_name="Train Noisy Classifier",
            category="controlled diffusion/training",
            description="Trains a small network that tells labels from half-finished images, at every noise level, for Classifier Channel. "
            "It learns in the latents of your model, and works with every model of the same latent format.",
            search_aliases=[
                "classifier guidance",
                "train classifier",
                "noisy classifier",
                "guided diffusion",
                "Diffusion Models Beat GANs",
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A model of the latent format to learn in; it is not trained and not run."),
                io.Vae.Input("vae", tooltip="Its VAE. Each image is encoded once."),
                io.Image.Input(
                    "images", tooltip="Labelled images of one size: a batch, or a list as folder loaders give it. Some hundred at least."
                ),
                io.String.Input(
                    "labels",
                    default="",
                    multiline=True,
                    tooltip="What each image shows: a list as folder loaders give it, or one line an image; several labels between commas.",
                ),
                io.String.Input("name", default="my-classifier", tooltip="Of the file in models/noisy_classifiers."),
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    tooltip="'independent': each label is there or not, several at once; 'exclusive': each image has just one of them.",
                ),
                io.Int.Input("steps", default=2000, min=1, max=1_000_000, tooltip="Steps of the optimiser. Usual 1000 to 10000."),
                io.Int.Input("batch_size", default=64, min=1, max=4096, tooltip="Latents in each step. Usual 32 to 256; they are small."),
                io.Float.Input(
                    "learning_rate",
                    default=0.001,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    round=0.000001,
                    tooltip="Of AdamW. Usual 0.0003 to 0.002.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of start values, noises and of which images are held out.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(host.SIZES),
                    advanced=True,
                    tooltip="Of the network: 32, 64 or 128 channels at first. The file of 'small' has 2 MB, of the others 4 and 16 times as much.",
                ),
                io.Float.Input(
                    "held_out",
                    default=0.1,
                    min=0.0,
                    max=0.9,
                    step=0.01,
                    tooltip="Share of the images that it is judged on and never learns from; 0 = none. Usual 0.1 to 0.2.",
                ),
                io.Float.Input(
                    "average",
                    default=0.99,
                    min=0.0,
                    max=0.9999,
                    step=0.001,
                    round=0.0001,
                    advanced=True,
                    tooltip="Save the running average of the weights over about 1 / (1 - average) steps; 0 = the last. Usual 0.99 to 0.999.",
                ),
                io.Combo.Input(
                    "if_exists",
                    options=list(IF_EXISTS),
                    advanced=True,
                    tooltip="Where a classifier of this name exists: save under a name with a number, refuse, replace it, or continue its "
                    "training up to 'steps'.",
                ),
                inputs.flip(optional=True),
                *inputs.augmentation(scale=False),
                *inputs.steps_taken(50, ", at most a tenth of all steps", optional=True),
            ],
            outputs=[
                sockets.NoisyClassifier.Output(display_name="classifier", tooltip="For a Classifier Channel."),
                io.String.Output(display_name="name", tooltip="Of its file, as Load Noisy Classifier lists it."),
                io.Image.Output(display_name="loss_curve", tooltip="Loss and learning rate over the steps."),
                io.Image.Output(display_name="accuracy", tooltip="Accuracy over the noise levels, on the images held out."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **lists):
        return inputs.unfinished(classifier.FOLDER, lists)

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        given = {k: v[0] for k, v in lists.items() if k not in _LISTS}
        asked = {f.name: given[f.name] for f in fields(host.Settings) if f.name in given}
        settings = host.Settings(**asked, augmentation=inputs.augmented(given))
        images, labels = ([v for v in lists.get(k) or () if v is not None] for k in _LISTS)
        made = host.learn(given["model"], given["vae"], images, labels, settings, given["name"], given["if_exists"])
        return io.NodeOutput(made.classifier, f"{made.name}.safetensors", *host.charts(made))


NODES = [NoisyClassifierTrainer]
