"""Files of noisy classifiers: safetensors with labels, latent format and network size in the metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from ....guidance.classifier import LabeledClassifier, NoisyClassifier, config_of
from ....guidance.errors import quoted
from ....guidance.latent_space import LatentSpace
from ..model_folder import ModelFolder, load_tensors, save_atomically

CLASSIFIERS = ModelFolder("noisy_classifiers", "classifier", own=True)
_ABOUT = ("labels", "latent_format", "kind", "network")
FORMAT = "controlled_diffusion.noisy_classifier"


def save(classifier: LabeledClassifier, path: Path) -> None:
    """Writes a classifier in half precision."""
    space = asdict(classifier.latent_format)
    about = dict(labels=classifier.labels, latent_format=space, kind=classifier.kind, network=classifier.network.config)
    weights = {k: v.half() for k, v in classifier.network.state_dict().items()}
    save_atomically(weights, path, {"format": FORMAT, **{k: json.dumps(v) for k, v in about.items()}})


def load(name: str) -> LabeledClassifier:
    """The classifier of a name in its folder; its weights are ordinary tensors, so that gradients pass in a node too."""
    return read(CLASSIFIERS.find(name))


def read(path: Path) -> LabeledClassifier:
    """The classifier in a file. Raises ValueError for a damaged one before a network is made of it."""
    with torch.inference_mode(False):
        tensors, about = load_tensors(path)
        if about.get("format") != FORMAT:
            raise ValueError(
                f"{path.name} is no noisy classifier: its metadata lacks the format {quoted(FORMAT)}. Train one, or choose another."
            )
        try:
            return _classifier({k: t.float().clone() for k, t in tensors.items()}, *(json.loads(about[k]) for k in _ABOUT))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged: its metadata and weights do not fit together ({quoted(str(error))}). Copy it again, or train it anew."
            ) from error


def _classifier(weights: dict[str, torch.Tensor], labels: list[str], latent_format: dict, kind: str, config: dict) -> LabeledClassifier:
    """A classifier of its parts."""
    if config != config_of({k: tuple(w.shape) for k, w in weights.items()}) or len(labels) != config["labels"]:
        raise ValueError(f"the network is described as {config} with {len(labels)} labels")
    if not all(isinstance(text, str) for text in labels):
        raise TypeError("labels are no text")
    space = LatentSpace(**{k: tuple(v) if isinstance(v, list) else v for k, v in latent_format.items()})
    with torch.device("meta"):  # no start values that nobody needs, and no random numbers drawn for them
        network = NoisyClassifier(**config)
    network.load_state_dict(weights, assign=True)
    return LabeledClassifier(network.eval().requires_grad_(False), tuple(labels), space, kind)
