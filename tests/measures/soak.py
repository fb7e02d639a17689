"""Whether a server stays as it was: `python . run tests/measures/soak.py [--prompts 150] [--interrupts 40] [--deletions 10]`.

Small workflows take turns in one server: an image, an edit of an inversion, Prompt-to-Prompt, and two trainings. Between them some are
canceled while they run, waiting ones are deleted from the queue, and trained files from their folder. At the end memory, files and images
are compared with those after the first round. Then the server is killed while it draws pairs and while it trains, and started again.
"""

import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from harness.server import Server
from host import test_served_training as served
from host.test_two_servers import LINES, pairs
from measures.script import head, options_of, row, say

KINDS = ("image", "edit", "Prompt-to-Prompt", "word", "lora")
ENDLESS, STEPS = 1000, 200
TARGET = "a blue circle on a white background"


def workflow(server: Server, kind: str, seed: int, steps: int = 3) -> dict:
    """A prompt that shows two images."""
    add, prompt = served.adder(server), {}
    parts = served.begun(add, prompt)
    target = add(prompt, "CLIPTextEncode", clip=parts["clip"], text=TARGET)
    if kind == "image":
        shown = served.drawn(add, prompt, parts, target, seed, steps=steps)
    elif kind == "edit":
        source = add(prompt, "CLIPTextEncode", clip=parts["clip"], text=served.PROMPT)
        parted = served.drawn(add, prompt, parts, source, seed)
        inversion = add(prompt, "DDIMInverter", model=parts["model"], vae=parts["vae"], image=parted, source=source, steps=steps)
        knobs = dict(model=parts["model"], inversion=inversion, positive=target, negative=parts["negative"], cfg=3.0)
        shown = add(prompt, "VAEDecode", samples=add(prompt, "InversionSampler", **knobs), vae=parts["vae"])
    elif kind == "Prompt-to-Prompt":
        empty = add(prompt, "EmptyLatentImage", width=128, height=128, batch_size=1)
        given = dict(model=parts["model"], clip=parts["clip"], latent=empty)
        patch = add(prompt, "P2PAttentionPatch", **given, source=served.PROMPT, targets=TARGET)
        prompts = dict(model=patch, positive=served.out(patch, 1), negative=served.out(patch, 2), latent_image=served.out(patch, 3))
        latent = add(prompt, "KSampler", seed=seed, steps=steps, cfg=3.0, **prompts)
        shown = add(prompt, "VAEDecode", samples=latent, vae=parts["vae"])
    else:
        made = served.trainer(add, prompt, kind, parts, name=f"soak-{kind}", if_exists="replace", seed=seed, steps=steps)
        shown = served.used(add, prompt, kind, parts, made)
    prompt["shown"] = {"class_type": "PreviewImage", "inputs": {"images": shown}}
    return prompt


def images(server: Server, seed: int) -> list[np.ndarray]:
    """Those of one round, without anything that the server kept."""
    server.post("/free", json.dumps({"unload_models": True, "free_memory": True}).encode())
    return [np.asarray(image) for kind in KINDS for image in server.images(server.run(workflow(server, kind, seed)))]


def files(server: Server) -> set[str]:
    """What lies in the folders of models and results."""
    return {str(p.relative_to(server.base)) for folder in ("models", "output") for p in (server.base / folder).rglob("*") if p.is_file()}


def ended(server: Server, number: str) -> dict:
    return served.wait(lambda: server.history(number))


def queued(server: Server) -> str:
    return server.get("/queue").decode()


def canceled(server: Server, kind: str, seed: int) -> float:
    """Cancels a workflow at some time; the seconds until it ends."""
    number, _ = server.submit(workflow(server, kind, seed, ENDLESS))
    served.wait(lambda: number in queued(server))
    time.sleep(0.5 + seed % 7)
    begun = time.monotonic()
    server.interrupt()
    ended(server, number)
    return time.monotonic() - begun


