"""What ties the techniques of inversion/ to ComfyUI; a file of the same name for each that needs one."""
