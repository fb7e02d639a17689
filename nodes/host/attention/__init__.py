"""What ties the techniques of attention/ to ComfyUI; a file of the same name for each that needs one."""
