"""All nodes of the pack, file by file."""

from comfy_api.latest import ComfyExtension

from . import (
    bdia,
    belm,
    classifier,
    ddim,
    demo,
    diffedit,
    edict,
    edit_friendly,
    flow_edit,
    image_guidance,
    instruct_pix2pix,
    inversion,
    inversion_files,
    inversion_report,
    multi_cfg,
    rf_inversion,
    schedules,
    sdedit,
)
from .host.demo import offer_controlnet

MODULES = (demo, schedules, multi_cfg, classifier, image_guidance, instruct_pix2pix, sdedit, diffedit)
# Offered once their help pages and example workflows are there.
WAITING = (ddim, inversion, inversion_files, inversion_report, edict, bdia, belm, edit_friendly, rf_inversion, flow_edit)


class Extension(ComfyExtension):
    async def on_load(self):
        offer_controlnet()

    async def get_node_list(self):
        return [node for module in MODULES for node in module.NODES]
