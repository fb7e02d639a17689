"""FlowEdit in the real ComfyUI."""

from functools import partial

import comfy.model_management
import comfy.samplers
import nodes
import pytest
import torch
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.flow_edit import FlowEditLatentSampler
from controlled_diffusion.nodes.host.attention.word_regions import WordRegions
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFGWrapper
from controlled_diffusion.nodes.host.prompts import encoded

from compare import assert_close
from host import inversions, tiny
from host.editing import ON_MARKED, last_run
from host.inversions import EMPTY, SOURCE, TARGET, apart, image, interrupting
from host.inversions import flow_edit as edit
from host.sampling import Count, families, half_mask
from host.test_word_regions import regional
from host.video import tiny_video_model, video_conditioning
from node_schema import with_settings

pytestmark = pytest.mark.usefixtures("inference_mode")
STEPS = 6
model = families(partial(tiny.unet, output_scale=0.2))


def test_the_targets_controlnet_does_not_reach_the_source():
    model, hint = tiny.unet("flow", output_scale=0.2), torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    old, new, control = nodes.ControlNetApply(), nodes.ControlNetApplyAdvanced(), (tiny.controlnet(), hint, 1.0)
    same = dict(source=TARGET, source_cfg=1.0, cfg=1.0)
    assert apart(edit(model, positive=TARGET, **same), image()["samples"]) < 1e-4
    for positive, *_ in (old.apply_controlnet(TARGET, *control), new.apply_controlnet(TARGET, EMPTY, *control, 0.0, 1.0)):
        assert apart(edit(model, positive=positive, **same), image()["samples"]) > 0.01


class ByHand(comfy.samplers.Sampler):
    """FlowEdit through ComfyUI's `sampling_function`, written out with denoised predictions and ComfyUI's own noising."""

    def __init__(self, seed, n_avg):
        self.seed, self.n_avg = seed, n_avg

    def predicted(self, guider, x, sigma, prompt, cfg, extra_args):
        options, conds = extra_args["model_options"], guider.conds
        return comfy.samplers.sampling_function(guider.inner_model, x, sigma.expand(len(x)), conds["negative"], conds[prompt], cfg, options)

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        draw, x0, edited = torch.Generator().manual_seed(self.seed), latent_image, latent_image
        for now, goal in zip(sigmas, sigmas[1:]):
            velocity = 0
            for _ in range(self.n_avg):
                n = torch.randn(1, *x0.shape[1:], generator=draw).to(x0.device).expand_as(x0)
                zs = guider.inner_model.model_sampling.noise_scaling(now, n, x0)
                zt = edited + zs - x0
                before = self.predicted(guider, zs, now, "source", 1.5, extra_args)
                after = self.predicted(guider, zt, now, "positive", 4.0, extra_args)
                velocity = velocity + (edited - x0 - after + before) / now / self.n_avg
            edited = edited + (goal - now) * velocity
        return edited


@pytest.mark.parametrize("n_avg", [1, 2])
def test_it_is_the_papers_algorithm_with_comfyuis_guidance(model, n_avg):
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)[-5:]
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": TARGET, "negative": EMPTY, "source": SOURCE})
    given = image()["samples"]
    expected = guider.sample(torch.zeros_like(given), given, ByHand(9, n_avg), sigmas, disable_pbar=True, seed=0)
    found = edit(model, seed=9, n_avg=n_avg)
    assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert apart(found, given) > 1e-2


def align(model, zeta=0.01, **settings):
    method = {"method": "FlowAlign", "cfg": 4.0, "zeta": zeta}
    return edit(model, negative=None, method=method, **settings)


def test_flowalign_guides_away_from_the_source_in_three_evaluations(model):
    """Without its pull it is FlowEdit with the source as negative and no guidance under the source."""
    assert torch.equal(align(model, 0.0), edit(model, negative=SOURCE, source_cfg=1.0, cfg=4.0))
    assert apart(align(model, 0.05), image()["samples"]) < apart(align(model, 0.0), image()["samples"])
    assert apart(align(model, positive=SOURCE), image()["samples"]) < 1e-6
    count = Count(model)
    align(count.model, n_max=4 / STEPS)
    assert count.rows == 4 * 3


