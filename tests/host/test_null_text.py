"""Null-text inversion in the real ComfyUI."""

from functools import partial

import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import comfy.samplers
import comfy.sd
import nodes
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import RescaleCFG
from controlled_diffusion.guidance.multi_cfg import Channel, Rules
from controlled_diffusion.inversion.null_text import threshold
from controlled_diffusion.inversion.quality import psnr
from controlled_diffusion.nodes.host import checkpointing, gradients
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFGWrapper
from controlled_diffusion.nodes.host.inversion import inversion_files
from controlled_diffusion.nodes.inversion_files import SaveInversion
from controlled_diffusion.nodes.null_text import NullTextInverter

from compare import assert_close
from demo.shapes_world import SHAPES
from harness.demo_images import SCHEDULER, Studio
from host import inversions, tiny, tiny_text
from host.inversions import EMPTY, SOURCE, apart, euler, image, interrupting, on_positives, smooth
from host.sampling import Count, families
from measures.controlnet import controlled
from measures.inversion import change, images, prompts

pytestmark = pytest.mark.usefixtures("inference_mode")
CFG, STEPS = 5.0, 4
small = partial(smooth, scale=0.3)
model = families(small)


def invert(model, latent, source=SOURCE, **settings):
    return inversions.invert("null-text", model, latent, source, **dict(cfg=CFG, steps=STEPS, early_stop=0.0) | settings)


def sample(model, inversion, cfg=CFG, **inputs):
    return inversions.sample(model, inversion, cfg, **inputs)


def losses(inversion) -> tuple:
    """(loss of each step at its start, and at its end), (steps, images)."""
    return inversion.trajectory.extras["first_losses"], inversion.trajectory.extras["losses"]


@pytest.mark.parametrize("settings", [dict(start="source"), dict(start="empty", negative=EMPTY), dict(optimizer="adam", inner_steps=5)])
def test_the_reconstruction_improves_and_no_loss_grows(model, settings):
    latent = image()
    inversion = invert(model, latent, **settings)[0]
    plain = invert(model, latent, **settings | dict(inner_steps=0))[0]
    assert apart(sample(model, inversion), latent["samples"]) < apart(sample(model, plain), latent["samples"])
    first, last = losses(inversion)
    assert first.shape == (STEPS, 1) and bool((last <= first).all()) and bool((last < first).any())
    assert last.sum() < plain.trajectory.extras["losses"].sum()


def test_without_inner_steps_it_is_ddim_inversion(model):
    latent = image()
    found = invert(model, latent, inner_steps=0, start="empty", negative=EMPTY)[0]
    ddim = inversions.invert("ddim", model, latent, steps=STEPS)[0]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(found.trajectory.states, ddim.trajectory.states))
    assert torch.equal(sample(model, found), sample(model, ddim, negative=EMPTY))


def test_settings_reach_the_method_and_the_trajectory():
    model, latent = small("flow"), image()
    found = invert(model, latent, smoothness=0.5, optimizer="adam", learning_rate=0.02)[0]
    assert (found.method.smoothness, found.method.optimizer, found.method.learning_rate) == (0.5, "adam", 0.02)
    assert apart(sample(model, invert(model, latent, end_percent=0.4)[0]), latent["samples"]) < 0.2


@pytest.mark.parametrize("wrapped", [False, True])
def test_evaluations_are_counted_a_gradient_as_two(wrapped):
    """A node on the model may tell positive and negative apart, so that the source is asked for both."""
    model, rows = small("v"), []
    model.model.diffusion_model.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    found = invert(Count(model).model if wrapped else model, image())[0]
    gradients_taken = int(found.trajectory.extras["gradients"].sum())
    assert gradients_taken == 3 * STEPS and sum(rows) == STEPS + (5 if wrapped else 4) * STEPS
    assert found.evaluations == sum(rows) + 2 * gradients_taken


def test_negative_and_noise_serve_a_stock_sampler(model):
    inversion, latent, noise, sigmas, negative, _ = invert(model, image(2))
    blank = torch.zeros_like(latent["samples"])
    made = euler(model, blank, noise.generate_noise({"samples": blank}), sigmas, CFG, negative=negative)
    assert_close(made, sample(model, inversion), atol=1e-4, rtol=1e-4)


