"""Short inversions of small images with the pack's nodes, for tests."""

import comfy.model_management
import comfy.samplers
import torch
from controlled_diffusion.nodes.bdia import BDIAInverter
from controlled_diffusion.nodes.belm import BELMInverter
from controlled_diffusion.nodes.ddim import DDIMInverter
from controlled_diffusion.nodes.edict import EDICTInverter
from controlled_diffusion.nodes.edit_friendly import EditFriendlyInverter
from controlled_diffusion.nodes.flow_edit import FlowEditLatentSampler
from controlled_diffusion.nodes.inversion import InversionSampler
from controlled_diffusion.nodes.negative_prompt import NegativePromptInverter
from controlled_diffusion.nodes.null_text import NullTextInverter
from controlled_diffusion.nodes.rf_inversion import RFInverter

from host import tiny
from host.sampling import cfg_guider, watched
from node_schema import with_settings

SOURCE, TARGET, EMPTY = (tiny.conditioning(i) for i in (1, 2, 3))
EDIT = dict(positive=TARGET, negative=EMPTY)
INVERTERS = {
    "ddim": DDIMInverter,
    "edict": EDICTInverter,
    "bdia": BDIAInverter,
    "o-belm": BELMInverter,
    "edit-friendly": EditFriendlyInverter,
    "rf-inversion": RFInverter,
    "null-text": NullTextInverter,
    "negative-prompt": NegativePromptInverter,
}


def smooth(family: str, scale: float = 0.05):
    """A tiny random model that is tame enough for trajectories; of one level, which takes half the time."""
    return tiny.unet(family, output_scale=scale, **tiny.ONE_LEVEL)


def image(batch: int = 1, channels: int = 4) -> dict:
    """A latent with the spread of real ones."""
    return {"samples": 5 * torch.randn(batch, channels, 8, 8, generator=torch.Generator().manual_seed(0))}


def invert(name: str, model, latent=None, source=SOURCE, **settings) -> tuple:
    """The outputs of an inverter with its defaults, but few steps; the first is the inversion. Where cfg needs a negative, it is EMPTY."""
    node = INVERTERS[name]
    few = dict(steps=6, scheduler="normal") | ({"skip": 0} if name == "edit-friendly" else {})
    settings = with_settings(node, **few | settings)
    if name not in ("null-text", "negative-prompt") and settings.get("cfg", 1.0) != 1.0:
        settings.setdefault("negative", EMPTY)
    return node.execute(model=model, source=source, image=image() if latent is None else latent, **settings).args


def flow_edit(model, latent=None, source=SOURCE, positive=TARGET, negative=EMPTY, **settings) -> torch.Tensor:
    """FlowEdit with its defaults, but few steps."""
    given = dict(source=source, positive=positive, negative=negative, image=image() if latent is None else latent)
    scales = {} if "method" in settings else dict(source_cfg=1.5, cfg=4.0)
    settings = dict(steps=6, n_max=4 / 6, scheduler="normal") | scales | settings
    return FlowEditLatentSampler.execute(model, **given, **with_settings(FlowEditLatentSampler, **settings)).args[0]["samples"]


def sample(model, inversion, cfg=1.0, branches="edit", **inputs) -> torch.Tensor:
    """What Inversion Sampler makes of an inversion."""
    return InversionSampler.execute(model, inversion, cfg, branches, **inputs).args[0]["samples"]


def euler(model, start, noise, sigmas, cfg=1.0, positive=SOURCE, negative=EMPTY) -> torch.Tensor:
    """What a stock sampler makes of a start and a noise."""
    guider = cfg_guider(model, positive, negative, cfg)
    return guider.sample(noise, start, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0)


def apart(a, b) -> float:
    return float((a - b).norm() / b.norm())


def half_mask() -> torch.Tensor:
    """A MASK whose left half may change."""
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    return mask


def on_positives(model):
    """The model with a node that changes the attention of positives alone, as IP-Adapters do."""

    def stronger(q, k, v, options):
        rows = [1.5 if index == 0 else 1.0 for index in options["cond_or_uncond"]]
        return q, k, v * torch.tensor(rows).repeat_interleave(len(v) // len(rows)).view(-1, 1, 1)

    patched = model.clone()
    patched.set_model_attn2_patch(stronger)
    return patched


def interrupting(model, call: int = 1):
    """(a model whose run the user cancels during an evaluation, the list of evaluations)."""
    calls = []

    def look(args):
        calls.append(1)
        if len(calls) == call:
            comfy.model_management.interrupt_current_processing()

    return watched(model, look), calls
