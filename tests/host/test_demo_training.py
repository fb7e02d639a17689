"""The script that makes the demo model, from nothing to a file that loads, with a few steps of each stage."""

import argparse

import pytest
import torch
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.training.demo import config
from safetensors.torch import load_file

from compare import assert_close
from demo import make_model as script
from demo import model as demo_model

pytestmark = pytest.mark.slow
FEW = demo_model.Recipe(autoencoder_steps=2, scenes=8, denoiser_steps=2, refine_steps=2, batch=2)
OPTIONS = argparse.Namespace(threads=1)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the script says; it has trained a model in a folder of its own."""
    elsewhere, found = tmp_path_factory.mktemp("made"), []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(script, "STATE", elsewhere / "state")
        patched.setattr(script, "say", found.append)
        patched.setattr(script, "WEIGHTS", elsewhere / "weights" / "shapes_model.safetensors")
        patched.setattr(demo_model, "RECIPE", FEW)
        script.train(OPTIONS)
        yield found


def test_it_trains_saves_and_goes_on_where_it_stopped(said):
    first = load_file(script.WEIGHTS)
    assert "autoencoder: 0 of 2 steps done" in said
    _, clip, vae = demo.load(script.WEIGHTS)
    assert torch.isfinite(vae.decode(torch.zeros(1, 4, 16, 16))).all()
    assert clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))[0][0].shape == (1, 77, config.CONTEXT)
    script.train(OPTIONS)
    assert "denoiser: 2 of 2 steps done" in said
    assert_close(load_file(script.WEIGHTS), first, atol=1e-3, rtol=1e-3)


def test_it_refines_what_lies_in_the_repository(said):
    before = demo.load(script.WEIGHTS)[0].model.diffusion_model.state_dict()
    script.refine(OPTIONS)
    after = demo.load(script.WEIGHTS)[0].model.diffusion_model.state_dict()
    changed = [k for k, v in after.items() if not torch.equal(v, before[k])]
    assert changed and all(torch.isfinite(v).all() for v in after.values())


def test_scores_count_right_and_asked():
    captions = script.held_out(4)
    assert len({c.text for c in captions}) == 4
    images = [script.world.render(demo_model.scene(i, script.HELD_OUT)) for i in range(4)]
    scores = script.score(captions, images)
    assert all(right == asked for right, asked in scores.values())
