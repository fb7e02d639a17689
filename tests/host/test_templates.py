"""The templates for published models run whole on the real server, on small models that ComfyUI's own loaders read."""

import json
from itertools import chain

import pytest

from graphs import blueprints, models
from graphs.real import LORAS
from graphs.real_training import SNOW
from harness.commands import WORKFLOWS, needs_download
from harness.environment import ROOT
from harness.server import Server
from harness.workflow import to_prompt
from small_models import few_names, offer, small, write_small_models

pytestmark = pytest.mark.slow
SHOWN = ("SaveImage", "SaveVideo", "PreviewImage", "ImageCompare")
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
TRIED = [(path, model) for path in BLUEPRINTS for model in blueprints.models_of(path)]
TEMPLATES = sorted(path for path in WORKFLOWS.glob("*.json") if needs_download(path))


@pytest.fixture(scope="module")
def small_server(tmp_path_factory):
    """A server with small models under the names that the templates carry."""
    base = tmp_path_factory.mktemp("small")
    offer(base)
    write_small_models(base / "models")
    with Server(base=base, threads=1) as running:
        yield running


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_runs(small_server, path):
    prompt = small(to_prompt(path, small_server.object_info()))
    outputs = small_server.run(prompt)["outputs"]
    ends = {number for number, node in prompt.items() if node["class_type"] in SHOWN}
    assert ends and ends <= set(outputs)


@pytest.mark.parametrize("path, model", TRIED, ids=lambda value: getattr(value, "stem", None) or getattr(value, "name", "demo").rpartition("/")[2])
def test_blueprint_runs(small_server, path, model):
    """On a model of each family, from its sockets to its previews."""
    prompt = small(to_prompt(blueprints.tried(path, small_server.object_info(), model), small_server.object_info()))
    outputs = small_server.run(prompt)["outputs"]
    ends = {number for number, node in prompt.items() if node["class_type"] in SHOWN}
    assert ends and ends <= set(outputs)


def test_hunyuan_video_is_edited_in_a_mask(small_server):
    """The template for Wan with HunyuanVideo's network, whose result then goes through Keep the Rest; as in its real workflow CLIP-L gives the vector."""
    (path,) = (path for path in TEMPLATES if "Wan" in path.stem)
    prompt = small(to_prompt(path, small_server.object_info()))
    ids = {node["class_type"]: number for number, node in prompt.items()}
    prompt[ids["UNETLoader"]]["inputs"]["unet_name"] = models.HUNYUAN_VIDEO.name
    prompt[ids["CLIPLoader"]]["inputs"]["type"] = "stable_diffusion"
    edited, compared = prompt[ids["FlowEditLatentSampler"]]["inputs"], prompt[ids["ImageCompare"]]["inputs"]
    rest = dict(align=True, colors="at the edge", grow=0.01, feather=0.01)
    given = dict(source=edited["image"], edit=compared["image_b"], mask=edited["mask"])
    prompt["rest"] = {"class_type": "KeepRest", "inputs": given | rest}
    compared["image_b"] = ["rest", 0]
    prompt["report"] = {"class_type": "PreviewAny", "inputs": {"source": ["rest", 2]}}
    outputs = small_server.run(prompt)["outputs"]
    assert len(outputs["report"]["text"][0].splitlines()) == 5 and ids["SaveVideo"] in outputs and ids["ImageCompare"] in outputs


def sentences_of(server, written: str | None = None) -> str:
    """The sentences of the template that teaches an instruction, its writer switched on, or with what it would have written."""
    (path,) = (path for path in TEMPLATES if "Teach" in path.stem)
    workflow = json.loads(path.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        node["mode"] = 0
    prompt = small(to_prompt(workflow, server.object_info()))
    ids = {node["class_type"]: number for number, node in prompt.items()}
    kept = [ids[kind] for kind in ("TextGenerate", "RegexExtract", "StringConcatenate")]
    kept.append(prompt[kept[0]]["inputs"]["clip"][0])
    prompt = {number: prompt[number] for number in kept} | {"shown": {"class_type": "PreviewAny", "inputs": {"source": [kept[2], 0]}}}
    if written:
        prompt[kept[0]] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": written}}
    return server.run(prompt)["outputs"]["shown"]["text"][0]


def test_sentences_are_written_by_a_language_model(small_server):
    """By one of random weights: nothing that it writes has the form of a sentence."""
    assert sentences_of(small_server) == f"{few_names(SNOW)}\n"


def test_of_what_a_language_model_writes_the_sentences_are_kept(small_server):
    written = "Sure, here they are:\n\n1. a barn => a barn in snow | make it snow\n- a road => a white road | let it snow\nEnjoy!"
    assert sentences_of(small_server, written) == f"{few_names(SNOW)}\na barn => a barn in snow | make it snow\na road => a white road | let it snow"


def test_every_model_has_a_name_a_folder_and_an_address(small_server):
    for path in TEMPLATES:
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            listed = node["properties"].get("models", [])
            files = {value for value in node.get("widgets_values") or [] if str(value).endswith(".safetensors")}
            assert files - {*chain(*LORAS.values())} == {model["name"] for model in listed}, (path.stem, node["type"])
            assert all(model in [known.entry for known in models.ALL] for model in listed)