def test_a_negative_is_needed_only_where_it_acts(model):
    assert torch.equal(edit(model, negative=None, source_cfg=1.0, cfg=1.0), edit(model, source_cfg=1.0, cfg=1.0))
    with pytest.raises(ValueError, match="source_cfg is 1 and cfg 4, which needs a negative conditioning"):
        edit(model, negative=None, source_cfg=1.0)


@pytest.mark.parametrize("n_max", [0.0, 0.5, 1.0])
def test_the_same_prompt_and_cfg_give_the_image_back(model, n_max):
    assert apart(edit(model, positive=SOURCE, cfg=1.5, n_max=n_max, n_avg=2), image()["samples"]) < 1e-6


@pytest.mark.parametrize("source_cfg, cfg, rows", [(1.0, 1.0, 2), (1.0, 4.0, 3), (1.5, 4.0, 4)])
def test_evaluations_are_counted(model, source_cfg, cfg, rows):
    count = Count(model)
    assert torch.equal(edit(count.model, n_max=0), image()["samples"]) and count.rows == 0
    edit(count.model, n_max=4 / STEPS, n_avg=2, source_cfg=source_cfg, cfg=cfg)
    assert count.rows == 4 * 2 * rows


def test_noises_are_batched_as_far_as_memory_allows(model, monkeypatch):
    count, settings = Count(model), dict(n_max=4 / STEPS, n_avg=3, seed=9)
    together = edit(count.model, **settings)
    assert count.calls == 4 * 2
    count = Count(model)
    monkeypatch.setattr(type(count.model), "get_free_memory", lambda self, device: 1.0)
    assert_close(edit(count.model, **settings), together, atol=1e-3, rtol=1e-3)
    assert count.calls > 4 * 2 * 2


def test_a_channels_masks_fit_all_noises_of_a_step(monkeypatch):
    masks = torch.stack([half_mask()[0], 1 - half_mask()[0]])
    model = MultiCFGWrapper([Channel(tiny.conditioning(5), 2.0, mask=masks)]).install(inversions.smooth("eps"))
    together = edit(model, image(2), n_max=2 / STEPS, n_avg=2)
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 1.0)
    assert_close(edit(model, image(2), n_max=2 / STEPS, n_avg=2), together, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ON_MARKED)
def test_attention_nodes_act_on_all_noises_of_a_step(clip, monkeypatch, name):
    """Whether they are predicted together or one by one."""
    model, positive = ON_MARKED[name](tiny.unet("eps", output_scale=0.2, **tiny.ONE_LEVEL), clip)
    settings = dict(source=encoded(clip, "a blue circle"), positive=positive, source_cfg=1.0, cfg=1.0, n_max=2 / STEPS, n_avg=3)
    together = edit(model, **settings)
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 1.0)
    assert_close(edit(model, **settings), together, atol=1e-4, rtol=1e-4)


def test_all_noises_of_a_step_share_the_regions_of_words(clip, monkeypatch):
    """They are found under the target alone, at the first level, and act from the next on; an image has those that it has alone."""
    model = tiny.unet("eps", output_scale=0.2, **tiny.ONE_LEVEL)

    def edited(given):
        found, positive = regional(model, clip, encoded(clip, "a dog"), encoded(clip, "the cat"), find_percent=0.0)
        channel = Channel(tiny.conditioning(5), 2.0, region="blue star")
        settings = dict(source=encoded(clip, "a blue circle"), positive=positive, source_cfg=1.0, cfg=1.0, n_max=2 / STEPS, n_avg=3)
        return edit(MultiCFGWrapper([channel]).install(found), given, **settings), last_run(found, WordRegions).masks

    together, masks = edited(image(2))
    assert masks.shape == (2, 2, 8, 8) and apart(masks[0], masks[1]) > 1e-2
    alone, mask = edited({"samples": image(2)["samples"][1:]})
    assert_close(mask, masks[1:], atol=1e-4, rtol=1e-4)
    assert_close(alone, together[1:], atol=1e-3, rtol=1e-3)
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 1.0)
    one_by_one, masks_of_them = edited(image(2))
    assert_close(masks_of_them, masks, atol=1e-4, rtol=1e-4)
    assert_close(one_by_one, together, atol=1e-3, rtol=1e-3)


