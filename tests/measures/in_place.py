"""Gradients of networks that write in place: `python . run tests/measures/in_place.py [--count 200] [--only LoRA]`.

Each gradient is compared with that of the same network with new tensors, or, for families of networks, with that of copies of every saved
tensor. Beside it is what torch's own `allow_mutation_on_saved_tensors` gives. Told are the gradients that differ by more than 1e-4, and the
largest relative difference.
"""

import shutil
from contextlib import nullcontext
from pathlib import Path

import folder_paths
import torch
from controlled_diffusion.nodes.host.saved_tensors import mutations_allowed

from harness.environment import PRIVATE
from host import in_place, tiny, tiny_dits
from measures.script import head, options_of, row, say

WAYS = {"this pack": nullcontext, "torch": torch.autograd.graph.allow_mutation_on_saved_tensors}  # within what this pack does


def told(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> str:
    distances = [in_place.apart([a], [b]) if a.shape == b.shape else float("inf") for a, b in zip(found, wanted)]
    return f"{sum(not d < 1e-4 for d in distances)} of {len(distances)}, {max(distances):.0e}"


def attempt(make) -> str:
    try:
        return make()
    except (RuntimeError, ValueError) as error:
        return f"stopped: {str(error).splitlines()[0][:60]}"


def trainers(count: int, only: str, clip, vae) -> None:
    for kind in in_place.TASKS:
        for patch in in_place.PATCHES:
            if only not in f"{kind}, {patch}":
                continue
            wanted = in_place.gradients_of(in_place.task_through(kind, patch, False, clip, vae), count)

            def gradients(around, kind=kind, patch=patch, wanted=wanted):
                return told(in_place.gradients_of(in_place.task_through(kind, patch, True, clip, vae), count, around), wanted)

            say(row(f"{kind}, {patch}", *(attempt(lambda a=around: gradients(a)) for around in WAYS.values())))


def guidance(count: int, only: str, vae) -> None:
    """Null-text and image guidance; one run takes many gradients."""
    for name, make in (("null-text", in_place.null_embeddings), ("image guidance", in_place.guided)):
        for patch in in_place.PATCHES:
            if only in f"{name}, {patch}":
                wanted = make(patch, False, vae)
                found = [make(patch, True, vae) for _ in range(max(1, count // 20))]
                say(row(f"{name}, {patch}", told([torch.cat(f) for f in found], [torch.cat(wanted)] * len(found)), ""))


def families(count: int, only: str) -> None:
    for name in tiny_dits.there(tiny_dits.DITS):
        if only not in name:
            continue
        census = in_place.Census()
        problem = attempt(lambda name=name, census=census: in_place.gradients_of_family(name, 1, census.hooks) and "")
        if problem or not census.changed:
            say(row(name, problem or "writes nothing in place that it has saved", ""))
            continue
        wanted = in_place.gradients_of_family(name, count, in_place.copies_alone)
        cells = (attempt(lambda a=a, name=name, w=wanted: told(in_place.gradients_of_family(name, count, a), w)) for a in WAYS.values())
        say(row(f"{name} ({census.changed} saved tensors changed)", *cells))


def main() -> None:
    options = options_of(__doc__, count=(200, "gradients of each case"), only=("", "cases whose name holds this"))
    folder = PRIVATE / "measures" / "in_place"
    shutil.rmtree(folder, ignore_errors=True)
    for kind in ("embeddings", "loras", "diffusion_models"):
        (folder / kind).mkdir(parents=True)
        folder_paths.folder_names_and_paths[kind] = ([str(folder / kind)], {".safetensors"})
    say(head(f"torch {torch.__version__}, {options.count} gradients", *WAYS))
    if not options.only:
        torch_way = torch.autograd.graph.allow_mutation_on_saved_tensors
        counts = (f"{in_place.wrong_gradients(around, options.count)} of {options.count}" for around in (mutations_allowed, torch_way))
        say(row("a chain of tanh", *counts))
    with torch.inference_mode():
        clip, vae = tiny.clip(torch.float32, embedding_directory=[str(Path(folder) / "embeddings")]), tiny.vae()
        trainers(options.count, options.only, clip, vae)
        guidance(options.count, options.only, vae)
        families(options.count, options.only)


if __name__ == "__main__":
    main()
