"""Bad input through the real server: a clear node error, and the server lives on."""

import json
from pathlib import Path

import pytest

from harness.server import WorkflowError
from harness.workflow import to_prompt

WORKFLOWS = Path(__file__).resolve().parents[2] / "example_workflows"


def prompt_of(server, name: str) -> dict:
    return to_prompt(WORKFLOWS / f"{name}.json", server.object_info())


def nodes_of(prompt: dict, class_type: str) -> list[dict]:
    return [node["inputs"] for node in prompt.values() if node["class_type"] == class_type]


def bad_guider(change):
    def make(server):
        prompt = prompt_of(server, "multi_cfg_guider")
        change(prompt)
        return prompt

    return make


def sdedit(server, **inputs) -> dict:
    """The workflow with these inputs at each of its samplers."""
    prompt = prompt_of(server, "sdedit")
    for given in nodes_of(prompt, "SDEditSampler"):
        given.update(inputs)
    return prompt


def bad_sdedit(**inputs):
    return lambda server: sdedit(server, **inputs)


def no_channels(prompt):
    for inputs in nodes_of(prompt, "MultiCFGGuider"):
        for key in [k for k in inputs if k.startswith("channels.")]:
            del inputs[key]


def backward_interval(prompt):
    nodes_of(prompt, "GuidanceChannel")[0].update(start_percent=0.8, end_percent=0.2)


def three_masks(prompt):
    prompt["99"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["98", 0], "amount": 3}}
    prompt["98"] = {"class_type": "EmptyImage", "inputs": {"width": 128, "height": 128, "batch_size": 1, "color": 255}}
    prompt["97"] = {"class_type": "ImageToMask", "inputs": {"image": ["99", 0], "channel": "blue"}}
    nodes_of(prompt, "GuidanceChannel")[0]["mask"] = ["97", 0]


def curve_without_curve(prompt):
    schedule = nodes_of(prompt, "GuidanceSchedule")[0]
    for key in [k for k in schedule if k.startswith("shape.")]:
        del schedule[key]
    schedule.update({"shape": "curve", "shape.height": 1.0, "shape.axis": "percent"})


def bad(workflow: str, node: str, **inputs):
    def make(server):
        prompt = prompt_of(server, workflow)
        nodes_of(prompt, node)[0].update(inputs)
        return prompt

    return make


def odd_size(server):
    odd = {"class_type": "EmptyImage", "inputs": {"width": 100, "height": 75, "batch_size": 1, "color": 255}}
    return sdedit(server, fit="refuse", guide=["99", 0]) | {"99": odd}


@pytest.mark.parametrize(
    "make, message",
    [
        (bad_guider(no_channels), "channel"),
        (bad_guider(backward_interval), "got 0.8 to 0.2"),
        (bad_guider(three_masks), "mask holds 3 images but 4 are sampled"),
        (bad_guider(curve_without_curve), "connect a Curve Editor"),
        (bad_guider(lambda p: nodes_of(p, "GuidanceChannel")[0].update({"role.weight": float("nan")})), "is nan; give a finite number"),
        (bad_guider(lambda p: nodes_of(p, "MultiCFGGuider")[0].update(norm_cap=-1.0)), "Value -1.0 smaller than min"),
        (bad_sdedit(strength=1.4), "strength is 1.4 percent; give 0"),
        (bad_sdedit(strength=80.0, strength_unit="sigma"), "sigma 80; this model goes from 0 to 14.6"),
        (bad_sdedit(strength=0.0, strength_unit="snr"), "SNR of 0.0"),
        (bad_sdedit(steps=-3), "Value -3 smaller than min"),
        (bad_sdedit(cfg=float("nan")), "cfg is nan; give a finite number from 0 to 100"),
        (odd_size, "'guide' is 100 x 75 pixels, .* for example to 96 x 72"),
        (bad("classifier_training", "TrainingOptions", average=float("nan")), "average is nan; give a finite number from -1 to 0.9999"),
        (bad("textual_inversion", "TIEmbeddingTrainer", name="a" * 300), "is too long for a file's; use at most 200 characters"),
        (bad("textual_inversion", "TIEmbeddingTrainer", name="con"), "which Windows cannot keep as a file"),
    ],
    ids=[
        *("no channels", "interval", "mask batch", "no curve", "nan weight", "negative cap", "strength", "sigma", "snr", "steps"),
        *("nan cfg", "odd size", "nan average", "long name", "reserved name"),
    ],
)
def test_bad_input_is_a_node_error_and_the_next_prompt_runs(server, make, message):
    with pytest.raises(WorkflowError, match=message):
        server.run(json.loads(json.dumps(make(server))))
    assert server.images(server.run(sdedit(server, steps=1)))


def test_cancel_stops_a_long_edit(server):
    prompt = sdedit(server, steps=1000, repeats=100)
    seen = []

    def cancel(kind, data):
        if kind == "progress":
            seen.append(data["value"])
            assert len(seen) < 3, "it goes on"
            if len(seen) == 1:  # ComfyUI reports each 200th part of the work
                server.interrupt()

    entry, _ = server.execute(prompt, cancel)
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]]


def test_without_a_vae_only_the_image_is_missing(server):
    prompt = prompt_of(server, "sdedit_masked")
    sampler = nodes_of(prompt, "SDEditSampler")[0]
    encode = {"class_type": "VAEEncode", "inputs": {"pixels": sampler["guide"], "vae": sampler["vae"]}}
    loader = sampler["vae"]
    prompt["90"] = encode
    sampler.update(guide=["90", 0], original=["90", 0])
    del sampler["vae"]
    key = next(k for k, node in prompt.items() if node["class_type"] == "SDEditSampler")
    prompt["91"] = {"class_type": "VAEDecode", "inputs": {"samples": [key, 0], "vae": loader}}
    prompt["92"] = {"class_type": "PreviewImage", "inputs": {"images": ["91", 0]}}
    images = server.images_by_node(server.run(prompt))
    saved = next(k for k, node in prompt.items() if node["class_type"] == "SaveImage")
    assert "92" in images and not images.get(saved)
