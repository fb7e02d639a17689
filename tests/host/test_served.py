"""What a user finds in the running ComfyUI: nodes, help pages, and templates that all run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from controlled_diffusion.training.demo.images import TWO_SQUARES
from safetensors.torch import save_file

from harness.commands import needs_download
from harness.graph import is_own
from harness.server import WorkflowError, raise_execution_error
from harness.workflow import inputs_of, to_prompt

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
# The most of it that a test runs: `python . demo` runs the workflows whole, and what the nodes do is tested elsewhere.
FEW = {"steps": 4, "skip": 1, "batch_size": 8, "class_count": 2, "count": 1}
FEW_FOR_A_TRAINER = {"steps": 3}
SLOW = ("Inverter", "Trainer", "Pairs", "Sampler", "DiffEditMask")  # how the ids of nodes that take long end
LABELS = 48 // FEW["batch_size"]  # of this many training images one is left


def test_every_node_is_registered_under_its_category(server):
    promised = json.loads(Path(__file__).with_name("node_ids.json").read_text(encoding="utf-8"))
    info = server.object_info()
    assert {n for n in promised if n in info and info[n]["category"].startswith("controlled diffusion/")} == set(promised)


def test_help_pages_open_where_the_frontend_looks_for_them(server):
    folder = next(info["python_module"].split(".", 1)[1] for name, info in server.object_info().items() if name == "MultiCFGGuider")
    for page in (ROOT / "nodes" / "web" / "docs").glob("*.md"):
        served = server.get(f"/extensions/{folder}/docs/{page.name}")
        assert served == page.read_bytes()


def test_the_example_workflows_are_offered_as_templates(server):
    offered = json.loads(server.get("/workflow_templates"))
    names = {path.stem for path in WORKFLOWS}
    assert any(names <= set(workflows) for workflows in offered.values())


def test_blueprints_are_offered(server):
    offered = [each for each in json.loads(server.get("/global_subgraphs")).values() if each["source"] == "custom_node"]
    assert {each["name"] for each in offered} == {path.stem for path in (ROOT / "subgraphs").glob("*.json")} != set()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_values_of_workflow_are_allowed(server, path):
    """Those of the pack's nodes; files are not looked for."""
    for node in to_prompt(path, server.object_info()).values():
        info = server.object_info()[node["class_type"]]
        for each in inputs_of(info, node["inputs"]) if is_own(info) else ():
            value, choices = node["inputs"].get(each.name), [choice for choice in each.choices if "." not in str(choice)]
            if type(value) in (int, float):
                assert each.options.get("min", value) <= value <= each.options.get("max", value), (node["class_type"], each.name)
            elif choices and isinstance(value, str):
                assert value in choices, (node["class_type"], each.name)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_note_names_nodes_by_their_titles(server, path):
    """Not by their places, which change; **bold** without a colon is a name."""
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    (note,) = (node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    known = {info.get("display_name") or name for name, info in server.object_info().items()} | {node.get("title") for node in nodes}
    assert {name for name in re.findall(r"\*\*(.+?)\*\*", note) if not name.endswith(":")} <= known
    assert not re.search(r"(?i)\b(upper|lower) (image|sampler)|\b(last|right) image|\bbelow[.,]|on the right shows", note)


def shortened(prompt: dict) -> dict:
    """With a few steps and images."""
    for node in prompt.values():
        inputs, trains = node["inputs"], node["class_type"].endswith("Trainer")
        most = FEW_FOR_A_TRAINER if trains else FEW
        inputs |= {name: min(value, most[name]) for name, value in inputs.items() if name in most and type(value) is int}
        if trains and "labels" in inputs:
            inputs["labels"] = "\n".join(inputs["labels"].split("\n")[::LABELS])
    return prompt


@pytest.mark.parametrize("path", [path for path in WORKFLOWS if not needs_download(path)], ids=lambda path: path.stem)
def test_workflow_runs(server, path):
    """All nodes that take long write on themselves, at their end that all steps are taken and in what time."""
    prompt, ran, texts = shortened(to_prompt(path, server.object_info())), set(), {}

    def seen(kind, data):
        if kind == "executing" and data["node"]:
            ran.add(data["node"])
        elif kind == "text":
            texts[data["node"]] = data["text"]

    entry, refused = server.execute(prompt, seen)
    raise_execution_error(entry)
    assert refused is None and server.images(entry)
    slow = {n for n in ran if is_own(server.object_info()[prompt[n]["class_type"]]) and prompt[n]["class_type"].endswith(SLOW)}
    untold = {prompt[n]["class_type"]: texts.get(n) for n in slow if not re.search(r": (\d+) of \1\n.* taken", texts.get(n, ""))}
    assert not untold


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "heun"])
def test_classifier_guides_every_stock_sampler(server, sampler):
    prompt = to_prompt(ROOT / "example_workflows" / "classifier_guidance.json", server.object_info())
    short = {"KSamplerSelect": {"sampler_name": sampler}, "BasicScheduler": {"steps": 4}, "EmptyLatentImage": {"batch_size": 1}}
    for node in prompt.values():
        node["inputs"].update(short.get(node["class_type"], {}))
    without, guided = (np.asarray(images[0], float) for images in server.images_by_node(server.run(prompt)).values())
    assert guided.std() > 1 and np.abs(guided - without).mean() > 1


