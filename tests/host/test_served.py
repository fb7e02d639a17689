"""What a user finds in the running ComfyUI: nodes, help pages and templates."""

import json
from pathlib import Path

import numpy as np
import pytest

from harness.workflow import to_prompt

ROOT = Path(__file__).resolve().parents[2]


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
    names = {p.stem for p in (ROOT / "example_workflows").glob("*.json")}
    assert any(names <= set(workflows) for workflows in offered.values())


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "heun"])
def test_a_classifier_guides_every_stock_sampler_with_weights_as_the_server_loads_them(server, sampler):
    prompt = to_prompt(ROOT / "example_workflows" / "classifier_guidance.json", server.object_info())
    short = {"KSamplerSelect": {"sampler_name": sampler}, "BasicScheduler": {"steps": 4}, "EmptyLatentImage": {"batch_size": 1}}
    for node in prompt.values():
        node["inputs"].update(short.get(node["class_type"], {}))
    without, guided = (np.asarray(pictures[0], float) for pictures in server.images_by_node(server.run(prompt)).values())
    assert guided.std() > 1 and np.abs(guided - without).mean() > 1
