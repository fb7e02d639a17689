"""Trainers in the running ComfyUI: with weights as its loader makes them, after they were sampled with, and their files in its own nodes."""

import time

import numpy as np
import pytest
from safetensors import safe_open

from harness.server import Server, WorkflowError

PROMPT = "a red circle on a white background"


def adder(server: Server):
    """Adds a node to a prompt, with the defaults of its widgets; gives a link to its first output."""

    def adding(prompt: dict, class_type: str, **inputs) -> list:
        known = server.object_info()[class_type]["input"]
        usual = {}
        for name, (kind, *more) in {**known.get("required", {}), **known.get("optional", {})}.items():
            options = more[0] if more else {}
            if isinstance(kind, list) or kind == "COMBO":
                usual[name] = options.get("default") or next(iter(kind if isinstance(kind, list) else options["options"]), "")
            elif "default" in options:
                usual[name] = options["default"]
        number = str(len(prompt) + 1)
        prompt[number] = {"class_type": class_type, "inputs": {**usual, **inputs}}
        return [number, 0]

    return adding


@pytest.fixture
def add(server):
    return adder(server)


def out(link: list, place: int) -> list:
    return [link[0], place]


def begun(add, prompt: dict) -> dict:
    """The demo model, and two images that it has drawn: what is trained was sampled with before."""
    model = add(prompt, "DemoModelLoader", world="shapes")
    parts = {"model": model, "clip": out(model, 1), "vae": out(model, 2)}
    parts["negative"] = add(prompt, "CLIPTextEncode", clip=parts["clip"], text="")
    parts["images"] = drawn(add, prompt, parts, add(prompt, "CLIPTextEncode", clip=parts["clip"], text=PROMPT), seed=3)
    return parts


def drawn(add, prompt: dict, parts: dict, positive, seed: int = 5, model=None, negative=None, steps: int = 3) -> list:
    """Two images of a few steps."""
    size = add(prompt, "EmptyLatentImage", width=128, height=128, batch_size=2)
    knobs = dict(seed=seed, steps=steps, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0, latent_image=size)
    latent = add(prompt, "KSampler", model=model or parts["model"], positive=positive, negative=negative or parts["negative"], **knobs)
    return add(prompt, "VAEDecode", samples=latent, vae=parts["vae"])


WORD = dict(placeholder="<thing>", initial_words="red", validation_prompt="a {} circle", learning_rate=0.05)
SMALL = {"train": "adapter", "train.rank": 2, "train.algorithm": "LoRA", "train.alpha": 0.0, "train.layers": ""}
LORA = dict(instance_prompt="a zz circle", learning_rate=0.01, class_images=dict(class_prompt="a circle", class_count=2)) | SMALL
CONCEPT = dict(instance_prompt="a <thing> circle", new_word=dict(placeholder="<thing>"), learning_rate=0.01)
EDITOR = dict(instructions="turn it over\nturn it over", learning_rate=0.01) | {"train": "attention", "train.rank": 2, "train.alpha": 0.0}
TRAINERS = {
    **{"word": ("TIEmbeddingTrainer", WORD), "lora": ("DreamBoothTrainer", LORA), "concept": ("CustomDiffusionTrainer", CONCEPT)},
    "editor": ("InstructPix2PixTrainer", EDITOR),
}
OPTIONS = {
    **{"training_options": "TrainingOptions", "validation_options": "ValidationOptions", "dataset_options": "DatasetOptions"},
    **{"class_images": "ClassImages", "new_word": "NewWord"},
}


def trainer(add, prompt: dict, kind: str, parts: dict, **knobs) -> list:
    few = dict(steps=3, name=f"served-{kind}", seed=1, validation_options=dict(count=1, steps=2), training_options=dict(warmup=0)) | knobs
    few = {k: add(prompt, OPTIONS[k], **v) if isinstance(v, dict) else v for k, v in (TRAINERS[kind][1] | few).items()}
    given = {k: parts[k] for k in ("model", "clip", "vae")}
    if kind == "editor":
        shown = dict(before=parts["images"], after=add(prompt, "ImageInvert", image=parts["images"]), folder="")
    else:
        shown = dict(images=parts["images"])
    return add(prompt, TRAINERS[kind][0], **given, **shown, **few)


def used(add, prompt: dict, kind: str, parts: dict, made: list | None) -> list:
    """Images with the trained weights: by the trainer's outputs, or by its file in ComfyUI's nodes and our loader of editors."""

    def said(text, clip=None):
        return add(prompt, "CLIPTextEncode", clip=clip or parts["clip"], text=text)

    if kind == "word":
        return drawn(add, prompt, parts, said(made or "embedding:served-word"))
    if kind == "editor":
        model = made or add(prompt, "InstructPix2PixLoader", model=parts["model"], name="served-editor")
        given = dict(positive=said("turn it over"), negative=parts["negative"], image=parts["images"], vae=parts["vae"])
        patch = add(prompt, "InstructPix2PixPatch", model=model, **given)
        return drawn(add, prompt, parts, out(patch, 1), model=patch, negative=out(patch, 2))
    file = dict(lora_name=f"served-{kind}.safetensors", strength_model=1.0, strength_clip=1.0)
    lora = made or add(prompt, "LoraLoader", model=parts["model"], clip=parts["clip"], **file)
    word = said(out(made, 3) if made else {"lora": "a zz circle", "concept": "embedding:served-concept"}[kind])
    return drawn(add, prompt, parts, word, model=lora)


