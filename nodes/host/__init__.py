"""All that is ComfyUI-specific and shared by the nodes; no technique."""
