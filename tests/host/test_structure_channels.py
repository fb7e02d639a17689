"""ControlNet and T2I-Adapter as guidance terms of their own: conditioning = controlled, null = the same text uncontrolled."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.samplers
import nodes
import pytest
import torch
from comfy.t2i_adapter.adapter import Adapter
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG, MultiCFGWrapper

from compare import assert_close
from host.sampling import STEPS, Count, cfg_guider, ksampler, run
from host.tiny import UNET_CONFIG, conditioning, fill
from host.tiny import unet as tiny_unet

EMPTY, CAT = conditioning(0), conditioning(1)
DEEP = dict(num_res_blocks=[2, 2], transformer_depth=[1] * 4, transformer_depth_output=[1] * 6)
CLOSE = dict(atol=2e-3, rtol=1e-3)
pytestmark = pytest.mark.usefixtures("inference_mode")


def control_net():
    config = {k: v for k, v in (UNET_CONFIG | DEEP).items() if k not in ("out_channels", "transformer_depth_output")}
    network = fill(comfy.cldm.cldm.ControlNet(hint_channels=3, num_heads=4, device="cpu", **config), 3)
    return comfy.controlnet.ControlNet(network, load_device=comfy.model_management.get_torch_device())


def adapter():
    network = fill(Adapter(channels=[32, 64], nums_rb=1, cin=3 * 64, ksize=1, sk=True, use_conv=False, xl=False), 4)
    return comfy.controlnet.T2IAdapter(network, 3, 8, "nearest-exact")


def under(control, conditioning):
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    return nodes.ControlNetApplyAdvanced().apply_controlnet(conditioning, EMPTY, control, hint, 0.5, 0.0, 1.0)[0]


@pytest.fixture(params=[control_net, adapter], ids=["ControlNet", "T2I-Adapter"])
def controlled(request):
    return under(request.param(), CAT)


def predicted(model, conditioning, sigma: float = 2.0) -> torch.Tensor:
    return run(cfg_guider(model, conditioning, EMPTY, 1.0), sigmas=torch.tensor([sigma, 0.0]))


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
def test_the_term_is_the_difference_that_the_structure_makes(family, controlled):
    model, sigma = tiny_unet(family, **DEEP), 0.8
    text, empty, both = (predicted(model, c, sigma) for c in (CAT, EMPTY, controlled))
    channels = [Channel(CAT, 4.0), Channel(controlled, 1.5, null=CAT)]
    guided = run(MultiCFG(model, EMPTY, channels), sigmas=torch.tensor([sigma, 0.0]))
    assert not torch.allclose(both, text, atol=1e-2)
    assert_close(guided, empty + 4.0 * (text - empty) + 1.5 * (both - text), **CLOSE)


def test_it_costs_one_evaluation_and_goes_with_a_ksampler(controlled):
    """The text is shared."""
    counted, structure = Count(tiny_unet("eps", **DEEP)), Channel(controlled, 1.5, null=CAT)
    made = run(MultiCFG(counted.model, EMPTY, [Channel(CAT, 4.0), structure]))
    assert counted.rows == 3 * STEPS
    assert_close(ksampler(MultiCFGWrapper([structure]).install(counted.model), CAT, EMPTY, 4.0), made, **CLOSE)
