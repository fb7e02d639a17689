"""Damaged files of every kind that the pack reads: an error that names the file and the next step, before anything is made of it."""

import json
import math
import os

import pytest
import torch
from controlled_diffusion.nodes.host import images, model_folder
from controlled_diffusion.nodes.host.attention import ip_adapter
from controlled_diffusion.nodes.host.guidance import classifier
from controlled_diffusion.nodes.host.model_folder import ModelFolder
from controlled_diffusion.nodes.host.training import custom_diffusion, instruct_models
from controlled_diffusion.nodes.ip_adapter import IPAdapterLoader
from controlled_diffusion.training.demo.files import FILES
from PIL import Image
from safetensors.torch import save_file

from checks import refused

pytestmark = pytest.mark.usefixtures("inference_mode")
SHIPPED = {  # file, how it is read
    "classifier": (FILES["shapes"].classifier, classifier.read),
    "adapter": (FILES["shapes"].adapter, lambda path: ip_adapter.recognize(*_named(path))),
}


def _named(path):
    return model_folder.load_tensors(path)[0], path.name


def whole(kind):
    return model_folder.load_tensors(SHIPPED[kind][0])


def of_tensors(change):
    """A damage of the tensors, with the metadata as they were."""
    return lambda path, tensors, about: save_file(change({k: t.clone() for k, t in tensors.items()}), path, about)


def matrix(tensors):
    """A matrix."""
    return next(k for k in sorted(tensors, reverse=True) if tensors[k].ndim == 2)


DAMAGES = {
    "cut": lambda path, t, m: (save_file(t, path, m), path.write_bytes(path.read_bytes()[:-100])),
    "header cut": lambda path, t, m: (save_file(t, path, m), path.write_bytes(path.read_bytes()[:30])),
    "empty": lambda path, t, m: path.write_bytes(b""),
    "text": lambda path, t, m: path.write_text("a text that is no tensor at all"),
    "a list": lambda path, t, m: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
    "NaN": of_tensors(lambda t: t | {matrix(t): t[matrix(t)] * math.nan}),
    "infinity": of_tensors(lambda t: t | {matrix(t): t[matrix(t)] + math.inf}),
    "a weight less": of_tensors(lambda t: {k: v for k, v in t.items() if k != matrix(t)}),
    "a weight more": of_tensors(lambda t: t | {f"{matrix(t)}.more": torch.zeros(3)}),
    "a weight cut": of_tensors(lambda t: t | {matrix(t): t[matrix(t)][:, 1:].contiguous()}),
    "a weight turned": of_tensors(lambda t: t | {matrix(t): t[matrix(t)].T[:, 1:].contiguous()}),
    "a weight flat": of_tensors(lambda t: t | {matrix(t): t[matrix(t)].flatten()}),
    "a weight of one number": of_tensors(lambda t: t | {matrix(t): torch.tensor(1.0)}),
    "all weights of one number": of_tensors(lambda t: {k: torch.tensor(1.0) for k in t}),
    "nothing": of_tensors(lambda t: {}),
}


@pytest.mark.parametrize("kind", SHIPPED)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_the_next_step(kind, damage, tmp_path):
    path, (tensors, about) = tmp_path / "mine.safetensors", whole(kind)
    DAMAGES[damage](path, tensors, about)
    refused("mine.safetensors .*([Cc]opy|[Dd]ownload|choose another|[Tt]rain)|Supported are", SHIPPED[kind][1], path)


