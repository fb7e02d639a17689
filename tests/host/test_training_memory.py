"""Blocks that run again in the backward pass, with the same gradients, and trainings that look whether they fit into memory."""

import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import folder_paths
import pytest
import torch
from controlled_diffusion.nodes.host import checkpointing, gradients
from controlled_diffusion.nodes.host.gradients import trainable
from controlled_diffusion.nodes.host.training import adapters, memory, run, trainer
from controlled_diffusion.nodes.host.training import dreambooth as host
from controlled_diffusion.training import settings
from controlled_diffusion.training.loop import Loop

from compare import assert_close
from harness.memory import peak
from host import tiny, tiny_dits, tiny_text
from host.test_dreambooth import base, clip, folders, images, inside, stir, task_of  # noqa: F401

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")
FAMILIES = [n for n in tiny_dits.there(tiny_dits.DITS) if n not in ("cosmos2", "joyimage")]  # these have no gradients in this host


def own_blocks(ground):
    return checkpointing.blocks_of(ground.guider.inner_model)


def gradients_of_family(name: str, blocks) -> tuple[torch.Tensor, ...]:
    """The gradients of LoRAs on every layer, and of the text, for one prediction."""
    with torch.inference_mode(False), torch.no_grad():
        model, _ = trainable(tiny_dits.dit(name))
        learnt, draw = adapters.Design(rank=1, layers="").adapters(model, 1), torch.Generator().manual_seed(1)
        for p in learnt.parameters.values():
            p.add_(0.05 * torch.randn(p.shape, generator=draw))
        learnt.put_on(model)
        (features, extras), *_ = gradients.clone_inference_tensors(tiny_dits.text(name, 1))
        empty, found = tiny_dits.empty(name), []

    def steps(ground):
        text, x = features.clone().requires_grad_(True), torch.randn(empty.shape, generator=torch.Generator().manual_seed(2))
        loss = ground.denoised(x, torch.tensor([ground.scale.sigma(0.4)]), [[text, extras]]).square().mean()
        found.extend(torch.autograd.grad(loss, [text, *learnt.parameters.values()], allow_unused=True))
        return iter(())

    with torch.inference_mode(False), torch.no_grad():
        guider = run.comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": [[features, extras]]})
        guider.sample(empty, empty, run.Lesson(steps, (), lambda s: None, blocks=blocks), torch.ones(1), disable_pbar=True, seed=0)
    return tuple(g for g in found if g is not None)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradients_of_every_family_are_the_same_when_its_blocks_run_again(name):
    plain, again = gradients_of_family(name, lambda ground: ()), gradients_of_family(name, own_blocks)
    assert len(plain) == len(again) > 30 and sum(float(g.abs().sum()) > 0 for g in plain) >= len(plain) - 2
    assert all(torch.equal(a, b) for a, b in zip(plain, again))


@pytest.mark.parametrize("name", [n for n in ("cosmos2", "joyimage") if n in tiny_dits.there(tiny_dits.DITS)])
def test_networks_whose_kernels_have_no_derivative_are_refused_by_name(name):
    def broken(index):
        raise RuntimeError("Trying to backward through kitchen.rope but no autograd formula was registered.")

    model = tiny_dits.dit(name)
    loop = Loop({"p": torch.nn.Parameter(torch.zeros(1))}, steps=1, learning_rate=0.1)
    course = run.Course(model, tiny_dits.text(name, 1), loop, lambda ground, i: broken(i), tiny_dits.empty(name).shape)
    with pytest.raises(ValueError, match=f"{type(model.model).__name__} cannot be trained with this ComfyUI"):
        course.run(1)


@pytest.mark.parametrize(("family", "word"), [("eps", True), ("flow", False)])
def test_a_training_of_a_unet_takes_the_same_steps(family, word, vae, clip):  # noqa: F811
    def learnt(checkpointing):
        task = task_of(tiny.unet(family, output_scale=0.3), clip, vae, word=word, checkpointing=checkpointing)
        with torch.inference_mode(False), torch.no_grad():
            loop = trainer.run(task, adapters.LORAS.state(f"{checkpointing}"), lambda loop: "")
        task.adapters.take_off(task.model)
        return [s.loss for s in loop.history], task.parameters

    (one, plain), (other, again) = learnt("off"), learnt("on")
    assert_close(one, other, rtol=1e-5, atol=0)
    assert_close([p.detach() for p in plain.values()], [again[k].detach() for k in plain], rtol=0, atol=0.02 * 0.05)




def kept_by(model, clip, vae, batch, height, width, again=False):  # noqa: F811
    """What a pass keeps: as the room counts it, and what autograd itself holds."""
    task = task_of(model, clip, vae, adapters.Design(rank=2, layers=""))
    stir(task)
    room = replace(task.room(task.loop()), shape=torch.Size([batch, 4, height, width]))
    return inside(task, lambda ground: room._kept(ground, checkpointing.blocks_of(task.model.model), batch))


