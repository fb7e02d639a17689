"""Runs the pack inside the real ComfyUI: the private environment, the host, its server, the demo and the tests."""