def test_every_sigma_has_the_embedding_of_its_step():
    model = small("eps")
    inversion, *_, negative, _ = invert(model, image(), steps=12)
    assert len(negative) == 12
    sigmas = inversion.trajectory.sigmas
    for i, (here, after) in enumerate(zip(sigmas, sigmas[1:])):
        inside = torch.linspace(here, max(after * 1.001, after + 1e-4), 50).float()
        edges = [torch.tensor(v[key]).float() for key in ("timestep_start", "timestep_end") for _, v in negative]
        near = [e for e in edges if after < float(e) <= here]
        for sigma in [*inside, *near]:
            active = [k for k, (_, v) in enumerate(negative) if v["timestep_end"] <= float(sigma) <= v["timestep_start"]]
            assert len(active) == 1, float(sigma)
        assert negative[i][1]["timestep_end"] <= here <= negative[i][1]["timestep_start"]


@pytest.mark.parametrize("family", ["v", "flow"])
def test_a_batch_with_its_own_prompts_is_its_images(family):
    model, latent = tiny.unet(family, output_scale=0.1, **tiny.ONE_LEVEL), image(4)
    sources = torch.cat([tiny.conditioning(i)[0][0] for i in range(4)])
    options = dict(early_stop=10.0, inner_steps=2)  # so that some stop earlier than others
    together = invert(model, latent, [[sources, {}]], **options)[0]
    alone = [invert(model, {"samples": x[None]}, [[s[None], {}]], **options)[0] for x, s in zip(latent["samples"], sources)]
    assert torch.equal(together.trajectory.extras["gradients"], torch.cat([a.trajectory.extras["gradients"] for a in alone], 1))
    assert_close(sample(model, together), torch.cat([sample(model, a) for a in alone]), atol=2e-3, rtol=2e-3)


def test_runs_repeat_and_leave_neither_changes_nor_graphs():
    """The loss curve is an image."""
    model = small("eps")
    weights = {k: v.clone() for k, v in model.model.state_dict().items()}
    (first, latent, _, _, negative, curve), (second, *_) = (invert(model, image()) for _ in range(2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first.null, second.null))
    assert all(torch.equal(v, weights[k]) for k, v in model.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())
    assert not comfy.model_management.in_training
    states = [c[0] for c in first.trajectory.states]
    found = [*(e for e, _ in negative), *first.trajectory.extras.values(), *states, latent["samples"], curve]
    assert not any(t.requires_grad or t.grad_fn for t in found)
    assert curve.shape[0] == 1 and curve.shape[-1] == 3
    assert float(curve.min()) >= 0 and float(curve.max()) <= 1 and float(curve.std()) > 0.01


@pytest.mark.parametrize("call", [STEPS + 2, STEPS + 12], ids=["first step", "later step"])
def test_cancelled_while_optimizing_it_stops(call):
    model, calls = interrupting(small("eps"), call)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        invert(model, image())
    assert len(calls) == call