def deleted(server: Server, kind: str, seed: int) -> bool:
    """Deletes a waiting workflow, and the file of a word that a next training writes again; whether the workflow never ran."""
    first, second = (server.submit(workflow(server, kind, seed + i))[0] for i in (0, 1))
    server.post("/queue", json.dumps({"delete": [second]}).encode())
    ended(server, first)
    (server.base / "models" / "embeddings" / "soak-word.safetensors").unlink(missing_ok=True)
    server.run(workflow(server, "word", seed))
    return server.history(second) is None and second not in queued(server)


def due(i: int, count: int, total: int) -> bool:
    """Whether the i-th of `total` is one of `count` that are spread over them evenly."""
    return (i + 1) * count // total > i * count // total


def soak(server: Server, options) -> None:
    before, known = images(server, seed=1), files(server)
    memory, waits, unrun = [server.memory()], [0.0], []
    for i in range(options.prompts):
        kind, seed = KINDS[i % len(KINDS)], 100 + i
        server.run(workflow(server, kind, seed))
        if due(i, options.interrupts, options.prompts):
            waits.append(canceled(server, KINDS[len(waits) % len(KINDS)], seed))
        if due(i, options.deletions, options.prompts):
            unrun.append(deleted(server, kind, seed))
        memory.append(server.memory())
    after = images(server, seed=1)
    say(row("Cancel, the longest wait", f"{max(waits):.1f} s"))
    say(row("deleted from the queue and not run", f"{sum(unrun)} of {len(unrun)}"))
    marks = [f"{memory[len(memory) * i // 4] / 1e6:.0f}" for i in range(4)]
    say(
        row(
            "memory at the start, after a quarter, a half, three quarters and at the end, MB",
            ", ".join([*marks, f"{memory[-1] / 1e6:.0f}"]),
        )
    )
    say(row("files more or less", len(files(server) ^ known)))
    say(row("images that differ", sum(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))))


def kill_while_drawing(server: Server) -> str:
    """Of the pairs that were written before, how many are there afterwards, and of how many in all."""
    prompt, folder = pairs(1), server.base / "output" / "controlled_diffusion" / "pairs" / "shared"
    prompt["2"]["inputs"]["steps"], prompt["4"]["inputs"]["shards"] = 20, 1

    def lines() -> list[dict]:
        path = folder / "metadata.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []

    server.submit(prompt)
    served.wait(lambda: len(lines()) > 1)
    server.kill()
    before = lines()
    server.start()
    server.run(prompt)
    after = lines()
    whole = all(image_opens(folder / line[key]) for line in after for key in ("original_image", "edited_image"))
    lost = [line for line in before if line not in after]
    return f"{len(before)} written, {len(lost)} lost, {len(after)} of {len(LINES)} at the end, {'all' if whole else 'not all'} images whole"


def image_opens(path: Path) -> bool:
    with Image.open(path) as image:
        image.load()
    return True


def kill_while_training(server: Server) -> str:
    """The step from which a training went on."""
    add, prompt = served.adder(server), {}
    made = served.trainer(add, prompt, "word", served.begun(add, prompt), name="killed", if_exists="continue", steps=STEPS)
    add(prompt, "PreviewAny", source=made)
    state = server.base / "output" / "controlled_diffusion" / "embeddings" / "killed.safetensors"
    server.submit(prompt)
    served.wait(lambda: int(served.facts(state).get("done", 0)) > 0)
    server.kill()
    kept = served.facts(state)["done"]
    server.start()
    server.run(prompt)
    found = served.facts(state)
    return f"{kept} of {STEPS} steps kept, {'continued' if found['continued'] == '1' else 'begun anew'}, {found['done']} at the end"


def main() -> None:
    options = options_of(__doc__, prompts=150, interrupts=40, deletions=10)
    with Server(threads=1) as server:
        say(head(f"{options.prompts} prompts, {options.interrupts} interrupts, {options.deletions} deletions", "found"))
        soak(server, options)
        say(row("kill -9 while pairs are drawn", kill_while_drawing(server)))
        say(row("kill -9 in a training", kill_while_training(server)))
        say(row("half files", sum("partial" in name for name in files(server))))


if __name__ == "__main__":
    main()