def test_what_large_images_keep_is_reckoned_from_small_ones(eps_model, vae, clip, monkeypatch):  # noqa: F811
    told = kept_by(eps_model, clip, vae, 2, 40, 48)
    monkeypatch.setattr(memory, "EXACT", 10**9)
    counted = kept_by(eps_model, clip, vae, 2, 40, 48)
    assert_close(told.whole, float(counted.whole), rtol=0.03, atol=0)
    assert_close(told.again, float(counted.again), rtol=0.03, atol=0)
    assert counted.again < counted.whole / 2


class Aligned(torch.autograd.Function):
    """A kernel that wants what it saved as it lay, as a GPU's attention does with its mask."""

    @staticmethod
    def forward(ctx, x, mask):
        ctx.lay = mask.stride()
        ctx.save_for_backward(mask)
        return x + mask

    @staticmethod
    def backward(ctx, derivative):
        (mask,) = ctx.saved_tensors
        assert mask.stride() == ctx.lay and mask.unique().tolist() == [0.0, 1.0]
        return derivative * mask, None


class Masked(torch.nn.Module):
    def forward(self, x):
        mask = torch.nn.functional.pad(torch.ones(77, 77).tril(), (0, 3))[:, :77]  # rows of 80
        return Aligned.apply(x, mask.expand(2, 4, 77, 77))


def test_what_is_made_again_lies_in_memory_as_it_was_saved():
    with torch.inference_mode(False), torch.enable_grad(), checkpointing.recomputed([block := Masked()]):
        x = torch.zeros(2, 4, 77, 77, requires_grad=True)
        block(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(77, 77).tril().expand(2, 4, 77, 77))


def test_a_copy_that_lies_as_its_tensor_does_is_small_and_its_own(monkeypatch):
    monkeypatch.setattr(checkpointing, "SMALL", 0)
    whole = torch.arange(24.0).view(2, 12)
    third, rows, repeated = whole[:, :3], whole.t(), whole[:1].expand(5, 12)
    for tensor in (third, rows, repeated, whole[:, :10], whole[1:, ::2], whole[:0], torch.tensor(3.0)):
        copy = checkpointing.laid_out(tensor)
        assert torch.equal(copy, tensor) and (not tensor.numel() or copy.data_ptr() != tensor.data_ptr())
        assert copy.untyped_storage().nbytes() <= 8 * tensor.numel()
    assert checkpointing.laid_out(third).stride() == (3, 1)  # which would take three times its numbers
    assert checkpointing.laid_out(repeated).stride() == (0, 1) and checkpointing.laid_out(rows).stride() == (1, 12)


@pytest.mark.parametrize("kind", ["sd1", "flux"])
def test_no_copies_are_kept_of_the_weights_of_a_coarse_text_encoder(kind, eps_model, vae, folders, monkeypatch):  # noqa: F811
    """A model in bfloat16 works on float32 copies of them, of which autograd would keep one for every sentence."""
    where = folder_paths.get_folder_paths("embeddings")
    if kind == "sd1":
        given = eps_model, tiny.clip(torch.bfloat16, embedding_directory=where), vae
    else:
        given = tiny_text.denoiser("flux"), tiny_text.clip("flux", where, dtype=torch.bfloat16), tiny_text.vae("flux")
    task = task_of(*given, word=True)
    room, words = task.room(task.loop()), list(task.word.parameters.values())

    def found():
        derivatives = inside(task, lambda ground: torch.autograd.grad(task.loss(ground, 0), words), mutations=kind == "flux")
        return derivatives, inside(task, lambda ground: room._kept(ground, (), 4).whole)

    again, less = found()
    monkeypatch.setattr(checkpointing, "coarse_blocks", lambda modules: [])
    plain, more = found()
    assert all(a.any() and torch.equal(a, b) for a, b in zip(again, plain))
    coarse = [p for p in given[1].cond_stage_model.parameters() if p.dtype == torch.bfloat16 and p.ndim == 2]
    assert more - less > 0.5 * sum(4 * p.numel() for p in coarse if p.numel() < 64 * 1024)


def prepared(eps_model, clip, vae, free, **settings):  # noqa: F811
    """Runs a training where `free` bytes are free; says whether blocks ran again."""
    task = task_of(eps_model, clip, vae, **settings)
    room = replace(task.room(task.loop()), free=lambda device: free)
    inside(task, room.blocks)
    return room.again


def needs(eps_model, clip, vae):  # noqa: F811
    task = task_of(eps_model, clip, vae)
    room = task.room(task.loop())
    found = []
    inside(
        task,
        lambda ground: (
            found.append(room._kept(ground, own_blocks(ground), 4)) or found.append(ground.guider.inner_model.memory_required([4, 4, 8, 8]))
        ),
    )
    return found[0], found[1], room.loop.to_come()


def test_blocks_run_again_only_where_memory_is_short_or_it_is_asked_for(eps_model, vae, clip):  # noqa: F811
    kept, working, learning = needs(eps_model, clip, vae)
    enough, little = kept.whole + learning + working + 1, kept.again + learning + 1
    assert [prepared(eps_model, clip, vae, free) for free in (enough, enough - 2, little)] == [False, True, True]
    assert prepared(eps_model, clip, vae, enough, checkpointing="on") and not prepared(eps_model, clip, vae, enough, checkpointing="off")
    assert not prepared(eps_model, clip, vae, kept.whole + learning + 1, checkpointing="off")


