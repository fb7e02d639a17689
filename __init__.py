"""Controlled Diffusion: guidance, inversion, attention control and personalization for ComfyUI."""

WEB_DIRECTORY = "./nodes/web"


async def comfy_entrypoint():
    from .nodes import Extension  # here, not above: pytest imports this file too

    return Extension()
