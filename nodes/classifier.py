"""Classifier guidance: a classifier of noisy latents as a guidance channel."""

from comfy_api.latest import io

from ..guidance.classifier import ClassifierGradient
from .host.fingerprint import stamp
from .host.guidance.classifier import CLASSIFIERS, load
from .inputs import sockets
from .inputs.channel import added_channel, channel_extras, channel_identity, channel_output, percent_range
from .inputs.widgets import advanced, choice, number, schema, text, whole

_ALIASES = ["classifier guidance", "guided diffusion", "noisy classifier", "class conditional", "Diffusion Models Beat GANs"]
_LABELS = "One or more labels with weights: 'red, circle:0.5'. A weight below 0 pushes the label away: 'striped:-1'."
_WEIGHT = "The classifier scale s. 0 = off (not evaluated), 1 is the exact posterior. Typical: 1–10 with a prompt, more without."


class NoisyClassifierLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "NoisyClassifierLoader", "Load Noisy Classifier", "guidance", _ALIASES,
            "Loads a classifier of noisy latents. It works with eps, v and flow models of the latent format it was trained on.",
            inputs=[choice("classifier_name", CLASSIFIERS.names(), "A file in models/noisy_classifiers.")],
            outputs=[
                sockets.NoisyClassifier.Output(display_name="classifier", tooltip="For a Classifier Channel."),
                io.String.Output(display_name="labels", tooltip="The labels it knows, one a line."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, classifier_name):
        return float("nan") if classifier_name is None else stamp(CLASSIFIERS.find(classifier_name))

    @classmethod
    def execute(cls, classifier_name) -> io.NodeOutput:
        classifier = load(classifier_name)
        return io.NodeOutput(classifier, "\n".join(classifier.labels))


class ClassifierChannel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            "ClassifierChannel", "Classifier Channel", "guidance", _ALIASES,
            "Pulls the image towards labels of a noisy classifier: the gradient of log p(label | image) as a guidance channel, alone or "
            "beside prompts. It costs one pass through the classifier and back, and none through the model.",
            inputs=[
                sockets.NoisyClassifier.Input("classifier", tooltip="A classifier trained on noisy latents of this model's format."),
                text("labels", "", _LABELS),
                number("weight", 2.0, -1000.0, 1000.0, _WEIGHT, 0.1, round=0.01),
                *percent_range("the channel"),
                *channel_identity("its labels"),
                *advanced(
                    whole("batch_size", ClassifierGradient.batch, 0, 4096,
                        "Images that the classifier takes at a time. 0 = all. Lower saves memory."),
                ),
                *channel_extras(),
            ],
            outputs=[channel_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, classifier, labels, name="", batch_size=ClassifierGradient.batch, **shared) -> io.NodeOutput:
        gradient = ClassifierGradient(classifier, classifier.choices(labels), batch_size)
        return added_channel(conditioning=None, gradient=gradient, name=name or labels.strip(), **shared)


NODES = [NoisyClassifierLoader, ClassifierChannel]
