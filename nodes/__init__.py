"""All nodes of the pack, file by file."""

from comfy_api.latest import ComfyExtension

from . import (
    as_flow,
    attention_maps,
    bdia,
    belm,
    classifier,
    classifier_training,
    custom_diffusion,
    ddim,
    demo,
    diffedit,
    dreambooth,
    edict,
    edit_friendly,
    flow_edit,
    image_guidance,
    instruct_pairs,
    instruct_pix2pix,
    instruct_training,
    inversion,
    inversion_files,
    inversion_report,
    ip_adapter,
    keep_rest,
    multi_cfg,
    negative_attention,
    negative_prompt,
    null_text,
    prompt_to_prompt,
    rf_inversion,
    schedules,
    sdedit,
    textual_inversion,
    training_options,
    word_regions,
    word_weights,
)
from .host.demo import offer_controlnet
from .inputs.checks import with_checks

MODULES = (
    *(demo, schedules, multi_cfg, classifier, image_guidance, instruct_pix2pix, sdedit, diffedit, keep_rest),
    *(ddim, inversion, null_text, negative_prompt, edict, bdia, belm, edit_friendly, as_flow, rf_inversion),
    *(flow_edit, inversion_report, inversion_files),
    *(prompt_to_prompt, word_weights, attention_maps, word_regions, ip_adapter, negative_attention),
    *(textual_inversion, classifier_training, dreambooth, custom_diffusion),
    *(instruct_pairs, instruct_training, training_options),
)


class Extension(ComfyExtension):
    async def on_load(self):
        offer_controlnet()

    async def get_node_list(self):
        return [with_checks(node) for module in MODULES for node in module.NODES]