def test_what_cannot_fit_is_told_before_the_first_step_and_nothing_is_written(eps_model, vae, clip, folders):  # noqa: F811
    kept, _, learning = needs(eps_model, clip, vae)
    task = replace(task_of(eps_model, clip, vae, checkpointing="off"), free=lambda device: kept.again + learning)
    told = r"needs about \d+ MB of memory beside the model, and \d+ MB are free: \d+ MB for the backward pass through 4 images at a time, .* what adamw keeps"
    ways = r"set checkpointing to 'on' \(about \d+ MB\); set batch_size to 1 and accumulate to 2 \(about \d+ MB\); take smaller images"
    with torch.inference_mode(False), torch.no_grad(), pytest.raises(ValueError, match=f"{told}.*{ways}"):
        host.finish(task, eps_model, "rex", False)
    assert not list(folders.rglob("*.safetensors"))
    assert not [m for m in eps_model.model.modules() if getattr(m, "weight_function", None)]
    with pytest.raises(ValueError, match="There is no checkpointing 'yes'"):
        prepared(eps_model, clip, vae, 0, checkpointing="yes")


def test_blocks_that_run_again_take_less_at_the_most_and_what_is_told_is_about_what_is_taken(eps_model, vae, clip):  # noqa: F811
    """In the backward pass too: what is made again for a block is let go before the next one's."""
    task = task_of(eps_model, clip, vae, data=settings.Data([images(1, 192)]), batch_size=1, weight=0.0)

    def step(ground, blocks):
        with checkpointing.recomputed(blocks):
            torch.autograd.grad(task.loss(ground, 0), list(task.parameters.values()))

    def found(ground):
        room = task.room(task.loop())
        return room._kept(ground, own_blocks(ground), 1), *[peak(partial(step, ground, blocks)) for blocks in ((), own_blocks(ground))]

    told, plain, again = inside(task, found)
    assert again < 0.6 * plain
    assert 0.7 < told.whole / 1e6 / plain < 1.2 and 0.7 < told.again / 1e6 / again < 1.2


def test_attention_kernels_without_a_derivative_give_way(eps_model, vae, clip):  # noqa: F811
    task = task_of(eps_model, clip, vae)
    chosen = inside(task, lambda ground: ground.options["transformer_options"]["optimized_attention_override"])

    def attention_sage(q, k, v, heads):
        raise AssertionError

    q = torch.ones(1, 2, 4)
    assert_close(chosen(attention_sage, q, q, q, 1), q)


def test_a_stop_inside_of_a_block_leaves_autograd_as_it_was():
    """The user's stop is no Exception, which is all that torch's hooks are called for in any case."""

    class Stopped(torch.nn.Module):
        def forward(self, x):
            raise run.Stopped

    with torch.inference_mode(False), torch.enable_grad():
        x = torch.ones(3, requires_grad=True)
        with pytest.raises(run.Stopped), checkpointing.recomputed([block := Stopped()]):
            block(x * 2)
        (x * x * 3).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 6.0))


def test_a_step_that_is_taken_again_does_not_hold_what_the_first_try_made(monkeypatch):
    held, tries = [], []

    def run(self, count):
        assert not held or held[0]() is None
        graph = torch.ones(3)
        held.append(weakref.ref(graph))
        tries.append(self.mutations)
        if len(tries) == 1:
            raise RuntimeError("one of the variables has been modified by an inplace operation")

    monkeypatch.setattr(run.Course, "_run", run)
    loop = SimpleNamespace(done=0, steps=4)
    run.Course(None, [], loop, None, torch.Size([1, 4, 8, 8])).run(4)
    assert tries == [False, True]


@pytest.mark.parametrize("patch", [2, 16, 32, (1, 2, 2), (1, 16, 16), None])
def test_networks_that_cut_images_into_large_patches_are_reckoned_from_passes_of_whole_patches(patch):
    """Such ones fill smaller images up, or cannot read them."""
    cell, side = memory.cell_of(SimpleNamespace(patch_size=patch)), patch[-1] if isinstance(patch, tuple) else patch or 2

    def kept(count, height, width):
        assert height % side == width % side == 0
        taken = 1e6 + 50.0 * count * height * width
        return memory.Kept(taken, taken)

    for pixels in (256, 1024):
        assert_close(memory.reckoned(kept, 2, pixels, pixels, cell).whole, kept(2, pixels, pixels).whole, rtol=1e-3, atol=0)


def test_masks_of_a_few_words_keep_their_alignment():
    """An encoder without filling makes rows of two or three, which attention on a GPU wants at multiples of 4 or 8."""
    for words in (1, 2, 3, 77):
        mask = torch.nn.functional.pad(torch.rand(1, 4, words, words), (0, 8 - words % 8))[..., :words]
        assert checkpointing.laid_out(mask).stride() == mask.stride() and torch.equal(checkpointing.laid_out(mask), mask)
