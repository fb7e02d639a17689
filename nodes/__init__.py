"""All nodes of the pack, file by file."""

from comfy_api.latest import ComfyExtension

from . import demo, multi_cfg, schedules, sdedit

MODULES = (demo, schedules, multi_cfg, sdedit)


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [node for module in MODULES for node in module.NODES]
