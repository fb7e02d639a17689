from functools import partial

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from controlled_diffusion.guidance.diffedit import AUTO
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.diffedit import DiffEditMask, DiffEditSampler
from controlled_diffusion.nodes.host import noise_levels, progress, sampling
from controlled_diffusion.nodes.host.guidance import diffedit, sdedit
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFGWrapper
from controlled_diffusion.nodes.host.inversion.flow_edit import EditPath

from compare import assert_close
from host import inversions, tiny, tiny_dits
from host.sampling import Count, families, half_mask, watched
from host.tiny import conditioning
from host.video import tiny_video_model, video_conditioning
from node_schema import defaults, with_settings

EMPTY, CAT, DOG = conditioning(0), conditioning(1), conditioning(2)
pytestmark = pytest.mark.usefixtures("inference_mode")
model = families(partial(tiny.unet, output_scale=0.1))


def image(batch=1, seed=5, size=8):
    return {"samples": torch.randn(batch, 4, size, size, generator=torch.Generator().manual_seed(seed))}


PAPER = dict(method="DiffEdit (paper)", maps=3, percent=0.5, clamp_ratio=3.0, threshold=0.3)
PATH = "FlowEdit path"
each_method = pytest.mark.parametrize("method", ["DiffEdit", PATH])


def find(model, given=None, source=CAT, target=DOG, vae=None, **knobs):
    """(mask, heat, latent) of DiffEditMask, small."""
    settings = with_settings(DiffEditMask, **dict(method="DiffEdit", seed=3, maps=3, levels=2, steps=4, close=0, threshold=0.75) | knobs)
    return DiffEditMask.execute(model, source, target, image() if given is None else given, vae=vae, **settings).args


def edit(model, given=None, mask=None, positive=DOG, source=CAT, negative=EMPTY, vae=None, **knobs):
    """(latent samples, image) of DiffEditSampler with a few steps."""
    settings = defaults(DiffEditSampler) | dict(steps=4, scheduler="normal", encode_ratio=0.8) | knobs
    given = image() if given is None else given
    latent, shown = DiffEditSampler.execute(model, positive, negative, given, source=source, mask=mask, vae=vae, **settings).args
    return latent["samples"], shown


def test_the_mask_has_the_images_size_and_the_latent_carries_it(model):
    given = image(2)
    mask, heat, latent = find(model, given)
    assert mask.shape == (2, 64, 64) and heat.shape == (2, 64, 64, 3)
    assert set(mask.unique().tolist()) == {0.0, 1.0} and 0 < mask.mean() < 1
    assert torch.equal(latent["samples"], given["samples"]) and torch.equal(latent["noise_mask"][:, 0], mask)


@each_method
def test_equal_prompts_give_an_empty_mask_unevaluated(eps_model, method):
    counted = Count(eps_model)
    mask, heat, latent = find(counted.model, source=CAT, target=conditioning(1), method=method)
    assert not mask.any() and torch.isfinite(heat).all() and not latent["noise_mask"].any()
    assert counted.rows == 0


@each_method
def test_the_mask_of_a_sample_does_not_depend_on_its_batch(model, method):
    both = image(2)
    both["samples"][1] *= 3
    first = find(model, {"samples": both["samples"][:1]}, method=method)[0]
    second = find(model, {"samples": both["samples"][1:], "batch_index": [1]}, method=method)[0]
    together = find(model, {**both, "batch_index": [0, 1]}, method=method)[0]
    assert (together[:1] != first).float().mean() < 0.01 and (together[1:] != second).float().mean() < 0.01


