"""Networks and patches that write in place train and guide as the same with new tensors; tests/measures/in_place.py repeats it 200 times."""

import pytest
import torch
from controlled_diffusion.nodes.host import saved_tensors

from compare import assert_close
from host import in_place, tiny_dits
from host.training import derivatives

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")
WRITING = ["flux", "hunyuan_video", "ltxv", "pixeldit"]  # networks that change what autograd has saved


@pytest.fixture
def clip(reading_clip):
    return reading_clip


def test_gradients_of_what_is_changed_in_place_are_right():
    assert in_place.wrong_gradients(saved_tensors.mutations_allowed, 50) == 0


def test_a_storage_is_copied_once_and_let_go_with_its_graph():
    with torch.inference_mode(False), torch.enable_grad():
        weight = torch.nn.Parameter(torch.ones(8, 8))
        copies = saved_tensors.Copies(lambda: [weight])
        x = torch.randn(2, 12)
        saved = [copies.save(view) for view in (x, x[:, :8], x.t())] + [copies.save(weight)]
        assert len(copies.copies) == 1 and saved[-1].load() is weight
        before = x.clone()
        x.mul_(2)
        saved.append(copies.save(x))
        assert len(copies.copies) == 2 and torch.equal(saved[0].load(), before) and torch.equal(saved[-1].load(), x)
        third = saved[2].load()
        assert torch.equal(third, before.t()) and third.stride() == x.t().stride()
        del saved
        assert not copies.copies


@pytest.mark.parametrize("kind", in_place.TASKS)
@pytest.mark.parametrize("patch", in_place.PATCHES)
def test_trainers_learn_the_same_through_patches_in_place(kind, patch, clip, vae):
    found = [in_place.gradients_of(in_place.task_through(kind, patch, writes, clip, vae), 4) for writes in (True, False)]
    assert in_place.apart(*found) < 1e-6


@pytest.mark.parametrize("made", [in_place.null_embeddings, in_place.guided])
@pytest.mark.parametrize("patch", ["scaled", "FreeU behind a clone"])
def test_null_text_and_image_guidance_are_the_same(patch, made, vae):
    found = [made(patch, writes, vae) for writes in (True, False)]
    assert in_place.apart(*found) < 1e-6


@pytest.mark.parametrize("name", [n for n in WRITING if n in tiny_dits.there(tiny_dits.DITS)])
def test_families_that_write_in_place_have_right_gradients(name):
    census = in_place.Census()
    in_place.gradients_of_family(name, 1, census.hooks)
    found = [in_place.gradients_of_family(name, 3, around) for around in (in_place.nullcontext, in_place.copies_alone)]
    assert census.changed and in_place.apart(*found) < 1e-6


def test_free_u_has_the_gradient_of_differences(clip, vae):
    exact, measured = derivatives(in_place.task_through("LoRA", "FreeU", True, clip, vae))
    assert_close(exact, measured, rtol=0.03, atol=1e-6)