CLAIMS = {
    "no kind": lambda m: {k: v for k, v in m.items() if k != "kind"},
    "no JSON": lambda m: m | {"labels": "{"},
    "deep JSON": lambda m: m | {"labels": "[" * 100_000},
    "number for labels": lambda m: m | {"labels": "3"},
    "other labels": lambda m: m | {"labels": json.dumps(["a", "b"])},
    "numbers as labels": lambda m: m | {"labels": json.dumps(list(range(len(json.loads(m["labels"])))))},
    "unknown kind": lambda m: m | {"kind": '"sometimes"'},
    "number as format": lambda m: m | {"latent_format": "7"},
    "texts as levels": lambda m: m | {"latent_format": json.dumps({"name": "a", "levels": ["a"], "colors": []})},
    "list as network": lambda m: m | {"network": "[1]"},
    "other setting": lambda m: m | {"network": json.dumps(json.loads(m["network"]) | {"depth": 3})},
    "huge widths": lambda m: m | {"network": json.dumps(json.loads(m["network"]) | {"widths": [20_000] * 3})},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_classifier_says_is_compared_with_its_weights(claim, tmp_path, monkeypatch):
    """Before a network is made, which could be of any size."""
    tensors, about = whole("classifier")
    save_file(tensors, tmp_path / "mine.safetensors", CLAIMS[claim](about))
    monkeypatch.setattr(classifier, "NoisyClassifier", lambda **config: pytest.fail("made") if claim == "huge widths" else Made(**config))
    refused("mine.safetensors is damaged: its metadata and weights do not fit together", classifier.read, tmp_path / "mine.safetensors")


Made = classifier.NoisyClassifier


def test_a_file_that_is_whole_is_read():
    assert classifier.read(SHIPPED["classifier"][0]).labels and SHIPPED["adapter"][1](SHIPPED["adapter"][0]).layers


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "NaN"])
@pytest.mark.parametrize("kind", ["loras", "diffusion_models"])
def test_models_and_concepts_are_read_alike(damage, kind, folders, eps_model):
    place = folders / kind / "mine.safetensors"
    DAMAGES[damage](place, {"a": torch.ones(2, 200)}, {})
    message = "mine.safetensors (cannot be read: it is|is) damaged.*[Cc]opy or download it again"
    if kind == "loras":
        refused(message, custom_diffusion.concepts_of, "mine = a\nmine2 = b")
    else:
        refused(message, instruct_models.load, eps_model, str(place))


def test_a_pipe_in_a_model_folder_is_not_a_file(folders):
    """Opening it would wait forever."""
    os.mkfifo(folders / "loras" / "pipe.safetensors")
    (folders / "loras" / "link.safetensors").symlink_to(SHIPPED["adapter"][0])
    assert ModelFolder("loras", "LoRA").names() == ["link.safetensors"], "links are followed, as ComfyUI does"


def test_a_replaced_adapter_is_noticed(folders):
    place = folders / "ipadapter" / "mine.safetensors"
    place.parent.mkdir()
    place.write_bytes(SHIPPED["adapter"][0].read_bytes())
    before = IPAdapterLoader.fingerprint_inputs("mine.safetensors")
    assert before == IPAdapterLoader.fingerprint_inputs("mine.safetensors") and math.isnan(IPAdapterLoader.fingerprint_inputs(None))
    place.write_bytes(place.read_bytes() + b"\0")
    assert IPAdapterLoader.fingerprint_inputs("mine.safetensors") != before


@pytest.mark.parametrize(("format", "read"), [("PNG", True), ("JPEG", True), ("WEBP", True), ("BMP", False), ("GIF", False), ("EPS", False)])
def test_images_are_read_in_three_formats(format, read, tmp_path):
    """Whatever their name says: Pillow gives an EPS to Ghostscript."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png", format)
    if read:
        assert images.read(tmp_path / "a.png").shape == (1, 8, 8, 3)
    else:
        refused("a.png cannot be read as PNG, JPEG, WEBP: .* Take it out", images.read, tmp_path / "a.png")


def test_huge_and_cut_images_are_refused(tmp_path, monkeypatch):
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:-200])
    refused("b.png cannot be read as PNG, JPEG, WEBP", images.read, tmp_path / "b.png")
    monkeypatch.setattr(images, "MOST_PIXELS", 4095)
    refused("a.png has 64 x 64 pixels; at most 4,095 are read. Scale it down", images.read, tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused("a.png cannot be read as PNG, JPEG, WEBP: .*decompression bomb", images.read, tmp_path / "a.png")