def test_the_last_steps_are_plain_sampling_of_the_target(model):
    """With nothing but such steps it is ComfyUI's image to image from that noise."""
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)[-5:]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    expected = inversions.euler(model, image()["samples"], noise, sigmas, 4.0, TARGET)
    assert_close(edit(model, seed=9, n_max=4 / STEPS, n_min=4 / STEPS), expected, atol=1e-3, rtol=1e-3)
    count = Count(model)
    edit(count.model, n_max=4 / STEPS, n_min=1 / STEPS)
    assert count.rows == 3 * 4 + 1 * 2


def test_a_batch_is_its_images(model):
    given = image(2)
    alone = [edit(model, {"samples": x[None]}) for x in given["samples"]]
    assert_close(edit(model, given), torch.cat(alone), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("n_min", [0.0, 2 / STEPS])
def test_off_the_mask_the_image_stays_bit_for_bit(model, n_min):
    given = image(2)
    found = edit(model, given, mask=half_mask(), n_min=n_min)
    assert torch.equal(found[..., :4], given["samples"][..., :4])
    assert apart(found[..., 4:], given["samples"][..., 4:]) > 1e-2
    assert torch.equal(edit(model, {**given, "noise_mask": half_mask()}, n_min=n_min), found)


def test_a_soft_mask_weighs_the_steps(model):
    """Half of it edits, but less; without soft it counts as none where it is below one half."""
    given, soft = image(), 0.4 * half_mask()
    weak, full = edit(model, mask=soft, soft=True), edit(model, mask=half_mask())
    assert torch.equal(weak[..., :4], given["samples"][..., :4]) and torch.equal(edit(model, mask=soft), given["samples"])
    assert 1e-3 < apart(weak, given["samples"]) < apart(full, given["samples"])
    assert torch.equal(edit(model, mask=half_mask(), soft=True), full)
    assert torch.equal(edit(model, mask=torch.ones(1, 64, 64), soft=True), edit(model))


def test_an_image_is_encoded(vae):
    model, image = tiny.unet("flow", output_scale=0.2), torch.rand(1, 72, 64, 3, generator=torch.Generator().manual_seed(0))
    found = edit(model, image, vae=vae)
    assert found.shape == (1, 4, 9, 8)
    assert_close(found, edit(model, {"samples": vae.encode(image)}), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"'image' is 100 x 64 pixels, but this VAE takes multiples of 8 .* to 96 x 64\."):
        edit(model, torch.rand(1, 64, 100, 3), vae=vae)


def test_the_latent_keeps_what_else_it_carries(model):
    given = {**image(), "noise_mask": half_mask(), "batch_index": [7]}
    settings = with_settings(FlowEditLatentSampler, steps=4, n_max=0.5, scheduler="normal")
    result = FlowEditLatentSampler.execute(model, SOURCE, TARGET, given, negative=EMPTY, **settings).args[0]
    assert result["batch_index"] == [7] and result["noise_mask"] is given["noise_mask"]


def test_video_latents_are_edited():
    given = {"samples": torch.randn(2, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    source, target, negative = (video_conditioning(i) for i in (1, 2, 0))
    model = tiny_video_model()
    found = edit(model, given, source, target, negative, mask=half_mask())
    assert torch.equal(found[..., :4], given["samples"][..., :4]) and apart(found[..., 4:], given["samples"][..., 4:]) > 1e-3
    assert apart(edit(model, given, source, source, negative, cfg=1.5), given["samples"]) < 1e-6


def test_cancelled_it_stops_within_the_evaluation(model):
    model, calls = interrupting(model)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        edit(model)
    assert len(calls) == 1


@pytest.mark.parametrize("which", ["source", "positive", "negative"])
def test_a_conditioning_that_is_off_at_a_level_is_refused(model, which):
    late = [[SOURCE[0][0], {**SOURCE[0][1], "start_percent": 0.95, "end_percent": 1.0}]]
    with pytest.raises(ValueError, match=f"The {which} conditioning is not active at sigma .* n_max"):
        edit(model, **{which: late})