def test_its_file_brings_everything_back(folders):
    model = small("v")
    found = invert(model, image(2))[0]
    back = inversion_files.load(SaveInversion.execute(found, "null").args[1])
    assert back.method == found.method and len(back.null) == STEPS
    for (ours, mine), (theirs, other) in zip(back.null, found.null):
        assert torch.equal(ours, theirs) and mine["timestep_end"] == other["timestep_end"]
    assert torch.equal(sample(model, back), sample(model, found))
    assert torch.equal(back.trajectory.extras["losses"], found.trajectory.extras["losses"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_are_optimized_in_float32(dtype):
    model, latent = small("eps"), image()
    model.model.diffusion_model.to(dtype)
    model.model.diffusion_model.dtype = dtype
    inversion = invert(model, latent, cfg=8.0)[0]
    assert {e.dtype for e, _ in inversion.null} == {torch.float32}
    first, last = losses(inversion)
    assert bool((last < first).any()) and bool(inversion.null[0][0].isfinite().all())
    exact = invert(small("eps"), latent, cfg=8.0)[0]
    assert float(last.sum()) < 1.5 * float(exact.trajectory.extras["losses"].sum())


@pytest.mark.parametrize("term", ["l1", "perceptual"])
def test_image_terms_pull_the_prediction_towards_the_image(term, vae):
    model, latent, seen = small("eps"), image(), []
    for weight in (0.0, 50.0):
        found = invert(model, latent, vae=vae, **{term: weight})[0]
        seen.append(vae.decode(sample(model, found)))
    assert not torch.equal(*seen)


def test_unfinished_images_keep_their_pooled_vectors():
    model, clip, latent = tiny_text.denoiser("sdxl"), tiny_text.clip("sdxl"), image(2)
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in ("a cat", "two dogs on a red sofa")]
    both = [[torch.cat([p[0] for p in prompts]), {"pooled_output": torch.cat([p[1]["pooled_output"] for p in prompts])}]]
    loss = losses(invert(model, latent, both, cfg=3.0, steps=2, inner_steps=0)[0])[1][0]
    knobs = dict(cfg=3.0, steps=2, inner_steps=3, early_stop=float(loss.mean()) / threshold(0, 2))
    together = invert(model, latent, both, **knobs)[0]
    alone = [invert(model, {"samples": x[None]}, [p], **knobs)[0] for x, p in zip(latent["samples"], prompts)]
    assert sorted(together.trajectory.extras["gradients"][0].tolist())[0] == 0 < together.trajectory.extras["gradients"][0].max()
    assert_close(together.trajectory.extras["losses"][0], torch.cat([a.trajectory.extras["losses"][0] for a in alone]), atol=1e-6, rtol=1e-3)
    assert_close(together.null[0][0], torch.cat([a.null[0][0] for a in alone]), atol=1e-3, rtol=1e-3)


def test_unfinished_images_keep_their_own_of_fewer_pooled_vectors():
    """ComfyUI repeats the rows of a source over a larger batch."""
    model, clip = tiny_text.denoiser("sdxl"), tiny_text.clip("sdxl")
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in ("a cat", "two dogs on a red sofa")]
    latent = {"samples": image(4)["samples"] * torch.tensor([1.5, 1.0, 1.5, 0.2]).view(4, 1, 1, 1)}
    both = [[torch.cat([p[0] for p in prompts]), {"pooled_output": torch.cat([p[1]["pooled_output"] for p in prompts])}]]
    loss = losses(invert(model, latent, both, cfg=3.0, steps=2, inner_steps=0)[0])[1][0]
    knobs = dict(cfg=3.0, steps=2, inner_steps=3, early_stop=float(loss.sort().values[-2:].mean()) / threshold(0, 2))
    together = invert(model, latent, both, **knobs)[0]
    alone = [invert(model, {"samples": x[None]}, [p], **knobs)[0] for x, p in zip(latent["samples"], prompts * 2)]
    assert together.trajectory.extras["gradients"][0].tolist()[1] > 0 == together.trajectory.extras["gradients"][0, [0, 2, 3]].max()
    assert_close(together.trajectory.extras["losses"][0], torch.cat([a.trajectory.extras["losses"][0] for a in alone]), atol=1e-6, rtol=1e-3)
    assert_close(together.null[0][0], torch.cat([a.null[0][0] for a in alone]), atol=1e-3, rtol=1e-3)


def of_kind(kind):
    """(model, source, latent) of a family."""
    clip = tiny_text.clip(kind)
    source = clip.encode_from_tokens_scheduled(clip.tokenize("a cat"))
    return tiny_text.denoiser(kind), source, image(channels=4 if kind == "sdxl" else 16)


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_the_text_inputs_of_other_families(kind):
    model, source, latent = of_kind(kind)
    inversion = invert(model, latent, source, cfg=3.0)[0]
    first, last = losses(inversion)
    assert bool((last <= first).all()) and float(last.sum()) < float(first.sum())
    assert torch.equal(inversion.null[0][1]["pooled_output"], source[0][1]["pooled_output"])
    assert inversion.null[0][0].shape == source[0][0].shape


