"""Files of noisy classifiers: safetensors with labels, latent format and network size in the metadata."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from ....guidance.classifier import LabeledClassifier, NoisyClassifier
from ..model_folder import ModelFolder, write

CLASSIFIERS = ModelFolder("noisy_classifiers", "classifier", own=True)
FORMAT = "controlled_diffusion.noisy_classifier"


def save(classifier: LabeledClassifier, path: Path) -> None:
    """Writes a classifier in half precision."""
    about = dict(labels=classifier.labels, latent_format=classifier.latent_format, kind=classifier.kind, network=classifier.network.config)
    weights = {k: v.half() for k, v in classifier.network.state_dict().items()}
    write(weights, path, {"format": FORMAT, **{k: json.dumps(v) for k, v in about.items()}})


def load(name: str) -> LabeledClassifier:
    """The classifier of a name in its folder; its weights are ordinary tensors, so that gradients pass in a node too."""
    return read(CLASSIFIERS.find(name))


def read(path: Path) -> LabeledClassifier:
    """The classifier in a file."""
    with torch.inference_mode(False), safe_open(path, "pt") as file:
        about = file.metadata() or {}
        if about.get("format") != FORMAT:
            raise ValueError(f"{path.name} is no noisy classifier: its metadata lacks the format '{FORMAT}'. Train one, or choose another.")
        labels, latent_format, kind, config = (json.loads(about[k]) for k in ("labels", "latent_format", "kind", "network"))
        with torch.device("meta"):  # no start values that nobody needs, and no random numbers drawn for them
            network = NoisyClassifier(**config)
        network.load_state_dict({k: file.get_tensor(k).float() for k in file.keys()}, assign=True)
    return LabeledClassifier(network.eval().requires_grad_(False), tuple(labels), latent_format, kind)
