"""ControlNet, LoRA hooks and masks on the conditioning of a channel keep working."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.samplers
import nodes
import pytest
import torch
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG, MultiCFGWrapper

from compare import assert_close
from host.sampling import cfg_guider, dual_guider, ksampler, latent, run
from host.tiny import conditioning, controlnet, dynamic, lora, unet

EMPTY, CAT, DOG, SKY = (conditioning(i) for i in range(4))
CLOSE = dict(atol=5e-3, rtol=1e-3)
pytestmark = pytest.mark.usefixtures("inference_mode")


def with_control(conditioning):
    """A conditioning under a tiny random ControlNet, as ComfyUI's node makes it."""
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    return nodes.ControlNetApplyAdvanced().apply_controlnet(conditioning, EMPTY, controlnet(3), hint, 0.3, 0.0, 1.0)[0]


def with_lora(conditioning):
    """A conditioning with a LoRA of its own, as ComfyUI's hook nodes make it."""
    return comfy.hooks.set_hooks_for_conditioning(conditioning, comfy.hooks.create_hook_lora(lora(unet()), 1.0, 0.0))


def with_mask(conditioning):
    return nodes.ConditioningSetMask().append(conditioning, torch.ones(1, 8, 8), "default", 0.7)[0]


def multi(model, *channels):
    return MultiCFG(model, EMPTY, channels)


@pytest.mark.parametrize("dress", [with_control, with_lora, with_mask])
def test_dressed_conditionings_guide_as_in_the_hosts_guiders(any_model, dress):
    """As the primary, as a further channel, and as a channel of the patch."""
    dressed = dress(CAT)
    assert torch.equal(run(multi(any_model, Channel(dressed, 3.0))), run(cfg_guider(any_model, dressed, EMPTY, 3.0)))
    ours = run(multi(any_model, Channel(DOG, 3.0), Channel(dressed, 2.0, null=DOG)))
    assert_close(ours, run(dual_guider(any_model, dressed, DOG, EMPTY, 2.0, 3.0)), **CLOSE)
    if dress is not with_mask:
        assert not torch.allclose(ours, run(multi(any_model, Channel(DOG, 3.0), Channel(CAT, 2.0, null=DOG))), atol=0.1)
    patched = MultiCFGWrapper([Channel(dressed, 2.0)]).install(any_model)
    ours = ksampler(patched, DOG, EMPTY, 3.0)
    assert_close(ours, run(multi(any_model, Channel(DOG, 3.0), Channel(dressed, 2.0))), **CLOSE)


@pytest.mark.parametrize("place", ["primary", "channel", "null"])
def test_hooks_of_a_channel_load_a_dynamic_model_whole(eps_model, place):
    """As the host does with its own conditionings: hooks cannot patch weights that are loaded piece by piece."""
    dressed, model = with_lora(CAT), dynamic(eps_model, lambda: unet("eps"))
    further = {"channel": [Channel(dressed, 2.0)], "null": [Channel(SKY, 2.0, null=dressed)], "primary": [Channel(SKY, 2.0)]}[place]
    channels = [Channel(dressed if place == "primary" else DOG, 3.0), *further]
    assert_close(run(MultiCFG(model, EMPTY, channels)), run(MultiCFG(eps_model, EMPTY, channels)), **CLOSE)
    assert not MultiCFG(model, EMPTY, channels).model_patcher.is_dynamic()
    assert MultiCFG(model, EMPTY, [Channel(DOG, 3.0), Channel(SKY, 2.0)]).model_patcher is model


def test_a_hook_leaves_no_trace_on_the_model(any_model):
    before = ksampler(any_model, DOG, EMPTY, 3.0)
    patched = MultiCFGWrapper([Channel(with_lora(CAT), 2.0)]).install(any_model)
    first = ksampler(patched, DOG, EMPTY, 3.0)
    assert torch.equal(ksampler(patched, DOG, EMPTY, 3.0), first)
    assert torch.equal(ksampler(any_model, DOG, EMPTY, 3.0), before)


def test_a_patch_on_attention_acts_on_channels_too(any_model):
    calls, model = [], any_model.clone()
    model.set_model_attn2_patch(lambda q, context, value, options: (calls.append(q.shape[0]), (q, context, value))[1])
    run(multi(model, Channel(CAT, 3.0), Channel(DOG, 2.0)), latent())
    assert set(calls) == {3}
