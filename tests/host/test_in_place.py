"""Networks and patches that write in place train and guide as the same with new tensors; tests/measures/in_place.py repeats it 200 times."""

import pytest
import torch
from controlled_diffusion.nodes.host import saved_tensors
from controlled_diffusion.nodes.host.training import run, trainer
from torch.multiprocessing.reductions import StorageWeakRef

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
def test_the_denoiser_is_copied_only_where_it_writes_in_place(kind, clip, vae, monkeypatch):
    """Copies ask torch for more operations than the step itself."""
    for writes in (False, True):
        attempt = saved_tensors.CopyIfNeeded()
        monkeypatch.setattr(run, "CopyIfNeeded", lambda own=attempt: own)
        in_place.gradients_of(in_place.task_through(kind, "scaled", writes, clip, vae), 1)
        assert (attempt.around is saved_tensors.mutations_allowed) is writes


def test_copies_begin_with_the_first_refusal_and_errors_are_raised():
    def gradient(writes):
        calls.append(1)
        yield torch.autograd.grad(in_place.chain(torch.ones(2, 8), weight, writes), weight)[0]

    def broken():
        raise RuntimeError("no room")
        yield

    with torch.inference_mode(False), torch.enable_grad():
        weight, attempt, calls, found = torch.nn.Parameter(torch.linspace(-1, 1, 64).view(8, 8)), saved_tensors.CopyIfNeeded(), [], []
        for writes, runs in ((False, 1), (True, 3), (True, 4), (False, 5)):
            found += attempt(lambda writes=writes: gradient(writes))
            assert len(calls) == runs
        assert len(found) == 4 and all(torch.equal(f, found[0]) for f in found)
    with pytest.raises(RuntimeError, match="no room"):
        list(saved_tensors.CopyIfNeeded()(broken))


@pytest.mark.parametrize("around", [saved_tensors.mutations_refused, saved_tensors.mutations_allowed])
def test_a_refused_pass_is_let_go(around):
    """torch itself keeps the graph of `x += f(x)` forever where its backward pass is refused or never comes."""
    with torch.inference_mode(False), torch.enable_grad(), around():
        weight = torch.nn.Parameter(torch.ones(8, 8))
        x = torch.ones(2, 8) @ weight
        x += (x * weight.sum()).tanh()
        kept = StorageWeakRef(x.untyped_storage())
        del x
    assert kept.expired()


def test_no_graph_is_kept_where_a_later_step_begins_to_write():
    kept = []

    def step(writes):
        x = torch.ones(2, 8) @ weight
        kept.append(StorageWeakRef(x.untyped_storage()))
        change = (x * weight.sum()).tanh()
        yield torch.autograd.grad((x.add_(change) if writes else x + change).sum(), weight)[0]

    with torch.inference_mode(False), torch.enable_grad():
        weight, attempt = torch.nn.Parameter(torch.ones(8, 8)), saved_tensors.CopyIfNeeded()
        for writes in (False, False, True):
            list(attempt(lambda writes=writes: step(writes)))
    assert attempt.around is saved_tensors.mutations_allowed and len(kept) == 4 and all(ref.expired() for ref in kept)


@pytest.mark.parametrize("first", [0, 5])
def test_a_training_goes_on_where_a_patch_begins_to_write(first, clip, vae, tmp_path):
    """Every step is taken once, and all is as with new tensors."""

    def trained(writes):
        calls = []

        def patch(h, hsp, options):
            calls.append(1)
            t = torch.tanh(h)
            return (t.mul_(1.1) if writes and torch.is_grad_enabled() and len(calls) > first else t * 1.1), hsp

        task = in_place.TASKS["LoRA"](in_place.with_patch(in_place.tiny.unet("eps"), patch), clip, vae, steps=4, accumulate=2)
        with torch.inference_mode(False), torch.no_grad():
            loop = trainer.run(task, tmp_path / "state", lambda loop: "")
        return [s.index for s in loop.history], [s.loss for s in loop.history], torch.cat([p.flatten() for p in loop.parameters.values()])

    (steps, losses, weights), (_, other_losses, others) = trained(True), trained(False)
    assert steps == [1, 2, 3, 4] and losses == other_losses and torch.equal(weights, others)


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