@pytest.mark.parametrize("family", tiny_dits.there(dict.fromkeys(("flux", "sd3", "qwen", "wan", "hunyuan_video"), tiny_dits.DITS["flux"])))
def test_masks_are_found_and_edited_in_on_every_family(family):
    """Wan's and Hunyuan's latents have a time axis; the mask is one for all frames."""
    model, (source, target) = tiny_dits.dit(family), (tiny_dits.text(family, i) for i in (1, 2))
    given = {"samples": torch.randn(tiny_dits.empty(family).shape, generator=torch.Generator().manual_seed(0))}
    for method in ("DiffEdit", PATH):
        mask = find(model, given, source, target, method=method)[0]
        assert mask.ndim == 3 and len(mask) == 1 and mask.any()
    found = inversions.flow_edit(model, given, source, target, None, source_cfg=1.0, cfg=1.0, mask=inversions.half_mask())
    kept, half = (given["samples"], found), given["samples"].shape[-1] // 2
    assert torch.equal(*(x[..., half:] for x in kept)) and not torch.allclose(*(x[..., :half] for x in kept), atol=1e-5)


def noises_of(model, **knobs):
    """What the network is given at every level, (maps, ...) each."""
    seen = {}
    find(watched(model, lambda args: seen.setdefault(float(args["timestep"][0]), []).append(args["input"])), **knobs)
    return [calls for _, calls in sorted(seen.items())]


def test_every_map_has_its_own_noise_shared_by_both_prompts(model):
    """A public implementation draws one noise for all maps."""
    latent = model.model.process_latent_in(image()["samples"])
    flow, noises = model.model.model_type.name == "FLOW", []
    scale = noise_levels.noise_scale(model)
    for percent, (source, target) in zip((0.5, 0.3), noises_of(model)):
        assert torch.equal(source, target)
        sigma = scale.sigma(percent)
        noises += list((source.cpu() - (1 - sigma if flow else 1) * latent) / sigma)
    together = torch.stack(noises).flatten(1)
    assert len(together) == 6
    assert (torch.corrcoef(together) - torch.eye(6)).abs().max() < 0.35
    assert_close(together.std(1), torch.ones(6), atol=0.15, rtol=0)


def test_the_heat_of_the_path_is_how_far_flowedit_moves(model):
    """Between the first and the last quarter of the steps; both prompts see the same noises, fresh at every step."""
    seen = []
    guider = sampling.TwoPrompts(watched(model, lambda args: seen.append(args["input"])), CAT, DOG, CAT, 1.0)
    heat = diffedit.MaskTarget(model, None, image()).heat(guider, EditPath(4, maps=2, seed=3))
    edits = [target - source for source, target in zip(seen[::2], seen[1::2])]
    assert not edits[0].any() and all(torch.allclose(a, b, atol=1e-5) for a, b in edits), "both noises have one edit"
    expected = (edits[3] - edits[1])[:1].abs().mean(1)
    assert_close(diffedit.diffedit.resized(expected, 64, 64), heat, atol=1e-4, rtol=1e-3)
    assert (seen[0][0] - seen[0][1]).abs().max() > 0.1, "the noises differ"


def test_maps_of_other_seeds_differ_and_converge(eps_model):
    def apart(maps):
        guiders = (sampling.TwoPrompts(eps_model, CAT, DOG, CAT, 1.0) for _ in range(2))
        subject = diffedit.MaskTarget(eps_model, None, image())
        one, two = (subject.heat(g, diffedit.MaskSettings([0.5], maps, s, False)) for g, s in zip(guiders, (1, 2)))
        return float((one - two).norm() / one.norm())

    few, many = apart(1), apart(32)
    assert many > 0 and many < 0.45 * few
    assert not set(diffedit.seeds_of(0, 100)) & set(diffedit.seeds_of(1, 100)), "neighboring seeds share a map"


