"""Training a noisy classifier, which Classifier Channel steers with."""

from dataclasses import replace

from comfy_api.latest import io

from ..guidance.classifier import KINDS
from .host.guidance import classifier
from .host.training import noisy_classifier as host
from .inputs import sockets
from .inputs import training as inputs
from .inputs.widgets import choice, number, seed, text, whole

_NAME, _LISTS = "Train Noisy Classifier", ("images", "labels")
_TRAINING = ("timesteps", "weighting", "start_percent", "end_percent")  # what it cannot use of Training Options
_DATASET = ("captions", "masks", "caption_dropout", "clean_caption_dropout", "augmentation.scale")
_HELD_OUT = "Share of the images that it is tested on and never learns from. Typical: 0.1–0.2. 0 = none."


class NoisyClassifierTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return inputs.trainer_schema(
            "NoisyClassifierTrainer", _NAME, "training",
            ["classifier guidance", "train classifier", "noisy classifier", "guided diffusion", "Diffusion Models Beat GANs"],
            "Trains a small network that tells labels from half-finished images, at every noise level, for Classifier Channel. It learns "
            "in the latents of your model, and works with every model of the same latent format.",
            inputs=[
                io.Model.Input("model", tooltip="A model of the latent format to learn in; it is not trained and not run."),
                io.Vae.Input("vae", tooltip="Its VAE. Each image is encoded once."),
                io.Image.Input("images", tooltip="Labeled images of one size: a batch, or a list of a folder loader. Typical: 300+."),
                *inputs.options("training_options", "dataset_options"),
                choice("kind", KINDS, "'independent': any number of labels for each image. 'exclusive': just one."),
                text("name", "my-classifier", "Name of its file in models/noisy_classifiers."),
                text("labels", "", "Labels of each image between commas: a list of a folder loader, or one line each.", multiline=True),
                whole("steps", 2000, 1, 1_000_000, "Steps of the optimizer. Typical: 1000–10000."),
                whole("batch_size", 64, 1, 4096, "Latents in each step; they are small. Typical: 32–256."),
                number("learning_rate", 0.001, 0.0, 1.0, "Learning rate of AdamW. Typical: 0.0003–0.002.", 0.0001, round=0.000001),
                seed("Seed of the start values, the noise and the choice of held-out images."),
                choice("size", host.SIZES, "Size of the network: 32, 64 or 128 channels at first, in a file of 2, 8 or 32 MB."),
                inputs.number("held_out", host.Settings.held_out, 0.0, 0.9, _HELD_OUT),
                inputs.if_exists("a classifier"),
            ],
            outputs=[
                sockets.NoisyClassifier.Output(display_name="classifier", tooltip="For a Classifier Channel."),
                io.String.Output(display_name="name", tooltip="Of its file, as Load Noisy Classifier lists it."),
                inputs.loss_curve(),
                io.Image.Output(display_name="accuracy", tooltip="Accuracy over the noise levels, on the images held out."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **lists):
        return inputs.unfinished(classifier.CLASSIFIERS, lists)

    @classmethod
    def execute(cls, **lists) -> io.NodeOutput:
        given = inputs.first({k: v for k, v in lists.items() if k not in _LISTS})
        settings = inputs.settings(given, _NAME, host.Settings, _TRAINING, ["checkpointing"])
        data = inputs.option(given, "dataset_options", _NAME, _DATASET)
        images, labels = inputs.lists_of(lists, *_LISTS)
        settings = replace(settings, flip=data.flip, augmentation=data.augmentation, fit=data.fit)
        made = host.learn(given["model"], given["vae"], images, labels, settings, given["name"], given["if_exists"])
        return io.NodeOutput(made.model, f"{made.name}.safetensors", made.curve, made.images)


NODES = [NoisyClassifierTrainer]
