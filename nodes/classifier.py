"""Classifier guidance: a classifier of noisy latents as a guidance channel."""

from comfy_api.latest import io

from ..guidance.classifier import ClassifierForce
from ..guidance.multi_cfg import Channel
from ..guidance.schedules import ALWAYS, Schedule
from .host.fingerprint import stamp
from .host.guidance.classifier import CLASSIFIERS, load
from .inputs import sockets
from .inputs.channel import channel_extras, channel_identity, percent_range

_CATEGORY = "controlled diffusion/guidance"
_ALIASES = ["classifier guidance", "guided diffusion", "noisy classifier", "class conditional", "Diffusion Models Beat GANs"]


class NoisyClassifierLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="NoisyClassifierLoader",
            display_name="Load Noisy Classifier",
            category=_CATEGORY,
            description="Loads a classifier of noisy latents. It works with eps, v and flow models of the latent format it was trained on.",
            search_aliases=_ALIASES,
            inputs=[io.Combo.Input("classifier_name", options=CLASSIFIERS.names(), tooltip="A file in models/noisy_classifiers.")],
            outputs=[
                sockets.NoisyClassifier.Output(display_name="classifier", tooltip="For a Classifier Channel."),
                io.String.Output(display_name="labels", tooltip="The labels it knows, one a line."),
            ],
        )

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
        return io.Schema(
            node_id="ClassifierChannel",
            display_name="Classifier Channel",
            category=_CATEGORY,
            description="Pulls the image towards labels of a noisy classifier: the gradient of log p(label | image) as a guidance "
            "channel, alone or beside prompts. It costs one pass through the classifier and back, and none through the model.",
            search_aliases=_ALIASES,
            inputs=[
                sockets.NoisyClassifier.Input("classifier", tooltip="A classifier trained on noisy latents of this model's format."),
                io.String.Input(
                    "labels",
                    default="",
                    tooltip="One or more labels with weights: 'red, circle:0.5'. A weight below 0 pushes the label away: 'striped:-1'.",
                ),
                io.Float.Input(
                    "weight",
                    default=2.0,
                    min=-1000.0,
                    max=1000.0,
                    step=0.1,
                    round=0.01,
                    tooltip="The classifier scale s. 0 switches it off (it is not evaluated), 1 is the exact posterior, usual 1 to 10 with a prompt, more without.",
                ),
                *percent_range("the channel"),
                *channel_identity("its labels"),
                io.Int.Input(
                    "batch_size",
                    default=0,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip="Images that the classifier takes at a time; 0 = all. Lower it where memory is short.",
                ),
                *channel_extras(),
            ],
            outputs=[sockets.GuidanceChannel.Output(display_name="channel", tooltip="All channels so far.")],
        )

    @classmethod
    def execute(
        cls, classifier, labels, weight, start_percent, end_percent, priority, name, batch_size, schedule=None, mask=None, previous=()
    ) -> io.NodeOutput:
        channel = Channel(
            None,
            weight,
            schedule=schedule or ALWAYS,
            interval=Schedule(start=start_percent, end=end_percent),
            mask=mask,
            priority=priority,
            name=name or labels.strip(),
            force=ClassifierForce(classifier, classifier.choices(labels), batch_size),
        )
        return io.NodeOutput((*previous, channel))


NODES = [NoisyClassifierLoader, ClassifierChannel]