def relinked(prompt: dict, old: list, new: list) -> None:
    """Everything that hung on one output hangs on another."""
    for node in prompt.values():
        node["inputs"] |= {name: new for name, value in node["inputs"].items() if value == old}


def psnr(one, other) -> float:
    return -10 * np.log10(np.square((np.asarray(one, float) - np.asarray(other, float)) / 255).mean())


def save_lora(server) -> None:
    """The file any.safetensors, a LoRA for the demo model."""
    layer, draw = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v", torch.Generator().manual_seed(0)
    (server.base / "models" / "loras").mkdir(parents=True, exist_ok=True)
    up, down = (torch.randn(shape, generator=draw) * 0.2 for shape in ((128, 4), (4, 128)))
    save_file({f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}, server.base / "models" / "loras" / "any.safetensors")


def in_shapes(server, workflow: str) -> dict:
    """The prompt of a workflow that edits an image, for the demo model of shapes, which fits the LoRA and has a ControlNet."""
    prompt = to_prompt(ROOT / "example_workflows" / f"{workflow}.json", server.object_info())
    texts = {"source: describes the image": TWO_SQUARES, "target: describes the result": TWO_SQUARES.replace("blue", "yellow")}
    for part in prompt.values():
        inputs, title = part["inputs"], part["_meta"]["title"]
        if part["class_type"] == "DemoModelLoader":
            inputs["world"] = "shapes"
        elif part["class_type"] == "DemoImages":
            inputs["show"] = "two squares"
        elif title in texts:
            inputs["text"] = texts[title]
    return prompt


def test_null_text_reconstructs_under_lora_and_controlnet(server):
    """A LoRA and a ControlNet, as the server loads them, both change the samples: null-text reconstructs, an empty negative does not."""
    save_lora(server)
    prompt = in_shapes(server, "null_text")
    (loader,) = (n for n, node in prompt.items() if node["class_type"] == "DemoModelLoader")
    inverter = next(node["inputs"] for node in prompt.values() if node["class_type"] == "NullTextInverter")
    for inputs in (node["inputs"] for node in prompt.values() if "steps" in node["inputs"]):
        inputs["steps"] = 8
    relinked(prompt, [loader, 0], ["lora", 0])
    prompt["lora"] = node("LoraLoaderModelOnly", model=[loader, 0], lora_name="any.safetensors", strength_model=1.0)
    source, image = inverter["source"], inverter["image"]
    relinked(prompt, source, ["controlled", 0])
    prompt["control"] = node("ControlNetLoader", control_net_name="shapes_model_silhouette.safetensors")
    prompt["controlled"] = node(
        "ControlNetApplyAdvanced", positive=source, negative=source, control_net=["control", 0], image=image, strength=0.5,
        start_percent=0.0, end_percent=1.0,
    )  # fmt: skip

    asked = ("image", "null-text back", "empty negative")
    shown = [n for n, part in prompt.items() if part["class_type"] in ("SaveImage", "PreviewImage") and part["_meta"]["title"] not in asked]
    for number in shown:
        del prompt[number]

    def drawn(strength: float) -> dict:
        prompt["lora"]["inputs"]["strength_model"] = strength
        made = server.images_by_node(server.run(prompt))
        return {prompt[number]["_meta"]["title"]: images[0] for number, images in made.items()}

    under, without = drawn(4.0), drawn(0.0)
    assert psnr(under["null-text back"], under["image"]) > 30 > psnr(under["empty negative"], under["image"]) + 5
    assert psnr(under["empty negative"], without["empty negative"]) < 35, "the LoRA does nothing"


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