def images(server, prompt: dict, *links) -> list[np.ndarray]:
    """Of each link the images that the server makes."""
    shown = []
    for link in links:
        prompt[f"show {len(shown)}"] = {"class_type": "PreviewImage", "inputs": {"images": link}}
        shown.append(f"show {len(shown)}")
    made = server.images_by_node(server.run(prompt))
    return [np.stack([np.asarray(p, int) for p in made[number]]) for number in shown]


@pytest.mark.parametrize("kind", ["word", "lora", "concept", "editor"])
def test_trained_weights_act_at_once_and_their_file_alike(server, add, kind):
    prompt = {}
    parts = begun(add, prompt)
    made = trainer(add, prompt, kind, parts)
    seen = out(made, {"word": 2, "lora": 5, "concept": 5, "editor": 3}[kind])
    plain = used(add, prompt, kind, parts, made) if kind == "editor" else drawn(add, prompt, parts, parts["negative"])
    learned, looked, _ = images(server, prompt, used(add, prompt, kind, parts, made), seen, plain)
    assert learned.std() > 1 and looked.std() > 1
    again = {}
    (loaded,) = images(server, again, used(add, again, kind, begun(add, again), None))
    assert np.array_equal(learned, loaded)


def wait(event, seconds: float = 240):
    """Until `event()` gives something, which is returned."""
    limit = time.monotonic() + seconds
    while not (found := event()):
        assert time.monotonic() < limit, f"nothing happened in {seconds} seconds"
        time.sleep(0.2)
    return found


def facts(file) -> dict[str, str]:
    """The metadata of a safetensors file; nothing while there is none."""
    if not file.exists():
        return {}
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def test_a_stop_keeps_the_weights_and_the_same_prompt_goes_on(server, add):
    prompt = {}
    knobs = dict(steps=100_000, name="stopped", if_exists="continue", validation_options=dict(count=0, every=5))  # when the state is saved
    add(prompt, "PreviewAny", source=trainer(add, prompt, "word", begun(add, prompt), **knobs))
    word = server.base / "models" / "embeddings" / "stopped.safetensors"
    state = server.base / "output" / "controlled_diffusion" / "embeddings" / "stopped.safetensors"

    def stopped_after(steps: int) -> int:
        number, refused = server.submit(prompt)
        assert refused is None
        wait(lambda: int(facts(state).get("done", 0)) > steps)
        server.post("/interrupt", b"{}")
        assert wait(lambda: server.history(number))["status"]["status_str"] == "success"
        return int(facts(word)["steps"])

    first = stopped_after(0)
    assert 0 < first < 100_000 and stopped_after(first) > first, "ComfyUI gave out what it had kept"


@pytest.mark.parametrize(
    ("kind", "knobs", "told"),
    [
        ("word", dict(placeholder="circle"), "'circle' is a word that the model knows"),
        ("lora", dict(dataset_options=dict(captions="a\nb\nc")), "3 captions for 2 images"),
        ("concept", dict(instance_prompt="a circle"), "lacks the new word"),
        ("editor", dict(channel_dropout="jointly", clean_image_dropout=0.5), "Choose 'independently'"),
    ],
)
def test_what_cannot_be_learned_is_an_error_of_the_node(server, add, kind, knobs, told):
    prompt = {}
    made = trainer(add, prompt, kind, begun(add, prompt), **knobs)
    add(prompt, "PreviewAny", source=made)
    with pytest.raises(WorkflowError, match=told) as error:
        server.run(prompt)
    assert error.value.node_id in (made[0], None)


def test_validation_that_fails_leaves_the_outputs(server, add):
    """ComfyUI's RenormCFG fails at every batch of two: the LoRA and the curve come, and the node's text says why the images do not."""
    prompt = {}
    parts = begun(add, prompt)
    parts["model"] = add(prompt, "RenormCFG", model=parts["model"], cfg_trunc=100.0, renorm_cfg=1.0)
    made = trainer(add, prompt, "lora", parts, name="unseen", validation_options=dict(count=2), class_images=dict(prior_weight=0.0))
    prompt["curve"] = {"class_type": "PreviewImage", "inputs": {"images": out(made, 4)}}
    ended = server.run(prompt)
    assert server.images_by_node(ended)["curve"] and (server.base / "models" / "loras" / "unseen.safetensors").exists()
    (said,) = ended["outputs"][made[0]]["text"]
    assert "No validation images after step 3: " in said and "Boolean value of Tensor" in said