def test_attention_kernels_without_a_derivative_are_not_used(monkeypatch):
    model, seen = tiny.unet("eps", output_scale=0.3, **tiny.ONE_LEVEL), []

    def attention_sage(q, k, v, heads, **kwargs):
        seen.append(q.requires_grad or k.requires_grad)
        return host_attention.attention_pytorch(q.detach(), k.detach(), v.detach(), heads, **kwargs)

    monkeypatch.setattr(host_attention, "optimized_attention", host_attention.wrap_attn(attention_sage))
    first, last = losses(invert(model, image())[0])
    assert seen and not any(seen) and bool((last < first).any())


@pytest.mark.parametrize("kind", ["unet", "sd3", "flux"])
def test_checkpointing_gives_the_same_gradients(kind):
    model, source, latent = (tiny.unet("eps", output_scale=0.3), SOURCE, image()) if kind == "unet" else of_kind(kind)
    plain, again = (invert(model, latent, source, inner_steps=2, cfg=3.0, checkpointing=c)[0] for c in (False, True))
    one, other = (torch.cat([embedding - source[0][0] for embedding, _ in found.null]) for found in (plain, again))
    assert float(one.norm()) > 0.01 and apart(other, one) < 0.01


def test_checkpointing_keeps_less_for_the_backward_pass():
    model, kept = tiny.unet("eps"), {}
    with gradients.differentiable():
        gradients.to_normal_tensors(model.model)
        x, context = image()["samples"].clone(), SOURCE[0][0].clone().requires_grad_(True)
        for name, blocks in (("plain", []), ("again", checkpointing.blocks_of(model.model))):
            sizes = []
            with (
                torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t),
                checkpointing.recomputed(blocks),
            ):
                model.model.diffusion_model(x, torch.tensor([5.0]), context=context)
            kept[name] = sum(sizes)
    assert kept["again"] < kept["plain"] / 5


def test_a_lora_takes_part():
    model = small("eps")
    changed, _ = comfy.sd.load_lora_for_models(model, None, tiny.lora(model), 1.0, 0.0)
    latent = image()
    found = invert(changed, latent)[0]
    first, last = losses(found)
    assert bool((last < first).any())
    assert_close(sample(changed, found), sample(changed, invert(changed, latent)[0]))
    assert apart(sample(changed, found), latent["samples"]) < apart(sample(model, found), latent["samples"])


def rescaled(model):
    """A node that changes guidance, of the host."""
    return RescaleCFG().patch(model, 0.7)[0]


def before_cfg(model):
    """A node with a pre-CFG function."""
    patched = model.clone()
    patched.set_model_sampler_pre_cfg_function(lambda args: [args["conds_out"][0], 0.9 * args["conds_out"][1]])
    return patched


def after_cfg(model):
    """A node with a post-CFG function."""
    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + 0.1 * (args["cond_denoised"] - args["uncond_denoised"]))
    return patched


def own_predictions(model):
    """A node that calls the network by itself, as ComfyUI's Skip Layer Guidance (Simple) does."""

    def predict(args):
        model, x, sigma, options = (args[k] for k in ("model", "input", "sigma", "model_options"))
        positive, negative = comfy.samplers.calc_cond_batch(model, args["conds"], x, sigma, options)
        return [positive, negative + 0.1 * (positive - negative)]

    patched = model.clone()
    patched.set_model_sampler_calc_cond_batch_function(predict)
    return patched


def with_channel(model):
    return MultiCFGWrapper([Channel(tiny.conditioning(5), 1.0)]).install(model)


def with_capped_channel(model):
    """A channel whose null is the embedding, with rules that need the negative's prediction."""
    return MultiCFGWrapper([Channel(tiny.conditioning(5), 1.0)], Rules(norm_cap=5.0)).install(model)


def check_losses(model, inversion, latent):
    """The reported loss of the last step is that of the reconstruction."""
    left = (sample(model, inversion) - latent["samples"]).square().mean() * model.model.latent_format.scale_factor**2
    assert_close(losses(inversion)[1][-1].mean(), left, atol=1e-6, rtol=1e-2)