def test_exact_inversions_are_exact_under_keyframes_and_a_cache(server):
    """A LoRA that is on for the first half of the sampling, and EasyCache on the model: the same images come back as without both."""
    save_lora(server)

    def prompt() -> dict:
        found = in_shapes(server, "exact_inversion")
        for inputs in (part["inputs"] for part in found.values() if "steps" in part["inputs"]):
            inputs["steps"] = 8
        return found

    def drawn(asked: dict) -> dict:
        made = server.images_by_node(server.run(asked))
        return {asked[number]["_meta"]["title"]: images[0] for number, images in made.items()}

    changed = prompt()
    (loader,) = (n for n, part in changed.items() if part["class_type"] == "DemoModelLoader")
    inverter = next(part["inputs"] for part in changed.values() if part["class_type"] == "EDICTInverter")
    pair = dict(positive_NEW=inverter["source"], negative_NEW=inverter["negative"])
    for i, old in enumerate(pair.values()):
        relinked(changed, old, ["hooked", i])
    relinked(changed, [loader, 0], ["cached", 0])
    keyframe = dict(prev_hook_kf=["on", 0], strength_mult=0.0, start_percent=0.5)
    changed |= {
        "cached": node("EasyCache", model=[loader, 0], reuse_threshold=0.3, start_percent=0.0, end_percent=1.0, verbose=False),
        "lora": node("CreateHookLoraModelOnly", lora_name="any.safetensors", strength_model=4.0),
        "on": node("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0),
        "off": node("CreateHookKeyframe", **keyframe),
        "keyed": node("SetHookKeyframes", hooks=["lora", 0], hook_kf=["off", 0]),
        "hooked": node("PairConditioningSetProperties", **pair, hooks=["keyed", 0], strength=1.0, set_cond_area="default"),
    }
    plain, found = drawn(prompt()), drawn(changed)
    assert min(psnr(found[name], plain[name]) for name in ("EDICT, back", "BDIA, back", "O-BELM, back")) > 50
    assert psnr(found["EDICT, edit"], plain["EDICT, edit"]) < 40, "the LoRA does nothing"


def captured(seeds: dict[str, int], threshold: float) -> dict:
    """Samplers of these seeds on one model with Attention Map Capture, one after the other, each with its own view."""
    prompt = {
        "model": node("DemoModelLoader", world="shapes"),
        "capture": node(
            "AttentionMapCapture", model=["model", 0], clip=["model", 1], prompt="a red circle on a white background", words="circle",
            layers="all", start_percent=0.0, end_percent=1.0, phases=1,
        ),
        "negative": node("CLIPTextEncode", clip=["model", 1], text=""),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=1),
    }  # fmt: skip
    knobs = dict(steps=3, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0, negative=["negative", 0])
    shown = dict(source=["capture", 0], words="", rows="mean", layers="all", mask_word="", threshold=threshold)
    for name, seed in seeds.items():
        given = dict(model=["capture", 0], positive=["capture", 1], latent_image=["empty", 0], seed=seed)
        prompt[name] = node("KSampler", **given, **knobs)
        prompt[f"view {name}"] = node("AttentionMapView", latent=[name, 0], **shown)
        prompt[f"table {name}"] = node("PreviewImage", images=[f"view {name}", 0])
    return prompt


def test_maps_belong_to_the_latent_across_the_cache(server):
    """Of two samplers on one model one comes from ComfyUI's cache, and its view is asked again after the other has run."""

    def tables(seeds, threshold):
        images = server.images_by_node(server.run(captured(seeds, threshold)))
        return [np.asarray(images[f"table {name}"][0], float) for name in seeds]

    first, other = tables(dict(a=1, b=2), 0.4)
    again, third = tables(dict(a=1, b=3), 0.41)
    assert np.array_equal(first, again), "the maps of the later run"
    assert min(np.abs(first - other).max(), np.abs(other - third).max(), np.abs(first - third).max()) > 10
    prompt = captured(dict(a=1), 0.42)
    prompt["view a"]["inputs"]["latent"] = ["empty", 0]
    with pytest.raises(WorkflowError, match="There is nothing to show for this latent: the model made other latents in its last"):
        server.run(prompt)
