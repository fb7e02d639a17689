"""What every node promises, asked of each of them with the values in which the matrix of bad inputs puts its damage."""

import gc
import weakref

import comfy.sample
import comfy.samplers
import pytest
import torch
from controlled_diffusion.nodes import MODULES

from harness import bad_inputs
from harness.good_inputs import Sockets, good, nodes, run
from host import sampling

NODES = [node.__name__ for module in MODULES for node in module.NODES]
WITH_MODEL = [n for n in NODES if any(i.id == "model" for i in nodes()[n].GET_SCHEMA().inputs)]


@pytest.fixture(scope="module")
def sockets(tmp_path_factory):
    with bad_inputs.own_folders(tmp_path_factory.mktemp("every_node")):
        yield Sockets()


def sample(node_id: str, made: tuple, model, sockets) -> None:
    """Samples with what a node made, if it is something to sample with; it acts on the `model`. P2P Local Blend is sampled with behind
    P2P Attention Patch, whose positive it needs."""
    kinds = [output.get_io_type() for output in nodes()[node_id].GET_SCHEMA().outputs]

    def first(kind: str, otherwise=None):
        return made[kinds.index(kind)] if kind in kinds else otherwise

    positive = first("CONDITIONING", sockets("CONDITIONING"))
    empty = torch.zeros_like(first("LATENT", sockets("LATENT"))["samples"])
    sigmas = sampling.sigmas_of(model, 2)
    if "GUIDANCE_CHANNEL" in kinds:
        guider = run("MultiCFGGuider", **good("MultiCFGGuider", sockets) | {"model": model, "channels": {"channel_0": made[0]}})[0]
        sampling.run(guider, empty, sigmas=sigmas)
    elif "INVERSION" in kinds:
        given = good("InversionSampler", sockets) | {"model": model, "inversion": first("INVERSION")}
        run("InversionSampler", **given)
    elif "GUIDER" in kinds:
        sampling.run(first("GUIDER"), empty, sigmas=sigmas)
    elif {"MODEL", "SAMPLER"} & {*kinds} and node_id != "P2PLocalBlend":
        model = first("MODEL", model)
        if node_id == "P2PAttentionPatch":
            (model,) = run("P2PLocalBlend", **good("P2PLocalBlend", sockets) | {"model": model})
        guider = sampling.cfg_guider(model, positive, sockets("CONDITIONING"), 3.0)
        sampler, noise = first("SAMPLER", comfy.samplers.sampler_object("euler")), comfy.sample.prepare_noise(empty, 0, [0] * len(empty))
        with torch.inference_mode():
            guider.sample(noise, empty, sampler, sigmas, disable_pbar=True, seed=0)


@pytest.mark.parametrize("node_id", WITH_MODEL)
def test_nothing_keeps_the_model(node_id, sockets):
    """No circle of references, after sampling too: ComfyUI frees a model without one, and else collects garbage at every later load."""
    given = good(node_id, sockets)
    shared = given.pop("model")
    is_list = isinstance(shared, list)
    gc.collect()
    gc.disable()
    try:
        own = (shared[0] if is_list else shared).clone()
        gone = weakref.ref(own)
        made = run(node_id, model=[own] if is_list else own, **given)
        sample(node_id, made, own, sockets)
        del made, own
        assert gone() is None
    finally:
        gc.enable()