@pytest.mark.parametrize("method, levels", [("DiffEdit", 2), (PATH, 4)])
def test_evaluations_are_counted(model, monkeypatch, method, levels):
    """They are batched, and go one by one where memory is short. The same seed gives the same mask, and leaves the model unchanged."""
    before, told, plain = model.model_options.copy(), [], find(model, method=method)[0]
    assert torch.equal(find(model, method=method)[0], plain) and model.model_options == before
    counted = Count(model)
    monkeypatch.setattr(progress, "say", told.append)
    find(counted.model, maps=5, method=method)
    assert (counted.rows, counted.calls) == (5 * levels * 2, levels * 2) and f"\n{5 * levels * 2} evaluations and " in told[-1]
    counted = Count(model)
    monkeypatch.setattr(type(counted.model), "get_free_memory", lambda self, device: 1.0)
    assert (plain != find(counted.model, method=method)[0]).float().mean() < 0.01 and counted.calls == 3 * levels * 2


def test_other_nodes_guidance_acts_on_the_probe(model):
    patched, seen = model.clone(), []
    patched.set_model_sampler_post_cfg_function(lambda args: seen.append(args["cond_scale"]) or args["denoised"])
    assert torch.equal(find(patched)[0], find(model)[0]) and len(seen) == 4


def test_nodes_that_always_ask_for_the_negative_get_a_true_one(model):
    """The source stands there, where ComfyUI would hand them zeros; guidance between the two only scales the difference."""
    patched, seen = model.clone(), []

    def guided(args):
        seen.append(bool(args["uncond_denoised"].any()))
        return args["uncond"] + 2.0 * (args["cond"] - args["uncond"])

    patched.set_model_sampler_cfg_function(guided, disable_cfg1_optimization=True)
    assert (find(patched)[0] != find(model)[0]).float().mean() < 0.01 and seen == [True] * 4


def test_an_image_gets_a_mask_of_its_size(model, vae):
    given = torch.rand(1, 72, 64, 3, generator=torch.Generator().manual_seed(1))
    mask, heat, latent = find(model, given, vae=vae)
    assert mask.shape == (1, 72, 64) and heat.shape == (1, 72, 64, 3) and torch.equal(mask, latent["noise_mask"][:, 0])


@pytest.mark.parametrize("run", [find, edit], ids=["mask", "sampler"])
def test_an_image_that_the_vae_would_cut_is_refused(eps_model, vae, run):
    with pytest.raises(ValueError, match=r"'image' is 67 x 71 pixels, but this VAE takes multiples of 8 .* to 64 x 64\."):
        run(eps_model, torch.rand(1, 71, 67, 3), vae=vae)


def test_refining_needs_the_vae_and_changes_the_edges(model, vae):
    coarse, fine = (find(model, vae=vae, refine=r)[0] for r in (False, True))
    assert torch.equal(coarse, find(model, refine=True)[0]) and not torch.equal(coarse, fine)


def test_every_knob_of_the_mask_changes_it(eps_model, vae):
    usual = find(eps_model, vae=vae)[0]
    knobs = dict(
        threshold=0.9, close=0.02, open=0.05, dilate=0.08, blur=0.06, soft=True, method=PAPER, start_percent=0.1, maps=4, levels=1,
    )  # fmt: skip
    for name, value in knobs.items():
        assert not torch.equal(find(eps_model, vae=vae, **{name: value})[0], usual), name
    for knobs in (dict(steps=5), dict(maps=4), dict(refine=False), dict(threshold=0.9)):
        assert not torch.equal(find(eps_model, vae=vae, method=PATH, **knobs)[0], find(eps_model, vae=vae, method=PATH)[0]), knobs
    three, six = (find(eps_model, vae=vae, method=PAPER | dict(clamp_ratio=c))[0] for c in (3.0, 6.0))
    assert not torch.equal(three, six)


def test_the_papers_method_is_one_level_against_the_mean(eps_model):
    """Nothing closes its holes unless asked to."""
    counted = Count(eps_model)
    mask = find(counted.model, method=PAPER, close=AUTO)[0]
    guider = sampling.TwoPrompts(eps_model, CAT, DOG, CAT, 1.0)
    heat = diffedit.MaskTarget(eps_model, None, image()).heat(guider, diffedit.MaskSettings([0.5], 3, 3, False))
    assert counted.rows == 3 * 2 and torch.equal(mask > 0, heat > 0.9 * heat.mean((1, 2), keepdim=True))


