"""Blocks that run again in the backward pass, and networks that write in place: the same gradients, in the memory that was foretold."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from controlled_diffusion.nodes.host import checkpointing
from controlled_diffusion.nodes.host.training import adapters, memory, run, trainer
from controlled_diffusion.nodes.host.training import dreambooth as host
from controlled_diffusion.training import settings

from bench import checkpointing as benchmark
from compare import assert_close
from harness.memory import peak
from host import tiny, tiny_dits, tiny_text
from host.in_place import gradients_of_family
from host.test_dreambooth import task_of
from host.training import images, inside, stir

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")
FAMILIES = [n for n in tiny_dits.there(tiny_dits.DITS) if n not in ("cosmos2", "joyimage")]  # these have no gradients in this host


@pytest.fixture
def clip(reading_clip):
    return reading_clip


def own_blocks(denoiser):
    return checkpointing.blocks_of(denoiser.guider.inner_model)


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_gives_the_same_gradients(name):
    (plain,), (again,) = gradients_of_family(name, 1), gradients_of_family(name, 1, blocks=own_blocks)
    assert float(plain.abs().sum()) > 0 and torch.equal(plain, again)


def test_networks_without_a_derivative_are_named(eps_model, vae, clip, folders, monkeypatch):
    def broken(self, denoiser, index):
        raise RuntimeError("Trying to backward through kitchen.rope but no autograd formula was registered.")

    monkeypatch.setattr(host.Task, "loss", broken)
    with pytest.raises(ValueError, match=f"{type(eps_model.model).__name__} cannot be trained with this ComfyUI: its first step failed .Trying"):
        host.finish(task_of(eps_model, clip, vae), eps_model, "rex", False)
    assert not list(folders.rglob("*.safetensors"))


@pytest.mark.parametrize(("family", "word"), [("eps", True), ("flow", False)])
def test_a_training_of_a_unet_takes_the_same_steps(family, word, vae, clip):
    def learned(checkpointing):
        task = task_of(tiny.unet(family, output_scale=0.3), clip, vae, word=word, checkpointing=checkpointing)
        with torch.inference_mode(False), torch.no_grad():
            loop = trainer.run(task, adapters.LORAS.state(f"{checkpointing}"), lambda loop: "")
        task.adapters.take_off(task.model)
        return [s.loss for s in loop.history], task.parameters

    (one, plain), (other, again) = learned("off"), learned("on")
    assert_close(one, other, rtol=1e-5, atol=0)
    assert_close([p.detach() for p in plain.values()], [again[k].detach() for k in plain], rtol=0, atol=0.02 * 0.05)


def measured(task, denoiser, blocks):
    return task.memory_plan(task.loop()).measured(denoiser, blocks)


def test_the_memory_of_a_batch_is_found_from_one_image_and_two(eps_model, vae, clip):
    """It is what a pass of the whole batch keeps."""
    task = task_of(eps_model, clip, vae, adapters.Design(rank=2, layers=""), word=True, batch_size=5)
    stir(task)

    def question(denoiser):
        plan = task.memory_plan(task.loop())
        return *plan.measured(denoiser, own_blocks(denoiser)), replace(plan, size=1).measured(denoiser, own_blocks(denoiser))[0]

    one, batch, exact = inside(task, question)
    assert_close(batch.plain, exact.plain, rtol=1e-3, atol=0)
    assert_close(batch.recomputed, exact.recomputed, rtol=1e-3, atol=0)
    assert one.plain < 0.3 * batch.plain and batch.recomputed < batch.plain / 2


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


@pytest.mark.parametrize("kind", ["sd1", "flux"])
def test_no_copies_of_coarse_text_encoders_are_kept(kind, eps_model, vae, folders, monkeypatch):
    """A model in bfloat16 works on float32 copies of them; autograd would keep one for every sentence."""
    where = [str(folders / "embeddings")]
    given = eps_model, tiny.clip(torch.bfloat16, embedding_directory=where), vae
    if kind == "flux":
        given = tiny_text.denoiser("flux"), tiny_text.clip("flux", where, dtype=torch.bfloat16), tiny_text.vae("flux")
    task = task_of(*given, word=True)
    words = list(task.word.parameters.values())

    def found():
        derivatives = inside(task, lambda denoiser: torch.autograd.grad(task.loss(denoiser, 0), words))
        return derivatives, inside(task, lambda denoiser: measured(task, denoiser, ())[1].plain)

    again, less = found()
    monkeypatch.setattr(checkpointing, "coarse_blocks", lambda modules: [])
    plain, more = found()
    assert all(a.any() and torch.equal(a, b) for a, b in zip(again, plain))
    coarse = [p for p in given[1].cond_stage_model.parameters() if p.dtype == torch.bfloat16 and p.ndim == 2]
    assert more - less > 0.5 * sum(4 * p.numel() for p in coarse if p.numel() < 64 * 1024)


def recomputes(task, free, monkeypatch):
    """Whether blocks of a training run again where `free` bytes are free."""
    monkeypatch.setattr(memory, "get_free_memory", lambda device: free)
    plan = task.memory_plan(task.loop())
    inside(task, plan.blocks)
    return plan.recompute


def needs(task):
    def question(denoiser):
        return measured(task, denoiser, own_blocks(denoiser))[1], denoiser.guider.inner_model.memory_required([4, 4, 8, 8])

    return *inside(task, question), task.loop().to_come()


def test_blocks_run_again_only_where_memory_is_short(eps_model, vae, clip, monkeypatch):
    tasks = {way: task_of(eps_model, clip, vae, checkpointing=way) for way in ("auto", "on", "off")}
    passes, working, learning = needs(tasks["auto"])
    enough, little = passes.plain + learning + working + 1, passes.recomputed + learning + 1
    asked = [("auto", enough), ("auto", enough - 2), ("auto", little), ("on", enough), ("off", enough), ("off", passes.plain + learning + 1)]
    assert [recomputes(tasks[way], free, monkeypatch) for way, free in asked] == [False, True, True, True, False, False]


def test_what_cannot_fit_is_refused_before_the_first_step(eps_model, vae, clip, folders, monkeypatch):
    task = task_of(eps_model, clip, vae, checkpointing="off")
    passes, _, learning = needs(task)
    monkeypatch.setattr(memory, "get_free_memory", lambda device: passes.recomputed + learning)
    told = r"needs about \d+ MB of memory beside the model, and \d+ MB are free: \d+ MB for the backward pass through 4 images at a time, .* what adamw keeps"
    ways = r"set checkpointing to 'on' \(about \d+ MB\); set batch_size to 1 and accumulate to 2 \(about \d+ MB\); take smaller images"
    with torch.inference_mode(False), torch.no_grad(), pytest.raises(ValueError, match=f"{told}.*{ways}"):
        host.finish(task, eps_model, "rex", False)
    assert not list(folders.rglob("*.safetensors"))
    assert not [m for m in eps_model.model.modules() if getattr(m, "weight_function", None)]


def test_peaks_of_memory_are_as_estimated(eps_model, vae, clip):
    """In the backward pass too: what is made again for a block is let go before the next one's."""
    task = task_of(eps_model, clip, vae, data=settings.Data([images(1, 192)]), batch_size=1, weight=0.0)

    def step(denoiser, blocks):
        with checkpointing.recomputed(blocks):
            torch.autograd.grad(task.loss(denoiser, 0), list(task.parameters.values()))

    def found(denoiser):
        return measured(task, denoiser, own_blocks(denoiser))[0], *[peak(partial(step, denoiser, blocks)) for blocks in ((), own_blocks(denoiser))]

    told, plain, again = inside(task, found)
    assert again < 0.6 * plain
    assert 0.7 < told.plain / 1e6 / plain < 1.2 and 0.7 < told.recomputed / 1e6 / again < 1.2


def test_attention_kernels_without_a_derivative_give_way(eps_model, vae, clip):
    task = task_of(eps_model, clip, vae)
    chosen = inside(task, lambda denoiser: denoiser.options["transformer_options"]["optimized_attention_override"])

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


def test_the_benchmark_of_checkpointing_runs(capsys):
    benchmark.main(["--narrow", "--size", "8"])
    assert "largest relative difference of a gradient: 0.0e+00" in capsys.readouterr().out
