"""Inversions with what other nodes put on the model: LoRA, ControlNet, weights loaded in inference mode."""

import comfy.samplers
import comfy.sd
import nodes
import pytest
import torch
from controlled_diffusion.nodes.bdia import BDIAInverter
from controlled_diffusion.nodes.belm import BELMInverter
from controlled_diffusion.nodes.ddim import DDIMInverter
from controlled_diffusion.nodes.edict import EDICTInverter
from controlled_diffusion.nodes.edit_friendly import EditFriendlyInverter
from controlled_diffusion.nodes.inversion import InversionSampler

from host import tiny
from host.sampling import run
from node_schema import defaults

pytestmark = pytest.mark.usefixtures("inference_mode")
SOURCE, EMPTY = tiny.conditioning(1), tiny.conditioning(2)
# inverter, its settings, family, cfg up and down
CASES = {
    "ddim": (DDIMInverter, dict(fixed_point_iterations=8), "v", 1.0),
    "edict": (EDICTInverter, dict(cfg=3.0), "eps", 3.0),
    "bdia": (BDIAInverter, dict(cfg=3.0), "v", 3.0),
    "o-belm": (BELMInverter, dict(cfg=3.0), "flow", 3.0),
    "edit-friendly": (EditFriendlyInverter, dict(cfg=3.0, skip=1), "eps", 3.0),
}


def image() -> torch.Tensor:
    return 5 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def controlled(positive, negative):
    """Both under a ControlNet."""
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    return nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, tiny.controlnet(), hint, 0.2, 0.0, 1.0)


@pytest.mark.parametrize("case", list(CASES))
def test_the_image_comes_back_under_lora_and_controlnet_and_the_model_is_as_before(case):
    inverter, knobs, family, cfg = CASES[case]
    model = tiny.unet(family, output_scale=0.05)
    assert next(model.model.diffusion_model.parameters()).is_inference()
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(SOURCE, EMPTY)
    before, (source, negative) = run(guider), controlled(SOURCE, EMPTY)
    patched = comfy.sd.load_lora_for_models(model, None, tiny.lora(model), 1.0, 0)[0]
    settings = defaults(inverter) | dict(steps=4, scheduler="normal") | knobs | ({} if cfg == 1.0 else {"negative": negative})
    inversion = inverter.execute(model=patched, source=source, image={"samples": image()}, **settings).args[0]

    def lost(**others) -> float:
        way = dict(model=patched, inversion=inversion, cfg=cfg, branches="edit", positive=source, negative=negative) | others
        found = InversionSampler.execute(**way).args[0]["samples"]
        return float((found - image()).norm() / image().norm())

    assert lost() < 1e-5
    assert lost(model=model) > 1e-4 and lost(positive=SOURCE, negative=EMPTY) > 1e-4, "LoRA or ControlNet does nothing"
    assert torch.equal(run(guider), before)