def test_a_painted_mask_is_the_mask_and_an_empty_one_is_none(eps_model, vae):
    """Load Image gives one of 64 x 64 zeros where nothing was painted."""
    given, count, ring = torch.rand(1, 96, 64, 3), Count(eps_model), torch.zeros(1, 96, 64)
    ring[:, 8:56, 8:56], ring[:, 16:48, 16:48] = 0.9, 0
    mask, _, latent = find(count.model, given, vae=vae, painted=ring, close=AUTO)
    assert torch.equal(mask, ring.ceil()) and torch.equal(latent["noise_mask"][:, 0], mask) and count.calls == 0
    assert find(count.model, given, vae=vae, painted=ring, dilate=0.05)[0].sum() > mask.sum()
    assert_close(find(count.model, given, vae=vae, painted=ring, soft=True)[0], ring)
    nothing = find(count.model, given, vae=vae, painted=torch.zeros(1, 64, 64))[0]
    assert torch.equal(nothing, find(eps_model, given, vae=vae)[0]) and count.calls > 0
    with pytest.raises(ValueError, match="The mask is 64 x 64 but the latent 8 x 12, of another shape"):
        find(eps_model, given, vae=vae, painted=torch.eye(64)[None])


def masked(model, latent, *settings):
    """What KSampler makes of the latent under the mask that it carries."""
    noise, more = comfy.sample.prepare_noise(latent["samples"], 3), dict(denoise=0.6, disable_pbar=True, seed=3)
    return comfy.sample.sample(model, noise, *settings, latent["samples"], noise_mask=latent["noise_mask"], **more)


