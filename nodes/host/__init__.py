"""The ground of the ComfyUI side: what is specific to ComfyUI and serves every field; no technique."""