@pytest.mark.parametrize("settings", [dict(start="source"), dict(start="empty", negative=EMPTY)], ids=["source", "empty"])
@pytest.mark.parametrize("node", [rescaled, on_positives, before_cfg, after_cfg, own_predictions, with_channel, with_capped_channel])
def test_other_nodes_guidance_is_part_of_the_loss(node, settings):
    plain, latent = small("eps"), image()
    model = node(plain)
    found, blind = (invert(m, latent, **settings)[0] for m in (model, plain))
    first, last = losses(found)
    assert bool((last < first).any())
    check_losses(model, found, latent)
    assert not torch.equal(sample(model, found), sample(model, blind))
    if node in (rescaled, on_positives):  # the others lead a random model so far away that the first steps decide
        assert apart(sample(model, found), latent["samples"]) < apart(sample(model, blind), latent["samples"])


def test_models_that_it_cannot_optimize_are_refused(monkeypatch):
    """Dynamic ones, several GPUs, guidance that gradients cannot follow, embeddings that the model changes, untried checkpointing."""

    def refused(message, model, **settings):
        with pytest.raises(ValueError, match=message):
            invert(model, image(), **settings)

    model = small("eps")
    refused(r"loaded dynamically.*--disable-dynamic-vram", tiny.dynamic(model))
    model.model_options["multigpu_clones"] = {}
    refused("Null-text inversion runs on one GPU", model)
    model = small("eps")
    model.add_wrapper(WrappersMP.PREDICT_NOISE, lambda executor, x, *args: executor(x, *args).detach())
    refused(r"A node on the model makes the predictions of guidance by itself.* Negative-Prompt Inverter", model)
    model = small("eps")
    own = model.model.extra_conds
    model.model.extra_conds = lambda **kw: own(**{**kw, "cross_attn": kw["cross_attn"] * 2})
    refused("BaseModel does not take text features as they are", model)
    monkeypatch.setattr(checkpointing, "RECOMPUTABLE", {})
    refused("checkpointing was not tried with BaseModel", small("eps"), checkpointing=True)


@pytest.fixture(scope="module")
def demo():
    """The demo model with a real image, its latent and its prompts."""
    studio = Studio()
    with torch.inference_mode():
        wish = change(0)
        source, target = prompts(studio, [wish])
        return studio, source, target, studio.vae.encode(images([wish]))


def test_stock_ksampler_gives_the_image_back_with_the_outputs(demo):
    studio, source, _, latent = demo
    steps, cfg = 10, 7.5
    _, noisy, _, _, negative, _ = NullTextInverter.execute(studio.model, source, {"samples": latent}, steps, SCHEDULER, 0.0, cfg).args

    def quality(negative):
        settings = (steps, cfg, "euler", SCHEDULER, source, negative, noisy, 0, steps, "disable")
        made = nodes.KSamplerAdvanced().sample(studio.model, "disable", 0, *settings)[0]
        return float(psnr(studio.vae.decode(made["samples"]), studio.vae.decode(latent)))

    near = quality(negative)
    assert near > 33 and quality(studio.prompt("")) < near - 10


@pytest.mark.parametrize("start, old_node", [("source", False), ("empty", True)], ids=["of both prompts", "of the positive, for both"])
def test_a_controlnet_stays_with_every_embedding(demo, start, old_node):
    studio, source, _, latent = demo
    hints, empty = torch.zeros(1, 128, 128, 3), studio.prompt("")
    hints[:, 32:96, 32:96] = 1
    if old_node:
        control = comfy.controlnet.load_controlnet(str(SHAPES.files.controlnet))
        source = nodes.ControlNetApply().apply_controlnet(source, control, hints, 1.0)[0]
    else:
        source = controlled(SHAPES.files.controlnet, source, hints, empty)[0]
    settings = dict(cfg=4.0, scheduler=SCHEDULER, start=start, negative=empty, inner_steps=1)
    found = invert(studio.model, {"samples": latent}, source, **settings)[0]
    first, last = losses(found)
    assert bool((last < first).any())
    assert all("control" in extras for _, extras in found.null)
    last = found.trajectory.extras["losses"][-1]
    made = sample(studio.model, found, 4.0)
    left = (studio.model.model.process_latent_in(made) - found.trajectory.states[-1][0]).square().mean()
    assert_close(left, last.mean(), atol=1e-7, rtol=0.05)