@each_method
def test_a_video_gets_one_mask_for_all_its_frames(method):
    model = tiny_video_model()
    given = {"samples": torch.randn(2, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    one, two, none = (video_conditioning(i) for i in (1, 2, 0))
    mask, _, latent = find(model, given, source=one, target=two, method=method)
    assert mask.shape == (2, 64, 64) and latent["noise_mask"].shape == (2, 1, 1, 64, 64)
    framed = {**given, "noise_mask": torch.ones(2, 1, 3, 8, 8)}  # as ComfyUI's video nodes set it
    assert torch.equal(find(model, framed, source=one, target=two, method=method)[0], mask)
    after = masked(model, latent, 2, 1.0, "euler", "simple", two, none)
    kept = comfy.sampler_helpers.prepare_mask(latent["noise_mask"], given["samples"].shape, "cpu") == 0
    assert kept.any() and not kept.all()
    assert_close(after[kept], given["samples"][kept], atol=1e-5, rtol=1e-5)


def test_a_plain_ksampler_changes_only_the_mask(model):
    latent = find(model)[2]
    after = masked(model, latent, 4, 2.0, "euler", "normal", DOG, EMPTY)
    within = comfy.sampler_helpers.prepare_mask(latent["noise_mask"], after.shape, "cpu")
    assert_close(after[within == 0], latent["samples"][within == 0], atol=1e-5, rtol=1e-5)
    assert (after - latent["samples"])[within > 0].abs().max() > 0.01


def by_hand(model, given, steps=4, cfg=4.0, ratio=0.8):
    """DDIM encoding and plain DDIM denoising through ComfyUI's `sampling_function`, written out: the edit without a mask."""
    sigmas = sdedit.sigmas(model, ratio, "percent", "VP", steps, "normal")
    flow = model.model.model_type.name == "FLOW"

    class CallbackSampler(comfy.samplers.Sampler):
        def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
            x, one, own = latent_image, latent_image.new_ones([1]), guider.conds["positive"]
            for now, goal in zip(sigmas.flip(0), sigmas.flip(0)[1:]):
                guider.conds["positive"], guider.cfg = guider.conds["source"], 1.0
                seen = x if flow else x * ((1 + goal**2) / (1 + now**2)).sqrt()
                x = x + (goal - now) * (seen - guider(seen, goal * one, **extra_args)) / goal
            for now, goal in zip(sigmas, sigmas[1:]):
                guider.conds["positive"], guider.cfg = own, cfg
                x = x + (goal - now) * (x - guider(x, now * one, **extra_args)) / now
            return x

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": DOG, "negative": EMPTY, "source": CAT})
    return guider.sample(torch.zeros_like(given["samples"]), given["samples"], CallbackSampler(), sigmas, disable_pbar=True, seed=0)


@pytest.mark.parametrize("rule", ["trajectory", "clean mix"])
def test_without_a_mask_it_is_the_plain_ddim_inversion_edit(model, rule):
    expected = by_hand(model, image())
    assert_close(edit(model, rule=rule)[0], expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(edit(model, rule=rule, mask=torch.ones(1, 64, 64))[0], edit(model, rule=rule)[0])


@pytest.mark.parametrize("rule", ["trajectory", "clean mix"])
def test_off_the_mask_the_latent_is_the_originals_bit_for_bit(model, rule):
    given = image(2)
    result, _ = edit(model, given, half_mask(), rule=rule)
    assert torch.equal(result[..., :4], given["samples"][..., :4])
    assert not torch.allclose(result[..., 4:], given["samples"][..., 4:], atol=1e-2)
    assert torch.equal(edit(model, given, torch.zeros(1, 64, 64), rule=rule)[0], given["samples"])


def test_every_image_of_a_batch_has_its_own_mask(model):
    masks = torch.cat([half_mask(), 1 - half_mask()])
    given = image(2)
    result, _ = edit(model, given, masks)
    assert torch.equal(result[0, ..., :4], given["samples"][0, ..., :4]) and torch.equal(result[1, ..., 4:], given["samples"][1, ..., 4:])
    assert not torch.allclose(result[0, ..., 4:], given["samples"][0, ..., 4:], atol=1e-2)


def test_the_inputs_of_the_edit_act(model):
    """Rules differ; a latent's own mask is used; nothing is encoded at ratio 0; without a source the negative encodes."""
    given, hard, other = image(), *(edit(model, mask=half_mask(), rule=r)[0] for r in ("trajectory", "clean mix"))
    assert not torch.allclose(hard, other, atol=1e-4)
    assert torch.equal(edit(model, {**given, "noise_mask": half_mask()}, rule="trajectory")[0], hard)
    assert torch.equal(edit(model, encode_ratio=0.0)[0], given["samples"])
    assert torch.equal(edit(model, source=None)[0], edit(model, source=EMPTY)[0])
    assert isinstance(edit(model)[1], ExecutionBlocker), "without a vae there is no image"


def test_a_soft_mask_blends_and_keeps_its_zeros(model):
    given, soft = image(), 0.5 * half_mask()
    result = edit(model, given, soft, soft=True)[0]
    hard = edit(model, given, half_mask())[0]
    assert torch.equal(result[..., :4], given["samples"][..., :4])
    assert not torch.allclose(result, hard, atol=1e-3) and not torch.allclose(result, given["samples"], atol=1e-3)


def test_evaluations_of_the_edit(model):
    for cfg, rows in ((1.0, 4 + 4), (4.0, 4 + 8)):
        counted = Count(model)
        edit(counted.model, cfg=cfg, mask=half_mask())
        assert counted.rows == rows, cfg


def test_pixels_off_the_mask_are_the_images_own(model, vae):
    """A hard edit cuts the mask at one half."""
    given, mask = torch.rand(1, 72, 64, 3), torch.zeros(1, 72, 64)
    mask[:, 40:] = 1
    _, image = edit(model, given, mask, vae=vae)
    assert image.shape == given.shape
    assert torch.equal(image[:, :40], given[:, :40]) and not torch.allclose(image[:, 48:], given[:, 48:], atol=1e-2)
    given = given[:, :64]
    (latent, image), (sharp, clear) = (edit(model, given, m, vae=vae) for m in (0.3 + 0.5 * half_mask(), half_mask()))
    assert torch.equal(latent, sharp) and torch.equal(image, clear) and torch.equal(image[:, :, :32], given[:, :, :32])
    latent, image = edit(model, given, 0.5 * half_mask(), vae=vae, soft=True)
    assert_close(image[:, :, 32:], 0.5 * (given + vae.decode(latent))[:, :, 32:])


def test_channels_of_multi_cfg_patch_act_in_the_denoising_alone():
    model, rows = tiny.unet("eps"), []
    model.model.diffusion_model.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    edit(MultiCFGWrapper([Channel(conditioning(4), 2.0)]).install(model))
    assert rows == [1] * 4 + [3] * 4


def test_video_latents_are_edited_under_one_mask_each():
    given = {"samples": torch.randn(2, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    prompts = dict(zip(("positive", "source", "negative"), (video_conditioning(i) for i in (1, 2, 0))))
    masks = torch.cat([half_mask(), 1 - half_mask()])
    result, _ = edit(tiny_video_model(), given, masks, **prompts, steps=2)
    assert result.shape == given["samples"].shape
    assert torch.equal(result[0, ..., :4], given["samples"][0, ..., :4]) and torch.equal(result[1, ..., 4:], given["samples"][1, ..., 4:])
    assert not torch.allclose(result[0, ..., 4:], given["samples"][0, ..., 4:], atol=1e-3)


@pytest.mark.parametrize("act", [find, partial(find, method=PATH), edit], ids=["mask", "path", "sampler"])
def test_it_stops_within_a_step_when_the_user_cancels(eps_model, act):
    model, calls = inversions.interrupting(eps_model)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        act(model)
    assert len(calls) == 1


@pytest.mark.parametrize("act, which", [(find, "source"), (find, "target"), (edit, "source"), (edit, "negative")])
def test_a_conditioning_that_is_off_at_a_level_is_refused(eps_model, act, which):
    late = [[CAT[0][0], {**CAT[0][1], "start_percent": 0.95, "end_percent": 1.0}]]
    with pytest.raises(ValueError, match=f"The {which.replace('target', 'positive')} conditioning is not active at sigma .* encode_ratio"):
        act(eps_model, **{which: late})


@pytest.mark.parametrize(
    "act, knobs, message",
    [
        (find, dict(threshold=2.0), "threshold is 2; give 0 to 1"),
        (find, dict(levels=0), "0 probe levels; give 1"),
        (find, dict(start_percent=0.7, end_percent=0.2), "start_percent 0.7 to end_percent 0.2"),
        (find, dict(method=PAPER | dict(clamp_ratio=0.0)), "clamp_ratio is 0.0"),
        (find, dict(target=[[torch.zeros(1, 77, 768), {}]]), "target has text features of width 768, but BaseModel takes 64"),
        *((act, dict(given=torch.rand(1, 64, 64, 3)), "is an IMAGE, which needs the vae") for act in (find, edit)),
        (find, dict(given={"samples": torch.zeros(1, 4, 64)}), "'image' is a latent of 1 x 4 x 64, but that of images or a video"),
        (edit, dict(encode_ratio=1.2), "strength is 1.2 percent; give 0"),
        (edit, dict(mask=torch.eye(128)[None, :64]), "The mask is 128 x 64 but the latent 8 x 8, of another shape"),
        (edit, dict(mask=torch.ones(3, 64, 64)), "mask holds 3 images"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(eps_model, act, knobs, message):
    with pytest.raises(ValueError, match=message):
        act(eps_model, **knobs)
